"""A small masked language model over real pieces, for the tests of augmentation."""

from __future__ import annotations

from pathlib import Path

import commands
import jax
import numpy as np

from jaxbert.data.tokenizer import Tokenizer, load_tokenizer
from jaxbert.data.wording import piece_words
from jaxbert.evaluation.fill_mask import MaskedLM
from jaxbert.interop.huggingface import Model, read_model, write_model
from jaxbert.models.bert import init_params

CONFIG = commands.TEACHER.replace(num_layers=2)


def write(folder: Path) -> Path:
    """Writes the model; its weights are random, its vocabulary the first pieces of a real one."""
    tokenizer = load_tokenizer(commands.write_small_teacher(folder.with_name("vocabulary")))
    groups = ("embeddings", "encoder", "pooler", "mlm")
    params = jax.device_get(init_params(CONFIG, jax.random.key(3), groups))
    write_model(folder, CONFIG, params, (), tokenizer)
    return folder


def opened(folder: Path, candidates: int = 5) -> tuple[Model, Tokenizer, MaskedLM]:
    """The model, its tokenizer, and what answers questions."""
    model, tokenizer = read_model(folder), load_tokenizer(folder)
    words = np.array([bool(word) for word in piece_words(tokenizer)])
    return model, tokenizer, MaskedLM(model.config, model.params, words, candidates)
