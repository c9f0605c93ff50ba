"""What lies beside a state: its leaves with their hashes, which are made while it is written."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from jaxbert import processes
from jaxbert.files import sealed
from jaxbert.training.hashing import ALGORITHM, leaf_hash, named_leaves
from jaxbert.training.sharding import on_host

RECORD = "metadata"  # a file of the item's folder
_CHUNK = 1 << 20  # elements that are looked at together, so that a cache holds them

Leaf = tuple[str, np.ndarray]


def host_leaves(state: Any) -> list[Leaf]:
    """(path, leaf) of a tree of arrays, sorted by path, as the host sees them.

    Raises:
      FloatingPointError: naming a leaf that is not finite.
    """
    leaves = list(named_leaves(on_host(state)))
    for name, leaf in leaves:
        flat = leaf.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            if not np.isfinite(flat[start : start + _CHUNK]).all():
                raise FloatingPointError(f"{name} is not finite")
    return leaves


def describe(leaves: Sequence[Leaf]) -> dict[str, dict[str, Any]]:
    """Path -> dtype, shape and hash, the last by the name of its algorithm."""
    return {
        name: {
            "dtype": leaf.dtype.name,
            "shape": list(leaf.shape),
            ALGORITHM: leaf_hash(name, leaf),
        }
        for name, leaf in leaves
    }


class _RecordHandler(ocp.AsyncCheckpointHandler):
    """Hashes leaves and writes the record in the commit that writes the leaves.

    A checkpoint gets its name once both are done.
    """

    async def async_save(self, directory: Path, args: Record) -> list[Future]:  # type: ignore[override]
        """Begins."""
        if not processes.first():
            return []
        return [CommitFutureAwaitingContractedSignals(self._write(directory, args), name="record")]

    async def _write(self, directory: Path, args: Record) -> None:
        content = {"leaves": describe(args.leaves), **args.content}
        (directory / RECORD).write_text(sealed(content))

    def save(self, directory: Path, args: Record) -> None:  # type: ignore[override]
        """Writes it at once."""
        asyncio.run(self._write(directory, args))

    def restore(self, directory: Path, args: Any = None) -> Any:  # type: ignore[override]
        """Not this way: see ``Stored``."""
        raise NotImplementedError


@ocp.args.register_with_handler(_RecordHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Record(ocp.args.CheckpointArgs):
    """What a record is made of.

    Attributes:
      leaves: of ``host_leaves``; nothing may change them before the checkpoint is finished.
      content: JSON kept beside their hashes.
    """

    leaves: Sequence[Leaf]
    content: Mapping[str, Any]
