"""Multi-head attention that returns its scores before the softmax, where somebody reads them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbert.batch import MASKED
from jaxbert.models.dropout import Dropout
from jaxbert.models.linear import Linear, einsum
from jaxbert.models.positional import rotate

Array = jax.Array


class AttentionOutput(NamedTuple):
    """What attention computes, all float32.

    Attributes:
      output: [B, T, D], after the output projection.
      scores: [B, H, T, T], scaled and masked, before the softmax; None where they were not asked
        for and need not be written.
      queries, keys, values: [B, T, H, D/H], queries and keys before any rotation.
    """

    output: Array
    scores: Array | None
    queries: Array
    keys: Array
    values: Array


def segment_bias(segments: Array) -> Array:
    """The additive mask [B, 1, T, T] that keeps each packed example to itself.

    Args:
      segments: int32 [B, T], 0 at padding.
    """
    same = segments[:, :, None] == segments[:, None, :]
    real = (segments > 0)[:, None, :]
    return jnp.where(same & real, 0.0, MASKED)[:, None].astype(jnp.float32)


def key_bias(segments: Array) -> Array:
    """The original BERT's additive mask [B, 1, 1, T]: -10000 at padded keys, queries unmasked."""
    return jnp.where(segments > 0, 0.0, -10000.0)[:, None, None, :].astype(jnp.float32)


def fuses(queries: Array, keys: Array, dtype: Any) -> bool:
    """Whether cuDNN has an attention of [B, Q, H, K] to [B, T, H, K] that writes no scores.

    It multiplies bfloat16 alone, on CUDA devices from compute capability 8.0 on. It is taken on a
    single one: how it would be spread over a mesh has not been tried.
    """
    head_size = queries.shape[-1]
    odd = queries.shape[1] % 2 or keys.shape[1] % 2  # of such it has no gradient
    if dtype != jnp.bfloat16 or head_size % 8 or head_size > 128 or odd:
        return False
    first, *others = jax.devices()
    cuda = "cuda" in first.client.platform_version
    return cuda and not others and float(first.compute_capability) >= 8.0


def fused(queries: Array, keys: Array, values: Array, bias: Array) -> Array:
    """What attention mixes, float32 [B, Q, H, K], by cuDNN's attention (Dao et al. 2022).

    Args:
      queries: [B, Q, H, K].
      keys, values: [B, T, H, K].
      bias: [B, 1, Q or 1, T], added to the scores.
    """
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], queries.shape[1], keys.shape[1]))
    rounded = (x.astype(jnp.bfloat16) for x in (queries, keys, values, bias))
    mixed = jax.nn.dot_product_attention(*rounded, implementation="cudnn")
    return mixed.astype(jnp.float32)


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention (Vaswani et al. 2017, section 3.2).

    Attributes:
      num_heads: H, which divides the width D.
      dropout: rate applied to the attention probabilities.
      rotary: whether queries and keys are rotated by position.
      dtype: dtype of the products' operands.
      initializer_range: standard deviation of the initial weights.
    """

    num_heads: int
    dropout: float = 0.0
    rotary: bool = False
    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(
        self,
        x: Array,
        bias: Array,
        positions: Array,
        *,
        deterministic: bool = True,
        places: Array | None = None,
        scored: bool = True,
    ) -> AttentionOutput:
        """Attends within x.

        Args:
          x: float32 [B, T, D].
          bias: float32, broadcastable to [B, H, T, T], added to the scores.
          positions: int32 [B, T], read when ``rotary``.
          deterministic: True turns dropout off; otherwise an rng named ``dropout`` is needed.
          places: int32 [B, Q], the positions that attend; None = all, so that Q = T.
          scored: whether the scores are read.

        Returns:
          What ``AttentionOutput`` says, with Q in the place of T where it counts queries.
        """
        width = x.shape[-1]
        head_size = width // self.num_heads

        def project(name: str, value: Array, rounded: bool = True) -> Array:
            return Linear(width, self.dtype, self.initializer_range, rounded, name=name)(value)

        def split(value: Array) -> Array:
            return value.reshape(*value.shape[:2], self.num_heads, head_size)  # [B, T, H, K]

        asking, asked_at = x, positions
        if places is not None:
            asking = jnp.take_along_axis(x, places[:, :, None], axis=1)  # [B, Q, D]
            asked_at = jnp.take_along_axis(positions, places, axis=1)
            if bias.shape[2] > 1:
                bias = jnp.take_along_axis(bias, places[:, None, :, None], axis=2)
        queries = split(project("query", asking))
        keys, values = (split(project(name, x)) for name in ("key", "value"))
        q, k = queries, keys
        if self.rotary:
            q, k = rotate(q, asked_at), rotate(k, positions)
        drop = functools.partial(Dropout(self.dropout), deterministic=deterministic)

        def score(q: Array, k: Array, bias: Array) -> Array:
            scores = einsum("bqhk,bthk->bhqt", q, k, self.dtype)
            return scores / jnp.sqrt(jnp.float32(head_size)) + bias  # [B, H, Q, T]

        def mix(scores: Array, values: Array) -> Array:
            probabilities = drop(nn.softmax(scores, axis=-1))
            # Heads before positions: XLA's CPU backend makes one kernel of scores, softmax and this
            # product, which takes four times as long or more where it has to turn the values round.
            values = jnp.moveaxis(values, 1, 2)
            mixed = einsum("bhqt,bhtk->bhqk", probabilities, values, self.dtype, True)
            return jnp.moveaxis(mixed, 1, 2)

        kept = deterministic or not self.dropout
        if not scored and kept and fuses(q, k, self.dtype):
            scores = None
            mixed = jax.lax.platform_dependent(
                *(q, k, values, bias),
                cuda=fused,
                default=lambda q, k, values, bias: mix(score(q, k, bias), values),
            )
        else:
            scores = score(q, k, bias)
            mixed = mix(scores, values)
        output = project("output", mixed.reshape(asking.shape), rounded=False)
        return AttentionOutput(output, scores, queries, keys, values)
