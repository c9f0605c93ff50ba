"""The results of a sweep: a file with a line of JSON for each finished cell, and one writer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxbert.errors import UserError
from jaxbert.sweep.plan import Cell

Record = dict[str, Any]
_ID = {"sweep": str, "cell": str, "seed": int, "key": str}


class Results:
    """What is known of the cells that are finished.

    Args:
      records: the lines of a file, in its order.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = {(r["cell"], r["seed"], r["key"]): r for r in records}

    def find(self, cell: Cell) -> Record | None:
        """The record of a cell with its seed and its config, the last one if there are several."""
        return self._records.get((cell.name, cell.seed, cell.key))

    def outdated(self, sweep: str, cells: Sequence[Cell]) -> int:
        """How many records of a sweep are of none of its cells as they are configured now."""
        known = {(cell.name, cell.seed, cell.key) for cell in cells}
        return sum(r["sweep"] == sweep and k not in known for k, r in self._records.items())


class ResultsFile(Results):
    """The results and the one file that they are added to.

    Args:
      file: a descriptor of the file, open to append.
      records: its lines.
    """

    def __init__(self, file: int, records: Sequence[Record]) -> None:
        super().__init__(records)
        self._file = file

    def add(self, record: Record) -> None:
        """Adds a line, and waits until it is on the disk."""
        _write(self._file, (json.dumps(record) + "\n").encode())
        os.fsync(self._file)
        self._records[record["cell"], record["seed"], record["key"]] = record


def training_seconds(record: Record) -> float:
    """Wall seconds in the loops of a cell's phases, however often it was stopped."""
    return sum(phase["seconds"] for phase in record["phases"].values())


def read_results(path: Path) -> Results:
    """Reads a file of results, which need not be there.

    Raises:
      UserError: it cannot be read, or one of its lines is no result. A last one that is no whole
        JSON is passed over: its writer died within it.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(what, f"{path}", "give another --results") from error
    return Results(_parse(content, path)[0])


@contextlib.contextmanager
def write_results(path: Path) -> Iterator[ResultsFile]:
    """Holds a file of results, made if absent, against other writers.

    Raises:
      UserError: another sweep holds it, it cannot be written, or a line is no result.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(what, f"{path}", "give another --results") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = path.read_bytes()
        records, size = _parse(content, path)
        os.ftruncate(file, size)
        if size and not content[:size].endswith(b"\n"):
            _write(file, b"\n")
        yield ResultsFile(file, records)
    except BlockingIOError as error:
        what = "another sweep is at work on these results"
        raise UserError(what, f"{path}", "wait until it ends, or give another --results") from error
    finally:
        os.close(file)


def _write(file: int, content: bytes) -> None:
    """Writes all of it, however little the system takes at once."""
    while content:
        content = content[os.write(file, content) :]


def _parse(content: bytes, path: Path) -> tuple[list[Record], int]:
    """The records of a file, and the bytes up to the end of the last one."""
    size = content.rfind(b"\n") + 1
    with contextlib.suppress(ValueError):
        json.loads(content[size:])  # the beginning of an object is none
        size = len(content)
    records = []
    for number, line in enumerate(content[:size].splitlines(), 1):
        try:
            record = json.loads(line)
            wrong = [name for name, kind in _ID.items() if not isinstance(record[name], kind)]
            if wrong:
                raise TypeError(f"{wrong[0]} is {record[wrong[0]]!r}")
            records.append({name: record[name] for name in _ID} | record)
        except (ValueError, TypeError, KeyError) as error:
            what = f"not a result: {type(error).__name__}: {error}"
            raise UserError(what, f"{path}:{number}", "mend or remove the line") from error
    return records, size
