"""States of single pieces to one state for each packed example."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def mean_states(hidden: Array, segments: Array, slots: int) -> Array:
    """The mean state of each packed example's tokens, [CLS] and [SEP] among them.

    The embedding of a text by Reimers and Gurevych 2019 (Sentence-BERT, section 3), before it is
    normalised. The sums are of full float32 products, also where the device multiplies in less.

    Args:
      hidden: float [B, T, D].
      segments: int32 [B, T], 0 at padding, k at the row's k-th example (`Batch.segments`).
      slots: S, examples that fit in a row at most.

    Returns:
      float32 [B, S, D], 0 for an empty slot.
    """
    numbers = jnp.arange(1, slots + 1, dtype=segments.dtype)
    member = (segments[:, None, :] == numbers[:, None]).astype(jnp.float32)  # [B, S, T]
    totals = jnp.einsum(
        "bst,btd->bsd", member, hidden.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    counts = member.sum(axis=2, keepdims=True)  # [B, S, 1]
    return totals / jnp.maximum(counts, 1.0)
