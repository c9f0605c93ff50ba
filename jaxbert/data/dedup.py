"""Exact duplicates among any number of documents, in flat memory.

The SHA-256 keys of the documents are dealt out to partitions on disk by their first bytes, so that
equal ones meet in one partition; each partition is sorted in memory on its own.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_KEYS_A_PARTITION = 1 << 20  # 40 MB
_MOST_PARTITIONS = 256  # files open at once
_ENTRY = np.dtype([("key", ">u8", 4), ("document", "<i8")])


def find_duplicates(
    keys: Sequence[Path], out: Path, *, keys_a_partition: int = _KEYS_A_PARTITION
) -> None:
    """Marks the documents whose key an earlier document has.

    Args:
      keys: files of uint8 [documents, 32] (npy), in the order of the documents; zeros are no key.
      out: where bool [documents of all] (npy) is written, in one piece.
      keys_a_partition: how many are sorted at once; more where there are above 256 times as many.
    """
    total = sum(len(np.load(path, mmap_mode="r")) for path in keys)
    number = min(_MOST_PARTITIONS, max(1, -(-total // keys_a_partition)))
    folder, partial = out.with_suffix(".partitions"), out.with_suffix(".partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    folder.mkdir()
    paths = [folder / f"{index:03d}" for index in range(number)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        first = 0
        for path in keys:
            entries = _entries(np.load(path), first)
            first += len(entries)
            entries = entries[entries["key"].any(axis=1)]
            where = (entries["key"][:, 0] % np.uint64(number)).astype(np.int64)
            for index in np.unique(where):
                files[index].write(entries[where == index].tobytes())
    marks = np.lib.format.open_memmap(partial, mode="w+", dtype=bool, shape=(total,))
    for path in paths:
        entries = np.fromfile(path, _ENTRY)
        order = np.lexsort((entries["document"], *entries["key"].T))
        ordered = entries[order]
        same = (ordered["key"][1:] == ordered["key"][:-1]).all(axis=1)
        marks[ordered["document"][1:][same]] = True
        path.unlink()
    marks.flush()
    del marks
    partial.replace(out)
    folder.rmdir()


def _entries(keys: np.ndarray, first: int) -> np.ndarray:
    entries = np.empty(len(keys), _ENTRY)
    entries["key"] = keys.view(">u8").reshape(len(keys), 4)
    entries["document"] = np.arange(first, first + len(keys))
    return entries
