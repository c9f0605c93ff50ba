"""Dropout whose numbers are those of the whole batch, wherever its rows lie."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class Dropout(nn.Module):
    """``nn.Dropout``, with the same numbers for a batch as for its parts under ``jax.vmap``.

    There each part gets its rows of one draw for all of them; ``nn.Dropout`` would draw once, and
    give all parts the same.

    Attributes:
      rate: the share of x that becomes 0; the rest is scaled by 1 / (1 - rate).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Maps x [B, ...] to the same shape; needs an rng named ``dropout`` to do anything."""
        if deterministic or not self.rate:
            return x
        kept = 1.0 - self.rate
        mask = _draw(self.make_rng("dropout"), kept, jax.lax.stop_gradient(x))
        return jax.lax.select(mask, x / kept, jnp.zeros_like(x))


def _draw(key: Array, share: float, like: Array) -> Array:
    """Bools of a shape [B, ...], each true with that probability."""

    @jax.custom_batching.custom_vmap
    def draw(key: Array, like: Array) -> Array:
        return jax.random.bernoulli(key, share, like.shape)

    @draw.def_vmap
    def _(size: int, mapped: Any, key: Array, like: Array) -> tuple[Array, bool]:
        """Of parts [P, B, ...]: the draw for their P * B rows."""
        assert tuple(mapped) == (False, True), "parts of one batch have one key"
        return draw(key, like.reshape(-1, *like.shape[2:])).reshape(like.shape), True

    return draw(key, like)
