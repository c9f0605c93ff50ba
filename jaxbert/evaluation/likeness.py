"""How alike the layers of a student and its teacher are, on the same tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbert.batch import Batch
from jaxbert.interop.huggingface import Model
from jaxbert.models.bert import BertConfig, encode
from jaxbert.models.encoder import Collect
from jaxbert.objectives.alignment import Pairs
from jaxbert.objectives.features import same_example

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
    teacher: Model, students: Mapping[str, Model], batches: Iterable[Batch], pairs: Pairs
) -> dict[str, dict[str, Any]]:
    """Compares the hidden states and attention scores of a teacher with those of other models.

    All read the same pieces, dropout off, in float32.

    Args:
      teacher: N layers.
      students: M layers each, by name.
      batches: packed rows of the models' pieces; read until there are 4,096 real tokens.
      pairs: of a student layer and the teacher layer that it is held against, counted from 1.

    Returns:
      By name ``tokens``, how many; ``pairs``, with (0, 0), the embeddings, before the rest; for
      each of them ``hidden`` (`unexplained`) and ``cka``; ``attention``, for each but the first,
      the mean squared difference of the scores before the softmax over heads and pairs of tokens of
      one example (Jiao et al. 2020, equation 7), groups of heads averaged where there are not as
      many; ``matrix``, M + 1 rows of N + 1, `linear_cka` of all hidden states. Null where
      undefined.
    """
    states: dict[str, list[list[np.ndarray]]] = {name: [] for name in ("", *students)}
    gaps = {name: np.zeros(len(pairs)) for name in students}
    compared = tokens = 0
    for batch in batches:
        real, same = batch.segments > 0, np.asarray(same_example(batch.segments))
        theirs = _read(teacher, batch, tuple(t for _, t in pairs))
        states[""].append([x[real] for x in theirs.hidden])
        for name, student in students.items():
            mine = _read(student, batch, tuple(s for s, _ in pairs))
            states[name].append([x[real] for x in mine.hidden])
            heads = math.gcd(mine.scores[0].shape[1], theirs.scores[0].shape[1])
            for index, (a, b) in enumerate(zip(mine.scores, theirs.scores, strict=True)):
                squares = np.square(_grouped(a, heads) - _grouped(b, heads)).mean(axis=1)
                gaps[name][index] += np.sum(squares[same], dtype=np.float64)
        compared += int(same.sum())
        tokens += int(real.sum())
        if tokens >= TOKENS:
            break

    def joined(name: str) -> list[np.ndarray]:
        layers = zip(*states.pop(name), strict=True)
        return [_centred(np.concatenate(parts)[:TOKENS]) for parts in layers]

    teachers = joined("")
    norms = [_gram_norm(y) for y in teachers]
    matched = [(0, 0), *pairs]
    found = {}
    for name in students:
        ours = joined(name)
        table = [
            [_alignment(x, y, own, norm) for y, norm in zip(teachers, norms, strict=True)]
            for x, own in ((x, _gram_norm(x)) for x in ours)
        ]
        found[name] = {
            "tokens": min(tokens, TOKENS),
            "pairs": [list(pair) for pair in matched],
            "hidden": [_number(_unexplained(ours[s], teachers[t])) for s, t in matched],
            "cka": [_number(table[s][t]) for s, t in matched],
            "attention": [_number(gap / max(compared, 1)) for gap in gaps[name]],
            "matrix": [[_number(x) for x in row] for row in table],
        }
    return found


class _Features(NamedTuple):
    """What a model makes of a batch: hidden states [B, T, D], and scores [B, H, T, T] of layers."""

    hidden: list[np.ndarray]
    scores: list[np.ndarray]


def _read(model: Model, batch: Batch, layers: tuple[int, ...]) -> _Features:
    # The encoder's shape alone: models that differ in their heads are one program.
    config = model.config.replace(
        dtype="float32",
        head="classification",
        classifier="bert",
        num_labels=0,
        projection_size=0,
        projection_per_layer=False,
        projection_rank=0,
    )
    params = {group: model.params[group] for group in _ENCODER}
    with jax.default_matmul_precision("highest"):
        return _Features(*jax.device_get(_reader(config, layers)(params, batch)))


@functools.lru_cache(maxsize=4)
def _reader(config: BertConfig, layers: tuple[int, ...]) -> Callable[[Any, Batch], Any]:
    states = tuple(range(config.num_layers + 1))
    collect = Collect(
        hidden=states, scores=tuple(sorted({layer - 1 for layer in layers})), last=False
    )

    def read(params: Any, batch: Batch) -> Any:
        out = encode(config, params, batch, collect=collect)
        return [out.hidden[i] for i in states], [out.scores[layer - 1] for layer in layers]

    return jax.jit(read)


def _grouped(scores: np.ndarray, heads: int) -> np.ndarray:
    """The means [B, heads, T, T] of neighbouring heads."""
    return scores.reshape(scores.shape[0], heads, -1, *scores.shape[2:]).mean(axis=2)


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
