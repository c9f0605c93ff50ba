"""A small model, and changes to the files of its folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from jaxbert.files import SEAL
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
    (folder / SEAL).unlink(missing_ok=True)
    tensors = change(safetensors.numpy.load_file(folder / WEIGHTS))
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return tensors


def edit_config(folder: Path, **changes) -> None:
    (folder / SEAL).unlink(missing_ok=True)
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def write_released(folder: Path, config: BertConfig, scale: float = 1.0) -> dict[str, np.ndarray]:
    """A checkpoint as TinyBERT's authors released theirs: no model_type, old LayerNorm names.

    Args:
      folder: where to.
      config: its sizes, and whether ``fit_dense`` is one or there are ``fit_denses``.
      scale: standard deviation of its weights.

    Returns:
      The parameters among its tensors.
    """
    d, f = config.hidden_size, config.intermediate_size
    v, p = config.vocab_size, config.max_position_embeddings
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (v, d),
        "bert.embeddings.position_embeddings.weight": (p, d),
        "bert.embeddings.token_type_embeddings.weight": (2, d),
        "bert.embeddings.LayerNorm.gamma": (d,),
        "bert.embeddings.LayerNorm.beta": (d,),
        "bert.pooler.dense.weight": (d, d),
        "bert.pooler.dense.bias": (d,),
        "cls.predictions.bias": (v,),
        "cls.predictions.transform.dense.weight": (d, d),
        "cls.predictions.transform.dense.bias": (d,),
        "cls.predictions.transform.LayerNorm.gamma": (d,),
        "cls.predictions.transform.LayerNorm.beta": (d,),
        "cls.seq_relationship.weight": (2, d),
        "cls.seq_relationship.bias": (2,),
    }
    for i in range(config.num_layers):
        layer = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= {f"{layer}.attention.{name}.weight": (d, d)}
            shapes |= {f"{layer}.attention.{name}.bias": (d,)}
        for name, size in (("intermediate.dense", (f, d)), ("output.dense", (d, f))):
            shapes |= {f"{layer}.{name}.weight": size, f"{layer}.{name}.bias": size[:1]}
        for name in ("attention.output", "output"):
            shapes |= {f"{layer}.{name}.LayerNorm.{end}": (d,) for end in ("gamma", "beta")}
    fits = [f"fit_denses.{i}" for i in range(config.num_layers + 1)]
    for name in fits if config.projection_per_layer else ["fit_dense"]:
        shapes |= {f"{name}.weight": (config.projection_size, d)}
        shapes |= {f"{name}.bias": (config.projection_size,)}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, scale, s).astype(np.float32) for name, s in shapes.items()}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    buffers = {"bert.embeddings.position_ids": np.arange(p)[None]}
    safetensors.numpy.save_file(tensors | buffers, folder / WEIGHTS)
    sizes = {
        "attention_probs_dropout_prob": 0.1,
        "cell": {},
        "emb_size": d,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": d,
        "initializer_range": 0.02,
        "intermediate_size": f,
        "max_position_embeddings": p,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pre_trained": "",
        "structure": [],
        "type_vocab_size": 2,
        "vocab_size": v,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    return tensors
