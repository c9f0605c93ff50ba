"""How alike the layers of a student and its teacher are, on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.batch import Batch
from jaxbert.interop.huggingface import Model
from jaxbert.models.bert import encode
from jaxbert.models.encoder import Collect
from jaxbert.objectives.alignment import Pairs
from jaxbert.objectives.features import mean_heads, same_example

TOKENS = 4_096  # at most: the products of two models' states take seconds then
_ENCODER = ("embeddings", "encoder")
# Singular values below this share of the largest are float32's rounding: what a LayerNorm gives has
# one direction less than it is wide.
_NEGLIGIBLE = 1e-5


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, section 3, equation 2 in features).

    ||Y'X||^2 / (||X'X|| ||Y'Y||) in Frobenius norms, of centred columns: 1 where one is the other
    turned and scaled, near 0 where they have nothing in common.

    Args:
      x: [N, D], a row a token.
      y: [N, D'].

    Returns:
      0 to 1; NaN where all rows of one are the same.
    """
    return _alignment(_centred(x), _centred(y))


def unexplained(x: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of Y that no linear map of X gives, 1 - R^2.

    R^2 is ||Q'Y||^2 / ||Y||^2 with an orthonormal basis Q of the centred columns of X (Kornblith et
    al. 2019, section 3: linear regression). It is fitted on the tokens that it is measured on, so
    that it is too small where these are hardly more than D.

    Args:
      x: [N, D], the student's.
      y: [N, D'], the teacher's.

    Returns:
      0 to 1; NaN where all rows of y are the same.
    """
    return _unexplained(_centred(x), _centred(y))


def measure(
    teacher: Model, student: Model, batches: Iterable[Batch], pairs: Pairs
) -> dict[str, Any]:
    """Compares the hidden states and attention scores of two models.

    Both read the same pieces, dropout off, in float32.

    Args:
      teacher: N layers.
      student: M layers.
      batches: packed rows of both models' pieces; read until there are 4,096 real tokens.
      pairs: of a student layer and the teacher layer that it is held against, counted from 1.

    Returns:
      ``tokens``, how many; ``pairs``, with (0, 0), the embeddings, before the rest; for each of
      them ``hidden`` (`unexplained`) and ``cka``; ``attention``, for each but the first, the mean
      squared difference of the scores before the softmax over heads and pairs of tokens of one
      example (Jiao et al. 2020, equation 7), groups of heads averaged where there are not as many;
      ``matrix`` [M + 1][N + 1], `linear_cka` of all hidden states. Null where undefined.
    """
    mine, theirs, attention, tokens = _collect(teacher, student, batches, pairs)
    students, teachers = [_centred(x) for x in mine], [_centred(y) for y in theirs]
    norms = [_gram_norm(y) for y in teachers]
    matrix = [
        [_alignment(x, y, own, norm) for y, norm in zip(teachers, norms, strict=True)]
        for x, own in ((x, _gram_norm(x)) for x in students)
    ]
    matched = [(0, 0), *pairs]
    return {
        "tokens": tokens,
        "pairs": [list(pair) for pair in matched],
        "hidden": [_number(_unexplained(students[s], teachers[t])) for s, t in matched],
        "cka": [_number(matrix[s][t]) for s, t in matched],
        "attention": [_number(x) for x in attention],
        "matrix": [[_number(x) for x in row] for row in matrix],
    }


def _collect(
    teacher: Model, student: Model, batches: Iterable[Batch], pairs: Pairs
) -> tuple[list[np.ndarray], list[np.ndarray], list[float], int]:
    """Hidden states float32 [tokens, D] of each model, and the distance of each pair's scores."""
    configs = [model.config.replace(dtype="float32") for model in (student, teacher)]
    heads = math.gcd(*(config.num_heads for config in configs))
    wanted = [
        Collect(
            hidden=tuple(range(config.num_layers + 1)),
            scores=tuple(sorted({pair[side] - 1 for pair in pairs})),
            last=False,
        )
        for side, config in enumerate(configs)
    ]

    @jax.jit
    def run(params: Any, batch: Batch) -> Any:
        out = [
            encode(config, one, batch, collect=collect)
            for config, one, collect in zip(configs, params, wanted, strict=True)
        ]
        same = same_example(batch.segments)[:, None]

        def gap(pair: tuple[int, int]) -> jax.Array:
            a, b = (
                mean_heads(o.scores[layer - 1], heads) for o, layer in zip(out, pair, strict=True)
            )
            return jnp.sum(jnp.where(same, jnp.square(a - b), 0.0), axis=(1, 2, 3))

        hidden = [[o.hidden[i] for i in sorted(o.hidden)] for o in out]
        return hidden, [gap(pair) for pair in pairs], jnp.sum(same, axis=(1, 2, 3))

    params = [{g: model.params[g] for g in _ENCODER} for model in (student, teacher)]
    states: list[list[list[np.ndarray]]] = [[[] for _ in range(c.num_layers + 1)] for c in configs]
    gaps, compared, tokens = np.zeros(len(pairs)), 0, 0
    for batch in batches:
        with jax.default_matmul_precision("highest"):
            hidden, found, count = jax.device_get(run(params, batch))
        real = batch.segments > 0
        for kept, layers in zip(states, hidden, strict=True):
            for some, layer in zip(kept, layers, strict=True):
                some.append(layer[real])
        gaps += np.array([np.sum(gap, dtype=np.float64) for gap in found]).reshape(gaps.shape)
        compared += int(count.sum())
        tokens += int(real.sum())
        if tokens >= TOKENS:
            break
    mine, theirs = ([np.concatenate(x)[:TOKENS] for x in kept] for kept in states)
    return mine, theirs, (gaps / max(compared * heads, 1)).tolist(), min(tokens, TOKENS)


def _centred(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.mean(axis=0)


def _gram_norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.T @ x))


def _alignment(
    x: np.ndarray, y: np.ndarray, x_norm: float | None = None, y_norm: float | None = None
) -> float:
    """`linear_cka` of centred states, whose own norms may be known."""
    norms = (_gram_norm(x) if x_norm is None else x_norm) * (
        _gram_norm(y) if y_norm is None else y_norm
    )
    return float(np.sum(np.square(y.T @ x))) / norms if norms > 0 else math.nan


def _unexplained(x: np.ndarray, y: np.ndarray) -> float:
    total = float(np.sum(np.square(y)))
    if not total:
        return math.nan
    basis, sizes, _ = np.linalg.svd(x, full_matrices=False)
    basis = basis[:, sizes > _NEGLIGIBLE * max(sizes.max(), 1e-300)]
    return max(1.0 - float(np.sum(np.square(basis.T @ y))) / total, 0.0)


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
