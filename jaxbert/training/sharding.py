"""The mesh, and the one table that says where parameters live on it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbert.batch import ROWS
from jaxbert.errors import UserError
from jaxbert.training.optimizer import path_name

AXES = ("data", "fsdp", "model")

# Parameter path -> spec, first match wins; everything else is replicated. Layers L lead. What
# ``model`` splits is computed in parts; what ``fsdp`` splits is held in parts, and gathered where
# it is read (Rajbhandari et al. 2020, "ZeRO", stage 3).
RULES: tuple[tuple[str, P], ...] = (
    (r"encoder/layers/attention/(query|key|value)/kernel$", P(None, "fsdp", "model")),  # [L, D, D]
    (r"encoder/layers/attention/(query|key|value)/(bias|scale)$", P(None, "model")),  # [L, D]
    (r"encoder/layers/attention/output/kernel$", P(None, "model", "fsdp")),  # [L, D, D]
    (r"encoder/layers/intermediate/kernel$", P(None, "fsdp", "model")),  # [L, D, F]
    (r"encoder/layers/intermediate/(bias|scale)$", P(None, "model")),  # [L, F]
    (r"encoder/layers/output/kernel$", P(None, "model", "fsdp")),  # [L, F, D]
    (r"embeddings/word$", P("model", "fsdp")),  # [V, D]
)


def make_mesh(data: int = -1, model: int = 1, fsdp: int = 1) -> Mesh:
    """A mesh of all devices with axes ``data``, ``fsdp`` and ``model``.

    Args:
      data: devices along the rows of a batch; -1 = as many as there are.
      model: devices along the widths of the parameters.
      fsdp: devices along the rows, too, of which each holds a part of parameters and optimiser.

    Raises:
      UserError: if the devices cannot be laid out so.
    """
    count, rest = jax.device_count(), model * fsdp
    if data == -1 and rest > 0:
        data = max(count // rest, 1)
    if (
        min(data, model, fsdp) < 1
        or data * rest > count
        or (data * rest < count and jax.process_count() > 1)
    ):
        raise UserError(
            f"mesh.data x mesh.fsdp x mesh.model = {data} x {fsdp} x {model} does not fit "
            f"{count} devices",
            "config section mesh",
            f"give numbers whose product is {count}, or mesh.data=-1",
        )
    return lay_out(jax.devices()[: data * rest], data, fsdp, model)


def lay_out(devices: Sequence[Any], data: int, fsdp: int = 1, model: int = 1) -> Mesh:
    """A mesh of some devices, as many as the product of the axes."""
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((data, fsdp, model), AXES, axis_types=kinds, devices=devices)


def row_multiple(mesh: Mesh) -> int:
    """What the rows of a batch must be a multiple of."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def rows(mesh: Mesh) -> NamedSharding:
    """How batches are laid out: rows over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, P(ROWS))


@dataclasses.dataclass(frozen=True)
class HeldRows:
    """Which rows of a batch the devices of this process hold.

    Attributes:
      rows: int64 [H], in increasing order.
      count: B, rows of the whole batch.
    """

    rows: np.ndarray
    count: int

    @classmethod
    def of(cls, layout: NamedSharding, count: int) -> HeldRows:
        """Those of a batch of so many rows."""
        places = layout.addressable_devices_indices_map((count,)).values()
        return cls(np.unique([np.arange(count)[place] for place in places]), count)

    @classmethod
    def whole(cls, count: int) -> HeldRows:
        """All rows of such a batch."""
        return cls(np.arange(count), count)

    def within(self, place: slice) -> slice:
        """Where rows of the whole batch, one after the other, stand among those that are held."""
        first, last, _ = place.indices(self.count)
        begin = int(np.searchsorted(self.rows, first))
        return slice(begin, begin + last - first)


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy a device."""
    return NamedSharding(mesh, P())


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a tree of arrays or shapes whose paths end in parameter paths.

    Optimiser states hold trees shaped like the parameters, so the same table covers them. A
    dimension that the mesh does not divide is replicated.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in RULES:
            if re.search(pattern, name) and len(spec) == len(leaf.shape):
                return NamedSharding(mesh, _divisible(spec, leaf.shape, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def held_bytes(mesh: Mesh, tree: Any) -> int:
    """Bytes of a tree of arrays or shapes that one device of a mesh holds."""

    def held(leaf: Any, place: NamedSharding) -> int:
        return math.prod(place.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(held, tree, tree_shardings(mesh, tree))))


def _divisible(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    axes = zip(spec, shape, strict=True)
    return P(*(a if a is None or size % mesh.shape[a] == 0 else None for a, size in axes))


def on_host(tree: Any) -> Any:
    """A tree of arrays as NumPy arrays; every process gets the whole of each.

    Views where host and device share memory: jax gives no buffer away that one looks at.
    """
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)

    def whole(leaf: jax.Array) -> np.ndarray:
        copied = jax.jit(_same, out_shardings=replicated(leaf.sharding.mesh))(leaf)  # type: ignore[attr-defined]
        return jax.device_get(copied)

    # One by one: a device has room for a leaf, and may have none for all that is held in parts.
    return jax.tree.map(whole, tree)


def _same(leaf: jax.Array) -> jax.Array:
    return leaf


def own_mesh() -> Mesh:
    """A mesh of the devices of this process alone, with all of them along ``data``."""
    return lay_out(jax.local_devices(), jax.local_device_count())
