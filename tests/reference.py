"""BERT in a few lines of float64 NumPy, written from the papers' equations, and rows by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import erf

from jaxbert.batch import Batch
from jaxbert.models.bert import BertConfig, init_params

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


def tiny(**changes: Any) -> BertConfig:
    """A configuration that compiles fast; no two of its sizes are equal."""
    sizes = {
        "vocab_size": 23,
        "hidden_size": 12,
        "num_layers": 3,
        "num_heads": 2,
        "intermediate_size": 10,
        "max_position_embeddings": 17,
    }
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    return BertConfig(**{**sizes, **rates, **changes})


def random_like(shapes: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """Normal float32 leaves: with zero biases and unit scales a missing one would not show."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, scale, s.shape).astype(np.float32), shapes)


def random_params(config: BertConfig, groups: tuple[str, ...] | None = None, seed: int = 0) -> Any:
    """Random parameters of a whole model."""
    shapes = jax.eval_shape(lambda key: init_params(config, key, groups), jax.random.key(0))
    return random_like(shapes, seed)


class Example(NamedTuple):
    """An example's ids, with [CLS] and [SEP], and where its second text begins."""

    ids: list[int]
    second: int


def rows(packed: list[list[Example]], length: int) -> Batch:
    """A batch of rows, each a list of examples, padded to a length."""
    count = len(packed)
    arrays = {
        name: np.zeros((count, length), np.int32)
        for name in ("tokens", "segments", "token_types", "positions")
    }
    starts = np.zeros((count, max(map(len, packed))), np.int32)
    weights = np.zeros(starts.shape, np.float32)
    for b, examples in enumerate(packed):
        at = 0
        for k, (ids, second) in enumerate(examples):
            place = b, slice(at, at + len(ids))
            arrays["tokens"][place] = ids
            arrays["segments"][place] = k + 1
            arrays["positions"][place] = range(len(ids))
            arrays["token_types"][place] = [int(i >= second) for i in range(len(ids))]
            starts[b, k], weights[b, k] = at, 1
            at += len(ids)
    return Batch(**arrays, starts=starts, labels=None, weights=weights)


def slices(packed: list[list[Example]]) -> list[tuple[int, slice, int]]:
    """Row, positions and slot of each example."""
    found = []
    for b, examples in enumerate(packed):
        at = 0
        for k, (ids, _) in enumerate(examples):
            found.append((b, slice(at, at + len(ids)), k))
            at += len(ids)
    return found


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(params["kernel"], np.float64) + params["bias"]


def layer_norm(params: Any, x: np.ndarray, eps: float) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    unit = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
    return unit * params["scale"] + params["bias"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def turn(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotary positions as complex numbers: x [T, K], positions [T]."""
    half = x.shape[-1] // 2
    z = x[:, :half] + 1j * x[:, half:]
    angles = np.asarray(positions)[:, None] * 10000.0 ** (-np.arange(half) / half)
    z = z * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def attention(
    params: Any, x: np.ndarray, allowed: np.ndarray, heads: int, positions: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One row: x [T, D], allowed bool [T, T]; the output [T, D] and probabilities [H, T, T]."""
    q, k, v = (
        np.split(dense(params[name], x), heads, axis=-1) for name in ("query", "key", "value")
    )
    mixed, probabilities = [], []
    for head in range(heads):
        a, b = q[head], k[head]
        if positions is not None:
            a, b = turn(a, positions), turn(b, positions)
        scores = np.where(allowed, a @ b.T / np.sqrt(a.shape[-1]), -np.inf)
        probabilities.append(softmax(scores))
        mixed.append(probabilities[-1] @ v[head])
    return dense(params["output"], np.concatenate(mixed, -1)), np.stack(probabilities)


def encoder(
    params: Any, x: np.ndarray, config: BertConfig, positions: np.ndarray | None = None
) -> list[np.ndarray]:
    """One example without padding, x [T, D]: its hidden states, 0 = x."""
    states = [x]
    everywhere = np.ones((len(x), len(x)), bool)
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda p, i=i: np.asarray(p[i], np.float64), params["layers"])
        x = states[-1]
        mixed, _ = attention(layer["attention"], x, everywhere, config.num_heads, positions)
        x = layer_norm(layer["attention_norm"], x + mixed, config.layer_norm_eps)
        wide = ACTIVATIONS[config.activation](dense(layer["intermediate"], x))
        x = layer_norm(
            layer["output_norm"], x + dense(layer["output"], wide), config.layer_norm_eps
        )
        states.append(x)
    return states


def bert(params: Any, example: Example, config: BertConfig) -> list[np.ndarray]:
    """One example alone: its hidden states."""
    table = jax.tree.map(lambda p: np.asarray(p, np.float64), params["embeddings"])
    ids, second = example
    positions = np.arange(len(ids))
    x = table["word"][ids] + table["token_type"][(positions >= second).astype(int)]
    if config.position == "learned":
        x = x + table["position"]["embedding"][positions]
    elif config.position == "sinusoidal":
        x = x + sinusoids(len(ids), config.hidden_size)
    x = layer_norm(table["norm"], x, config.layer_norm_eps)
    rotary = positions if config.position == "rotary" else None
    return encoder(params["encoder"], x, config, rotary)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Vaswani et al. 2017, section 3.5, entry by entry."""
    table = np.zeros((length, width))
    for p in range(length):
        for i in range(width):
            angle = p / 10000 ** (2 * (i // 2) / width)
            table[p, i] = np.cos(angle) if i % 2 else np.sin(angle)
    return table
