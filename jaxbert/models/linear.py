"""Dense layers and products whose operands may be bfloat16 while sums stay float32."""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
    assert jnp.int8 not in (x.dtype, y.dtype)  # has a scale, which is a Linear's to know
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

    A frozen W may be held as int8 (``hold_operands``), and is multiplied so.

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
        if kernel.dtype == jnp.int8:
            scale = self.param("scale", nn.initializers.ones, (self.features,), jnp.float32)
            out = int8_product(flat, kernel, scale)
        else:
            out = einsum("nd,df->nf", flat, kernel, self.dtype, self.rounded)
        return by_rows(out + bias).reshape(*x.shape[:-1], self.features)


def to_int8(x: Array, axis: int) -> tuple[Array, Array]:
    """Rounds x, float32, to multiples of a scale: the largest magnitude along ``axis`` over 127.

    What NumPy holds it rounds, so that a large model takes no device's memory for it.

    Returns:
      The multiples, int8 [..., in, out], and the scales, float32, of length 1 along ``axis``.
    """
    xp = x.__array_namespace__()
    largest = xp.max(xp.abs(x), axis=axis, keepdims=True)
    scale = xp.where(largest == 0, xp.float32(1.0), largest) / xp.float32(127.0)
    return xp.round(x / scale).astype(xp.int8), scale


def int8_product(x: Array, kernel: Array, scale: Array) -> Array:
    """A product of int8 operands, whose sums are exact (Dettmers et al. 2022, section 2.1).

    Args:
      x: float32 [N, D]; each row is rounded to multiples of a scale of its own.
      kernel: int8 [D, F].
      scale: float32 [F], of the kernel's columns.

    Returns:
      float32 [N, F].
    """
    rows, row_scale = to_int8(x, -1)
    sums = jax.lax.dot(rows, kernel, preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32) * row_scale * scale


def by_rows(x: Array) -> Array:
    """The same [N, F], of which each device along ``data`` and ``fsdp`` has its own rows.

    Left to itself XLA multiplies what a device holds of a matrix along ``fsdp``, and sums the
    products over devices: far more than the matrix, which is gathered for this. Does nothing
    outside of a step, and where no matrix is held in parts.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS, P.UNCONSTRAINED))


def hold_operands(params: Any, dtype: str) -> Any:
    """Frozen parameters whose matrices are held as the products read them.

    In ``float32`` and ``bfloat16`` the products are the same to the bit: they would cast these
    matrices at every step. In ``int8`` they are others: see ``Linear``.

    Args:
      params: nested mappings of parameters; those named ``kernel``, [..., in, out], are only ever
        operands of a ``Linear``.
      dtype: ``float32``, ``bfloat16`` or ``int8``, which adds a ``scale`` [..., out] beside each.
    """
    held: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            held[name] = hold_operands(value, dtype)
        elif name != "kernel":
            held[name] = value
        elif dtype == "int8":
            held["kernel"], scale = to_int8(value, -2)
            held["scale"] = scale[..., 0, :]
        else:
            held["kernel"] = value.astype(dtype)
    return held
