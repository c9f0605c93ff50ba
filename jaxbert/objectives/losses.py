"""Every loss, as a masked (total, count) pair in float32; its mean is total / count.

Totals and counts add up over micro-batches and devices, so that the mean is that of the whole
batch however it was cut.
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


def _squared_error(student: Array, teacher: Array, mask: Array) -> Term:
    # where() on the difference, not a product with the mask: masked scores are near -1e9, and
    # 0 * inf would be NaN in the gradient.
    difference = jnp.where(mask, student - teacher, 0.0)
    copies = difference.size // mask.size
    return Term(jnp.sum(jnp.square(difference)), jnp.sum(mask, dtype=jnp.float32) * copies)


def hidden_mse(student: Array, teacher: Array, segments: Array) -> Term:
    """Mean squared error of hidden states over real tokens (Jiao et al. 2020, equation 8).

    Args:
      student: float32 [B, T, D], already projected.
      teacher: float32 [B, T, D].
      segments: int32 [B, T], 0 at padding.
    """
    return _squared_error(student, teacher, (segments > 0)[:, :, None])


def score_mse(student: Array, teacher: Array, segments: Array) -> Term:
    """Mean squared error of attention scores (Jiao et al. 2020, equation 7).

    The mean is over heads and over the pairs of real tokens of one example.

    Args:
      student: float32 [B, H, T, T], scaled, before the softmax.
      teacher: float32 [B, H, T, T].
      segments: int32 [B, T], 0 at padding.
    """
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    return _squared_error(student, teacher, same[:, None])


def padded_hidden_mse(student: Array, teacher: Array) -> Term:
    """The authors' code: the plain mean over all of [B, T, D], padding included."""
    return _squared_error(student, teacher, jnp.ones_like(student, bool))


def padded_score_mse(student: Array, teacher: Array) -> Term:
    """The authors' code: the plain mean over all of [B, H, T, T].

    Before it every entry <= -100, which is what the mask leaves, is set to 0 on each side.
    """
    student, teacher = (jnp.where(x <= -100.0, 0.0, x) for x in (student, teacher))
    return padded_hidden_mse(student, teacher)


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
    total = jnp.sum(jnp.where(weights > 0, crossed * weights, 0.0))
    return Term(total, jnp.sum(weights) * (student.shape[-1] if over_classes else 1))


def cross_entropy(logits: Array, labels: Array, weights: Array) -> Term:
    """-log softmax(logits)[label], mean over choices.

    Args:
      logits: float32 [..., C].
      labels: int32 [...], from 0 to C - 1 (checked on the host: JAX clamps).
      weights: float32 [...], 1 for a choice, 0 for an empty slot.
    """
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[..., None], axis=-1)
    return Term(jnp.sum(jnp.where(weights > 0, -picked[..., 0] * weights, 0.0)), jnp.sum(weights))


def accuracy(logits: Array, labels: Array, weights: Array) -> Term:
    """The share of choices whose largest logit is the label's; arguments as ``cross_entropy``."""
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return Term(jnp.sum(right * weights), jnp.sum(weights))


def squared_error(outputs: Array, targets: Array, weights: Array) -> Term:
    """(output - target)^2, mean over examples.

    Args:
      outputs: float32 [B, S].
      targets: float32 [B, S].
      weights: float32 [B, S], 1 for an example, 0 for an empty slot.
    """
    errors = jnp.square(jnp.where(weights > 0, outputs - targets, 0.0))
    return Term(jnp.sum(errors * weights), jnp.sum(weights))
