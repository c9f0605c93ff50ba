"""What a teacher has said of every example: kept on disk, and given to batches again.

What it says does not depend on the row that an example stands in, so that it is stored by example:
one item for each example, marked piece, piece or pair of pieces. Files are mapped into memory,
so that a batch reads its own examples and no more, in any process.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbert.batch import MASKED, Batch
from jaxbert.data.examples import Examples, ExampleSource, bounds
from jaxbert.data.packing import PackedBatches
from jaxbert.errors import UserError
from jaxbert.files import SEAL, check_seal, seal, size_text

RECORD = "record.json"
PREFIX = "taught_"  # of the folders in the cache of a run, before the phase


class Output(NamedTuple):
    """How one of a teacher's outputs is kept.

    Attributes:
      items: what has an item: ``examples``, ``marks``, ``pieces`` or ``pairs`` (of pieces).
      tail: the shape of an item, which is float32. A block of pairs, of an example of n pieces and
        H heads, lies as [H, n, n].
    """

    items: str
    tail: tuple[int, ...]

    @classmethod
    def of(cls, key: str, shape: tuple[int, ...], head: str) -> Output:
        """That of a key of ``Batch.taught`` with the shape it has there, of a kind of head."""
        if key.startswith("scores/"):
            return cls("pairs", shape[1:2])
        items = "examples" if key in ("logits", "pooled") else "pieces"
        if key == "logits":
            items = {"tagging": "marks", "spans": "pieces"}.get(head, items)
        return cls(items, shape[2:])


def item_sizes(examples: ExampleSource) -> dict[str, np.ndarray]:
    """Items of each example, int64 [N], by what they are items of."""
    lengths = examples.lengths.astype(np.int64)
    sizes = {"examples": np.ones_like(lengths), "pieces": lengths, "pairs": lengths**2}
    if isinstance(examples, Examples) and examples.marks is not None:
        sizes["marks"] = np.diff(examples.marks.offsets)
    return sizes


def count_bytes(outputs: Mapping[str, Output], sizes: Mapping[str, np.ndarray]) -> int:
    """What the files of some outputs take."""
    kinds = {output.items for output in outputs.values()}
    index = sum(8 * (len(sizes[items]) + 1) for items in kinds)
    return index + sum(4 * int(sizes[o.items].sum()) * math.prod(o.tail) for o in outputs.values())


class TaughtWriter:
    """Writes what a teacher says, batch by batch; it is there once all of it is, or not at all.

    Args:
      folder: where to; whatever is there is replaced in the end.
      outputs: what there is of each key.
      sizes: as ``item_sizes`` has them, of the examples that learn from it.

    Raises:
      UserError: the disk has less room than that takes.
    """

    def __init__(
        self, folder: Path, outputs: Mapping[str, Output], sizes: Mapping[str, np.ndarray]
    ) -> None:
        self._folder, self._outputs = folder, dict(outputs)
        self._partial = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(self._partial, ignore_errors=True)  # of a run that was killed
        self._partial.mkdir(parents=True)
        need, free = count_bytes(outputs, sizes), shutil.disk_usage(self._partial).free
        if need > free:
            shutil.rmtree(self._partial)
            what = f"what the teacher says takes {size_text(need)}, and {size_text(free)} are free"
            fix = "make room, or ask it live with the phase's teacher_cache=none"
            raise UserError(what, str(folder), fix)
        self._bounds, self._arrays = {}, {}
        for items in {output.items for output in outputs.values()}:
            self._bounds[items] = bounds(sizes[items])
            np.save(self._partial / f"{items}.npy", self._bounds[items])
        for key, output in outputs.items():
            shape = (int(self._bounds[output.items][-1]), *output.tail)
            path = self._partial / _file(key)
            self._arrays[key] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            if hasattr(os, "posix_fallocate"):  # a full disk is said now, and kills no one later
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def put(self, batch: Batch, ids: np.ndarray, taught: Mapping[str, Any]) -> None:
        """Writes what was said of the examples int64 [B, S] (-1 for none) of a batch.

        Raises:
          UserError: something is not finite.
        """
        for key, output in self._outputs.items():
            said, into = np.asarray(taught[key]), self._arrays[key]
            for first, last, place in _places(output.items, self._bounds, batch, ids):
                block = said[place]
                if not np.isfinite(block).all():
                    what, fix = f"the teacher's {key} are not finite", "give another teacher"
                    raise UserError(what, str(self._folder), fix)
                into[first:last] = block.reshape(last - first, *output.tail)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Gives the folder its name, with a record that says what it holds."""
        for array in self._arrays.values():
            array.flush()
        text = json.dumps({**record, "outputs": self._outputs}, indent=2) + "\n"
        (self._partial / RECORD).write_text(text, encoding="utf-8")
        seal(self._partial, [path.name for path in self._partial.iterdir()])
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)


class Taught:
    """What a teacher has said of N examples, mapped into memory.

    Args:
      folder: as a ``TaughtWriter`` left it.

    Attributes:
      record: what the folder says of itself.
      outputs: what there is of each key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        listed = self.record["outputs"].items()
        self.outputs = {key: Output(items, tuple(tail)) for key, (items, tail) in listed}
        kinds = {output.items for output in self.outputs.values()}
        self._bounds = {items: _map(folder / f"{items}.npy") for items in kinds}
        self._arrays = {key: _map(folder / _file(key)) for key in self.outputs}

    def __reduce__(self) -> tuple[Any, ...]:
        return Taught, (self.folder,)

    @property
    def bytes(self) -> int:
        """What its files take."""
        sizes = {items: np.diff(bound) for items, bound in self._bounds.items()}
        return count_bytes(self.outputs, sizes)

    def of(self, batch: Batch, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What ``Batch.taught`` is to hold.

        Args:
          batch: packed rows.
          ids: int64 [B, S], the examples that its slots hold, -1 for none.

        Returns:
          float32 arrays, 0 where there is no example, and of scores what masked ones are.
        """
        found = {}
        for key, output in self.outputs.items():
            shape, fill = _shape(output, batch), MASKED if output.items == "pairs" else 0.0
            found[key] = out = np.full(shape, fill, np.float32)
            for first, last, place in _places(output.items, self._bounds, batch, ids):
                out[place] = self._arrays[key][first:last].reshape(out[place].shape)
        return found


class TaughtBatches:
    """Packed batches with what a teacher has said of their examples.

    Args:
      batches: of the examples that it was asked about, packed in whatever way.
      taught: what it said.
    """

    def __init__(self, batches: PackedBatches, taught: Taught) -> None:
        self._batches, self._taught = batches, taught

    def __getitem__(self, step: int) -> Batch:
        """Returns batch `step`; only ``taught`` is added to it."""
        return self.take(step, np.arange(self._batches.rows))

    def take(self, step: int, rows: np.ndarray) -> Batch:
        """Returns the rows int64 [R] of batch `step`, and reads what was said of these alone."""
        batch = self._batches.take(step, rows)
        said = self._taught.of(batch, self._batches.example_ids(step, rows))
        return dataclasses.replace(batch, taught=said)


def open_taught(
    folder: Path, outputs: Mapping[str, Output], identity: Mapping[str, Any]
) -> Taught | None:
    """Opens what lies in a folder; None unless it is whole, and these outputs of this identity."""
    try:
        check_taught(folder)
        taught = Taught(folder)
    except (UserError, OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    same = all(taught.record.get(key) == value for key, value in identity.items())
    return taught if same and taught.outputs == outputs else None


def check_taught(folder: Path) -> None:
    """Checks that what lies in a folder is what was written.

    Raises:
      UserError: naming the first file that is not.
    """
    again = "remove the folder and run the same command again, which asks the teacher anew"
    if not (folder / SEAL).is_file():
        raise UserError("its hashes are gone", str(folder / SEAL), again)
    check_seal(folder, again)


def _places(
    items: str, bound: Mapping[str, np.ndarray], batch: Batch, ids: np.ndarray
) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Yields for each example of a batch its items, first and end, and where they stand in it."""
    rows, slots = np.nonzero(ids >= 0)
    starts = batch.starts
    if items == "examples":
        starts = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    elif items == "marks":
        starts = _first_marks(batch, ids.shape[1])
    chosen, offsets = ids[rows, slots], bound[items]
    where = (rows, starts[rows, slots], offsets[chosen], offsets[chosen + 1])
    for row, start, first, last in zip(*(x.tolist() for x in where), strict=True):
        if items == "pairs":
            part = slice(start, start + math.isqrt(last - first))
            yield first, last, (row, slice(None), part, part)
        else:
            yield first, last, (row, slice(start, start + last - first))


def _first_marks(batch: Batch, slots: int) -> np.ndarray:
    """int64 [B, S], where in ``places`` the marks of each slot begin: they lie slot after slot."""
    slot = np.take_along_axis(batch.segments, batch.places, axis=1)
    slot = np.where(batch.targets >= 0, slot, 0)  # [B, M]
    counts = (slot[:, :, None] == np.arange(1, slots + 1)).sum(axis=1)  # [B, S]
    return np.cumsum(counts, axis=1) - counts


def _shape(output: Output, batch: Batch) -> tuple[int, ...]:
    rows, length = batch.tokens.shape
    if output.items == "pairs":
        return (rows, *output.tail, length, length)
    along = {"examples": batch.starts, "marks": batch.places, "pieces": batch.tokens}
    return (rows, along[output.items].shape[1], *output.tail)


def _file(key: str) -> str:
    return key.replace("/", "-") + ".values.npy"


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r").view(np.ndarray)
