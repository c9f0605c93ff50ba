"""Dense layers and products whose operands may be bfloat16 while sums stay float32."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(spec: str, x: Array, y: Array, dtype: Any) -> Array:
    """``jnp.einsum`` of operands cast to ``dtype``, accumulated and returned in float32.

    Forward and backward both read ``dtype`` operands: the transpose that JAX would derive
    multiplies a float32 cotangent with a bfloat16 operand, which XLA runs in float32.

    Args:
      spec: a two-operand einsum without repeated or summed-out single letters.
      x: the left operand.
      y: the right operand.
      dtype: what both are cast to before the product.
    """
    x, y = x.astype(dtype), y.astype(dtype)

    def product(x: Array, y: Array) -> Array:
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)

    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    if left[-1] in right and left[-1] not in out:
        return product(x, y)
    # XLA's CPU backend has no fast bfloat16 product that contracts over any other axis of the
    # left operand, and none at all for some layouts: there the rounded operands meet in float32.
    return jax.lax.platform_dependent(
        x,
        y,
        cpu=lambda x, y: product(x.astype(jnp.float32), y.astype(jnp.float32)),
        default=product,
    )


def _einsum_forward(spec: str, x: Array, y: Array, dtype: Any) -> tuple[Array, tuple]:
    # The cast operands are kept, not the originals: half the memory, and no second cast.
    # The empty arrays carry the dtypes that the cotangents must come back in.
    kept = (x.astype(dtype), y.astype(dtype), jnp.zeros(0, x.dtype), jnp.zeros(0, y.dtype))
    return einsum(spec, x, y, dtype), kept


def _einsum_backward(spec: str, dtype: Any, kept: tuple, g: Array) -> tuple[Array, Array]:
    x, y, x_like, y_like = kept
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    dx = einsum(f"{out},{right}->{left}", g, y, dtype)
    dy = einsum(f"{left},{out}->{right}", x, g, dtype)
    return dx.astype(x_like.dtype), dy.astype(y_like.dtype)


einsum.defvjp(_einsum_forward, _einsum_backward)


class Linear(nn.Module):
    """y = x W + b, with W [in, out] and b [out] stored in float32.

    Attributes:
      features: the output width.
      dtype: dtype of the product's operands; the sum and the output are float32.
      initializer_range: standard deviation of W's initial values; b starts at zero.
    """

    features: int
    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [..., in] to float32 [..., features]."""
        init = nn.initializers.normal(self.initializer_range)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        flat = x.reshape(-1, x.shape[-1])
        out = einsum("nd,df->nf", flat, kernel, self.dtype) + bias
        return out.reshape(*x.shape[:-1], self.features)
