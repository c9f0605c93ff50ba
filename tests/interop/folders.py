"""A small model, and changes to the files of its folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from jaxbert.models.bert import BertConfig, init_params

WEIGHTS = "model.safetensors"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "bad", "##s", "."]
CONFIG = BertConfig(
    vocab_size=13,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
    activation="gelu_new",
    layer_norm_eps=1e-6,
    hidden_dropout=0.2,
    attention_dropout=0.0,
)
BACKBONE = ("embeddings", "encoder", "pooler")


def random_params(config: BertConfig, groups: tuple[str, ...], seed: int = 1) -> dict:
    """Every value different from every other: zero biases would hide a swap."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(size=p.shape).astype(np.float32), shapes_of(config, groups)
    )


@functools.cache
def shapes_of(config: BertConfig, groups: tuple[str, ...]) -> dict:
    return jax.eval_shape(lambda key: init_params(config, key, groups), jax.random.key(0))


def edit(folder: Path, change) -> dict[str, np.ndarray]:
    """Rewrites a folder's tensors: ``change`` takes and returns the dict."""
    tensors = change(safetensors.numpy.load_file(folder / WEIGHTS))
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return tensors


def edit_config(folder: Path, **changes) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
