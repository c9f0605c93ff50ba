"""Every loss, as a masked (total, count) pair in float32; its mean is total / count.

Totals and counts add up over micro-batches and devices, so that the mean is that of the whole
batch however it was cut. Counts are of tokens, pairs of tokens, choices or examples: what lies
along widths, heads and classes is averaged inside the total.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Term(NamedTuple):
    """A sum and what it is divided by, both float32 scalars."""

    total: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, which nobody misses

    def mean(self) -> Array:
        """The quotient, and 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)


def _masked_sum(values: Array, weights: Array) -> Term:
    """Of values [..., n...] under weights that broadcast to them; copies are averaged.

    where() before the product: what is masked may be anything, and 0 * inf would be NaN.
    """
    weights = jnp.asarray(weights, jnp.float32)
    total = jnp.sum(jnp.where(weights > 0, values * weights, 0.0))
    return Term(total / (values.size // weights.size), jnp.sum(weights))


def mse(student: Array, teacher: Array, mask: Array) -> Term:
    """Mean squared error: of hidden states or of scores (Jiao et al. 2020, equations 7 and 8).

    Args:
      student: float32 [..., n...].
      teacher: of the same shape.
      mask: bool, of the same rank, 1 wide along what is averaged inside.
    """
    # where() on the difference: masked scores are near -1e9.
    return _masked_sum(jnp.square(jnp.where(mask, student - teacher, 0.0)), mask)


def cosine(student: Array, teacher: Array, mask: Array) -> Term:
    """1 - cos(student, teacher) (Sanh et al. 2019, section 2).

    Twice this is the squared distance of normalised vectors (Sun et al. 2019, section 3.3).

    Args:
      student: float32 [..., D].
      teacher: float32 [..., D].
      mask: bool [...].
    """
    a, b = (jnp.where(mask[..., None], x, 1.0) for x in (student, teacher))
    squares = jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1)
    return _masked_sum(1.0 - jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(squares + 1e-24), mask)


def padded_mse(student: Array, teacher: Array) -> Term:
    """The authors' code: the plain mean over all entries, padding included."""
    return mse(student, teacher, jnp.ones_like(student, bool))


def padded_score_mse(student: Array, teacher: Array) -> Term:
    """The authors' code: the plain mean over all of [B, H, T, T].

    Before it every entry <= -100, which is what the mask leaves, is set to 0 on each side.
    """
    student, teacher = (jnp.where(x <= -100.0, 0.0, x) for x in (student, teacher))
    # Heads are averaged inside the total, since teachers may have more of them or fewer.
    return mse(student, teacher, jnp.ones_like(student[:, :1], bool))


def soft_cross_entropy(
    student: Array,
    teacher: Array,
    weights: Array,
    temperature: float = 1.0,
    *,
    over_classes: bool = True,
) -> Term:
    """-softmax(teacher / t) . log_softmax(student / t), mean over choices AND classes.

    Jiao et al. 2020, equation 10, as their code computes it: no factor t^2.

    Args:
      student: float32 logits [..., C].
      teacher: float32 logits [..., C].
      weights: float32 [...], 1 for a choice, 0 for an empty slot.
      temperature: t.
      over_classes: False for the mean over choices alone.
    """
    target = jax.nn.softmax(teacher / temperature, axis=-1)
    crossed = -jnp.sum(target * jax.nn.log_softmax(student / temperature, axis=-1), axis=-1)
    return _masked_sum(crossed / (student.shape[-1] if over_classes else 1), weights)


def kl(student: Array, teacher: Array, weights: Array, temperature: float = 1.0) -> Term:
    """KL(softmax(teacher / t) || softmax(student / t)), mean over choices (Hinton et al. 2015).

    Of attention it is MiniLM's loss (Wang et al. 2020, section 3.1), where the choices are the
    queries of every head, and of relations MiniLMv2's (Wang et al. 2021, section 3.1).

    Args:
      student: float32 logits [..., C].
      teacher: float32 logits [..., C].
      weights: float32, broadcastable to [...]: 1 for a choice, 0 for none.
      temperature: t.
    """
    mine = jax.nn.log_softmax(student / temperature, axis=-1)
    theirs = jax.nn.log_softmax(teacher / temperature, axis=-1)
    return _masked_sum(jnp.sum(jnp.exp(theirs) * (theirs - mine), axis=-1), weights)


def standardize(logits: Array) -> Array:
    """Logits [..., C] with mean 0 and standard deviation 1 (Sun et al. 2024, section 4)."""
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-12)


def dist(student: Array, teacher: Array, weights: Array, temperature: float = 1.0) -> Term:
    """Correlation distance of probabilities, between classes and between choices.

    (1 - Pearson) of each choice's probabilities, mean over choices, plus that of each class's
    probabilities over the choices of the batch, mean over classes (Huang et al. 2022, section
    3.3, with beta = gamma = 1). Its second half is one number of a whole batch, so that the count
    is 1 and micro-batches do not add up to it. With two classes the first half is constant.

    Args:
      student: float32 logits [..., C].
      teacher: float32 logits [..., C].
      weights: float32 [...], 1 for a choice, 0 for none.
      temperature: t.
    """
    flat = weights.reshape(-1, 1)
    a, b = (
        jax.nn.softmax(x / temperature, axis=-1).reshape(-1, x.shape[-1])
        for x in (student, teacher)
    )  # [N, C]
    between = jnp.sum(flat[:, 0] * (1.0 - _pearson(a, b, jnp.ones_like(a), axis=1)))
    within = jnp.mean(1.0 - _pearson(a, b, jnp.broadcast_to(flat, a.shape), axis=0))
    count = jnp.sum(flat)
    some = (count > 0).astype(jnp.float32)
    return Term(between / jnp.maximum(count, 1.0) + within * some, some)


def _pearson(a: Array, b: Array, weights: Array, axis: int) -> Array:
    """The correlation of a and b along an axis, under weights of 0 and 1; 0 where none varies."""
    count = jnp.maximum(jnp.sum(weights, axis=axis, keepdims=True), 1.0)
    a, b = (weights * (x - jnp.sum(weights * x, axis=axis, keepdims=True) / count) for x in (a, b))
    squares = jnp.sum(a * a, axis=axis) * jnp.sum(b * b, axis=axis)
    return jnp.sum(a * b, axis=axis) * jax.lax.rsqrt(squares + 1e-16)


def cross_entropy(logits: Array, labels: Array, weights: Array) -> Term:
    """-log softmax(logits)[label], mean over choices.

    Args:
      logits: float32 [..., C].
      labels: int32 [...], from 0 to C - 1 (checked on the host: JAX clamps).
      weights: float32 [...], 1 for a choice, 0 for an empty slot.
    """
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[..., None], axis=-1)
    return _masked_sum(-picked[..., 0], weights)


def accuracy(logits: Array, labels: Array, weights: Array) -> Term:
    """The share of choices whose largest logit is the label's; arguments as ``cross_entropy``."""
    return _masked_sum((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32), weights)
