"""Every loss against float64 NumPy loops, its gradient against finite differences."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxbert.objectives import losses

RNG = np.random.default_rng(0)
B, H, T, D, S, C = 3, 2, 5, 4, 2, 3
SEGMENTS = np.array([[1, 1, 1, 1, 1], [1, 1, 2, 0, 0], [0, 0, 0, 0, 0]], np.int32)
WEIGHTS = np.array([[1, 1], [1, 0], [0, 0]], np.float32)
REAL = SEGMENTS > 0
PAIRS = ((SEGMENTS[:, :, None] == SEGMENTS[:, None]) & REAL[:, :, None])[:, None]
LABELS = np.array([[2, 0], [1, 0], [0, 0]], np.int32)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def hidden_reference(a: np.ndarray, b: np.ndarray) -> float:
    errors = [((a[i, t] - b[i, t]) ** 2).mean() for i, t in np.argwhere(SEGMENTS > 0)]
    return float(np.mean(errors))


def cosine_reference(a: np.ndarray, b: np.ndarray) -> float:
    real = [(a[i, t], b[i, t]) for i, t in np.argwhere(SEGMENTS > 0)]
    return float(np.mean([1 - x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in real]))


def score_reference(a: np.ndarray, b: np.ndarray) -> float:
    errors = []
    for i in range(B):
        for q in range(T):
            for k in range(T):
                if SEGMENTS[i, q] == SEGMENTS[i, k] > 0:
                    errors += list((a[i, :, q, k] - b[i, :, q, k]) ** 2)
    return float(np.mean(errors))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def soft_reference(a: np.ndarray, b: np.ndarray, t: float) -> float:
    target, log = np.exp(log_softmax(b / t)), log_softmax(a / t)
    return float(np.mean([-target[i] * log[i] for i in map(tuple, np.argwhere(WEIGHTS > 0))]))


def kl_reference(a: np.ndarray, b: np.ndarray, t: float) -> float:
    p, log_p, log_q = np.exp(log_softmax(b / t)), log_softmax(b / t), log_softmax(a / t)
    slots = map(tuple, np.argwhere(WEIGHTS > 0))
    return float(np.mean([np.sum(p[i] * (log_p[i] - log_q[i])) for i in slots]))


def dist_reference(a: np.ndarray, b: np.ndarray, t: float) -> float:
    real = WEIGHTS > 0
    p, q = (np.exp(log_softmax(x / t))[real] for x in (a, b))  # [N, C]
    rows = [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(p, q, strict=True)]
    columns = [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(p.T, q.T, strict=True)]
    return float(np.mean(rows) + np.mean(columns))


def standardized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def hard_reference(a: np.ndarray) -> float:
    slots = map(tuple, np.argwhere(WEIGHTS > 0))
    return float(np.mean([-log_softmax(a[i])[LABELS[i]] for i in slots]))


STATES, SCORES, LOGITS = (normal(B, T, D), normal(B, H, T, T), normal(B, S, C))
OTHER_STATES, OTHER_SCORES, OTHER_LOGITS = (normal(B, T, D), normal(B, H, T, T), normal(B, S, C))
CASES: dict[str, tuple[Any, Any, np.ndarray]] = {
    "hidden": (
        lambda a: losses.mse(a, OTHER_STATES, REAL[..., None]),
        lambda a: hidden_reference(a, OTHER_STATES),
        STATES,
    ),
    "scores": (
        lambda a: losses.mse(a, OTHER_SCORES, PAIRS),
        lambda a: score_reference(a, OTHER_SCORES),
        SCORES,
    ),
    "padded_hidden": (
        lambda a: losses.padded_mse(a, OTHER_STATES),
        lambda a: float(((a - OTHER_STATES) ** 2).mean()),
        STATES,
    ),
    "soft_t1": (
        lambda a: losses.soft_cross_entropy(a, OTHER_LOGITS, WEIGHTS),
        lambda a: soft_reference(a, OTHER_LOGITS, 1.0),
        LOGITS,
    ),
    "soft_t3": (
        lambda a: losses.soft_cross_entropy(a, OTHER_LOGITS, WEIGHTS, 3.0),
        lambda a: soft_reference(a, OTHER_LOGITS, 3.0),
        LOGITS,
    ),
    "cosine": (
        lambda a: losses.cosine(a, OTHER_STATES, REAL),
        lambda a: cosine_reference(a, OTHER_STATES),
        STATES,
    ),
    "kl_t3": (
        lambda a: losses.kl(a, OTHER_LOGITS, WEIGHTS, 3.0),
        lambda a: kl_reference(a, OTHER_LOGITS, 3.0),
        LOGITS,
    ),
    "dist_t2": (
        lambda a: losses.dist(a, OTHER_LOGITS, WEIGHTS, 2.0),
        lambda a: dist_reference(a, OTHER_LOGITS, 2.0),
        LOGITS,
    ),
    "standardized": (
        lambda a: losses.kl(losses.standardize(a), losses.standardize(OTHER_LOGITS), WEIGHTS),
        lambda a: kl_reference(standardized(a), standardized(OTHER_LOGITS), 1.0),
        LOGITS,
    ),
    "hard": (
        lambda a: losses.cross_entropy(a, LABELS, WEIGHTS),
        lambda a: hard_reference(a),
        LOGITS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_mean_over_what_is_real(name, within):
    loss, reference, student = CASES[name]
    within(jax.jit(lambda a: loss(a).mean())(student), reference(student.astype(np.float64)))


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_finite_differences(name, within):
    loss, reference, student = CASES[name]
    gradient = jax.jit(jax.grad(lambda a: loss(a).mean()))(student)
    point, step = student.astype(np.float64), 1e-5
    wanted = np.zeros_like(point)
    for index in np.ndindex(*point.shape):
        moved = np.zeros_like(point)
        moved[index] = step
        wanted[index] = (reference(point + moved) - reference(point - moved)) / (2 * step)
    within(gradient, wanted)


@pytest.mark.parametrize("name", ["hidden", "scores", "cosine"])
def test_masked_values_of_any_size_leave_loss_and_gradient_alone(name):
    loss, _, student = CASES[name]
    mask = PAIRS if name == "scores" else REAL[..., None]
    value_and_grad = jax.jit(jax.value_and_grad(lambda a: loss(a).mean()))
    for poison in (-1e9, np.inf, np.nan):
        value, gradient = value_and_grad(np.where(mask, student, np.float32(poison)))
        clean, clean_gradient = value_and_grad(student)
        assert value == clean
        np.testing.assert_array_equal(gradient, clean_gradient)


def test_batch_of_nothing_has_loss_and_gradient_zero():
    nothing = np.zeros_like(SEGMENTS)
    for loss, student in (
        (lambda a: losses.mse(a, OTHER_STATES, nothing[..., None] > 0), STATES),
        (lambda a: losses.cosine(a, OTHER_STATES, nothing > 0), STATES),
        (lambda a: losses.kl(a, OTHER_LOGITS, 0 * WEIGHTS), LOGITS),
        (lambda a: losses.dist(a, OTHER_LOGITS, 0 * WEIGHTS), LOGITS),
        (lambda a: losses.soft_cross_entropy(a, OTHER_LOGITS, 0 * WEIGHTS), LOGITS),
        (lambda a: losses.cross_entropy(a, LABELS, 0 * WEIGHTS), LOGITS),
    ):
        value, gradient = jax.value_and_grad(lambda a, loss=loss: loss(a).mean())(student)
        assert value == 0
        assert not gradient.any()


def test_totals_and_counts_of_parts_add_up_to_the_whole(within):
    whole = losses.mse(SCORES, OTHER_SCORES, PAIRS)
    parts = [
        losses.mse(SCORES[i : i + 1], OTHER_SCORES[i : i + 1], PAIRS[i : i + 1]) for i in range(B)
    ]
    within(sum(p.total for p in parts), whole.total)
    assert sum(p.count for p in parts) == whole.count == 25 + 4 + 1


def test_accuracy_counts_real_examples_only():
    logits = np.zeros((B, S, C), np.float32)
    logits[0, 0, 2] = logits[0, 1, 1] = logits[1, 0, 1] = 1  # right, wrong, right
    term = losses.accuracy(logits, LABELS, WEIGHTS)
    assert (float(term.total), float(term.count)) == (2, 3)
