"""Positional encodings: learned, sinusoidal and rotary."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class LearnedPositions(nn.Module):
    """A table of position vectors (BERT).

    Attributes:
      length: rows of the table.
      features: the width D.
      initializer_range: standard deviation of the initial values.
    """

    length: int
    features: int
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, positions: Array) -> Array:
        """Looks up int32 positions [B, T]: float32 [B, T, D]."""
        init = nn.initializers.normal(self.initializer_range)
        table = self.param("embedding", init, (self.length, self.features), jnp.float32)
        return table[positions]


def sinusoidal_table(length: int, features: int) -> np.ndarray:
    """The fixed table [length, features] of Vaswani et al. 2017, section 3.5.

    PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(p / 10000^(2i/D)), computed in float64.
    """
    rates = 10000.0 ** (-np.arange(0, features, 2) / features)  # [ceil(D/2)]
    angles = np.arange(length)[:, None] * rates[None, :]
    table = np.zeros((length, features))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : features // 2])
    return table.astype(np.float32)


def rotate(x: Array, positions: Array, base: float = 10000.0) -> Array:
    """Rotary position embedding (Su et al. 2021, equation 34, halves instead of pairs).

    Args:
      x: float32 [B, T, H, K], K even.
      positions: int32 [B, T].
      base: the slowest wavelength is 2 pi base.
    """
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)  # [K/2]
    angles = positions[:, :, None, None].astype(jnp.float32) * rates  # [B, T, 1, K/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
