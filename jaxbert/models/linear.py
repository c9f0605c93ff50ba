"""Dense layers and products whose operands may be bfloat16 while sums stay float32."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxbert.batch import ROWS

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def einsum(spec: str, x: Array, y: Array, dtype: Any, rounded: bool = False) -> Array:
    """``jnp.einsum`` of operands cast to ``dtype``, accumulated and returned in float32.

    Forward and backward both read ``dtype`` operands: the transpose that JAX would derive
    multiplies a float32 cotangent with a bfloat16 operand, which XLA runs in float32.

    Args:
      spec: a two-operand einsum without repeated or summed-out single letters.
      x: the left operand.
      y: the right operand.
      dtype: what both are cast to before the product.
      rounded: whether who reads the product casts it to ``dtype`` soon: an accelerator then writes
        it so, which is half as much. The sums are float32 all the same.
    """
    x, y = x.astype(dtype), y.astype(dtype)
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    plain = left[-1] in right and left[-1] not in out
    if dtype == jnp.float32 or (plain and not rounded):
        return _product(spec, x, y)
    return jax.lax.platform_dependent(
        x,
        y,
        cpu=functools.partial(_product if plain else _cpu_product, spec),
        default=functools.partial(_product, spec, written=dtype if rounded else jnp.float32),
    )


def _product(spec: str, x: Array, y: Array, written: Any = jnp.float32) -> Array:
    """A product, in float32, that is ``written`` in another dtype before."""
    return jnp.einsum(spec, x, y, preferred_element_type=written).astype(jnp.float32)


def _cpu_product(spec: str, x: Array, y: Array) -> Array:
    """A product that contracts over another axis of the left operand than its last.

    XLA's CPU backend has a fast bfloat16 product for the last axis alone. It would fold a
    transposition into the product, and leave that path again; one that is cut in two it does not.
    It is cut in even and odd rows: of both each device has as many, and sends none.

    Of batches of products there is none at all for some layouts: their rounded operands meet in
    float32.
    """
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    shared = set(left) & set(right)
    if shared & set(out):
        return _product(spec, x.astype(jnp.float32), y.astype(jnp.float32))
    (letter,) = shared
    last = left.replace(letter, "") + letter
    x = jnp.moveaxis(x, left.index(letter), -1)
    y = jnp.moveaxis(y, right.index(letter), 0)
    right = letter + right.replace(letter, "")
    even, odd = (_product(f"{last},{right}->{out}", x[..., i::2], y[i::2]) for i in (0, 1))
    return even + odd


def _einsum_forward(
    spec: str, x: Array, y: Array, dtype: Any, rounded: bool
) -> tuple[Array, tuple]:
    # The cast operands are kept, not the originals: half the memory, and no second cast.
    # The empty arrays carry the dtypes that the cotangents must come back in.
    kept = (x.astype(dtype), y.astype(dtype), jnp.zeros(0, x.dtype), jnp.zeros(0, y.dtype))
    return einsum(spec, x, y, dtype, rounded), kept


def _einsum_backward(
    spec: str, dtype: Any, rounded: bool, kept: tuple, g: Array
) -> tuple[Array, Array]:
    del rounded  # the product's alone
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
      rounded: as ``einsum`` has it, for an output that is soon an operand.
    """

    features: int
    dtype: Any = jnp.float32
    initializer_range: float = 0.02
    rounded: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [..., in] to float32 [..., features]."""
        init = nn.initializers.normal(self.initializer_range)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        flat = by_rows(x.reshape(-1, x.shape[-1]))
        out = by_rows(einsum("nd,df->nf", flat, kernel, self.dtype, self.rounded) + bias)
        return out.reshape(*x.shape[:-1], self.features)


def by_rows(x: Array) -> Array:
    """The same [N, F], of which each device along ``data`` and ``fsdp`` has its own rows.

    Left to itself XLA multiplies what a device holds of a matrix along ``fsdp``, and sums the
    products over devices: far more than the matrix, which is gathered for this. Does nothing
    outside of a step, and where no matrix is held in parts.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS, P.UNCONSTRAINED))


def hold_operands(params: Any, dtype: Any) -> Any:
    """Frozen parameters whose matrices are held as the products read them.

    The products are the same to the bit: they would cast these matrices at every step.

    Args:
      params: a tree of parameters; its leaves named ``kernel`` are only ever operands.
      dtype: of the products' operands.
    """

    def hold(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf.astype(dtype) if getattr(path[-1], "key", "") == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(hold, params)
