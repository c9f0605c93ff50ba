"""Rows of the files that people have: each is given out, or named with its file and line.

TSV is split on tabs and line feeds alone, without quoting: real files hold lone quotes, and
characters that some readers take for line ends (U+2028, U+0085). CSV is read as RFC 4180 has it.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbert.errors import UserError
from jaxbert.objects import fetch_files, is_remote

LONGEST_LINE = 1 << 20  # bytes
_BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 16  # bytes
_PARQUET_BUFFER = 1 << 20  # bytes
_PARQUET_ROWS = 100  # at once: a row group may be larger than the memory
_UNPACKED = 64 << 20  # bytes that any packed file may hold
_RATIO = 50  # of what a larger one holds to its own size, at most; text has 3 to 10
_NAMES_SHOWN = 20
_LONGEST_SHOWN = 80  # characters


@dataclasses.dataclass(frozen=True)
class Record:
    """A row of a file.

    Attributes:
      where: ``file:line``, the line from 1; in Parquet ``file: row``, from 0.
      values: column name -> text, number, truth value, list or None.
      places: where each item of the row's lists stands, if not at `where`.
    """

    where: str
    values: Mapping[str, Any]
    places: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: what is wrong, where (``file:line:column``), and what to do."""

    what: str
    where: str
    fix: str = "mend or remove the row"

    @property
    def error(self) -> UserError:
        """What is raised where every row has to be used."""
        return UserError(self.what, self.where, self.fix)


def listing(names: Iterable[Any]) -> str:
    """Names for a message, of a bounded length whatever stands in a file."""
    some = [shorten(name) for name in itertools.islice(names, _NAMES_SHOWN + 1)]
    return ", ".join(some[:_NAMES_SHOWN]) + ", ..." * (len(some) > _NAMES_SHOWN)


def shorten(value: Any) -> str:
    """A value for a message, as Python writes it, of a bounded length."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def matching_files(pattern: str, fix: str) -> list[Path]:
    """The file of that name, or the files that a glob pattern matches, sorted.

    Raises:
      UserError: there is none.
    """
    try:
        if is_remote(pattern):
            if paths := fetch_files(pattern):
                return paths
            raise UserError("no object matches", pattern, fix)
        whole = Path(pattern).expanduser()
        if whole.is_file():
            return [whole]
        start = Path(whole.anchor)
        paths = sorted(start.glob(str(whole.relative_to(start)))) if whole.name else []
        paths = [path for path in paths if path.is_file()]
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"not a pattern of files ({error})", shorten(pattern), fix) from error
    if not paths:
        raise UserError("no file matches", pattern or "an empty pattern", fix)
    return paths


def open_bytes(path: Path) -> Any:
    """Opens a file for reading, unpacked if its name ends in .gz or .zst.

    Raises:
      UserError: while it is read, once a small file has unpacked to far more than text does.
    """
    if path.suffix == ".gz":
        return io.BufferedReader(_Unpacked(gzip.open(path, "rb"), path), _BUFFER)
    if path.suffix == ".zst":
        import pyarrow

        file = pyarrow.input_stream(str(path), compression="zstd")
        return io.BufferedReader(_Unpacked(file, path), _BUFFER)
    return path.open("rb")


class _Unpacked(io.RawIOBase):
    """The bytes that a packed file holds, as long as they are not too many for its size."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path
        self._most = max(_UNPACKED, _RATIO * path.stat().st_size)
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._file.readinto(buffer))
        self._read += count
        if self._read > self._most:
            what = (
                f"it unpacks to more than {self._most >> 20} MiB, {_RATIO} times its size or more"
            )
            raise UserError(what, str(self._path), "unpack it first, if it is meant to")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    """Yields (number from 1, first byte, line without its end); None for one longer than 1 MiB.

    A line ends at a line feed, before which one carriage return is left out. A byte order mark at
    the beginning is, too.

    Args:
      path: plain, .gz or .zst.
      start: begins with the first line that begins at this byte of the (unpacked) text or after
        it. The numbers count from there.

    Raises:
      UserError: the file cannot be read to its end.
    """
    try:
        with open_bytes(path) as file:
            number, begin, end = 0, 0, _skip_to_line(file, start)
            while line := file.readline(LONGEST_LINE + 1):
                number, begin, end = number + 1, end, end + len(line)
                part = line
                while len(part) > LONGEST_LINE and not part.endswith(b"\n"):  # passed over
                    part = file.readline(LONGEST_LINE + 1)
                    end += len(part)
                    part = part or b"\n"
                if part is not line:
                    yield number, begin, None
                    continue
                if not begin:
                    line = line.removeprefix(_BOM)
                yield number, begin, line.removesuffix(b"\n").removesuffix(b"\r")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"it cannot be read ({error})", str(path), "copy the file again") from error


def _skip_to_line(file: Any, start: int) -> int:
    """Moves an open file to the first line that begins at `start` or later; returns its byte."""
    if not start:
        return 0
    place = start - 1  # the end of a line before `start` may be there
    if file.seekable():
        file.seek(place)
    else:
        left = place
        while left and (part := file.read(min(left, LONGEST_LINE))):
            left -= len(part)
    while part := file.readline(LONGEST_LINE):
        place += len(part)
        if part.endswith(b"\n"):
            break
    return place


class Line(NamedTuple):
    """A line of text, where it stands (``file:line``), and the byte that it begins at."""

    where: str
    text: str
    start: int


def read_texts(path: Path, start: int = 0) -> Iterator[Line | BadRow]:
    """Yields the lines of a UTF-8 file, as `read_lines` divides them.

    Raises:
      UserError: the file cannot be read to its end.
    """
    for number, begin, line in read_lines(path, start):
        where = f"{path}:{number}"
        if line is None:
            yield BadRow(f"the line is longer than {LONGEST_LINE:,} bytes", where)
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"byte 0x{line[error.start]:02x} is not UTF-8"
            yield BadRow(what, f"{where}:{error.start + 1}", "save the file as UTF-8")
            continue
        column = text.find("\0")
        if column < 0:
            yield Line(where, text, begin)
        else:
            yield BadRow("a NUL character", f"{where}:{column + 1}")


def _record(
    where: str, header: Sequence[str], fields: Sequence[str], separator: str
) -> Record | BadRow:
    if len(fields) == len(header):
        return Record(where, dict(zip(header, fields, strict=True)))
    if not any(fields):
        return BadRow("an empty line", where, "remove it")
    what = f"{len(fields)} fields instead of {len(header)}"
    return BadRow(what, where, f"put one {separator} between two fields, and none inside of one")


def check_header(where: str, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raises a UserError if a wanted column is missing, or stands there more than once."""
    for column in columns:
        if header.count(column) != 1:
            what = f"column {column!r} stands there {header.count(column)} times"
            raise UserError(what, where, f"it has {listing(header)}")


def _no_header(path: Path) -> UserError:
    return UserError("it is empty, without a header line", str(path), "remove or mend the file")


def read_tsv(
    path: Path, columns: Sequence[str], header: Sequence[str] | None = None
) -> Iterator[Record | BadRow]:
    """Yields the rows of a TSV file, whose first line is the header unless that is given.

    Raises:
      UserError: unreadable, empty, or without one of the columns.
    """
    if header is not None:
        check_header(str(path), header, columns)
    for line in read_texts(path):
        if isinstance(line, BadRow):
            if header is None:
                raise line.error
            yield line
        elif header is None:
            header = line.text.split("\t")
            check_header(f"{path}:1", header, columns)
        else:
            yield _record(line.where, header, line.text.split("\t"), "tab")
    if header is None:
        raise _no_header(path)


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[Record | BadRow]:
    """Yields the rows of a CSV file with a header (RFC 4180: commas, doubled quotes).

    Raises:
      UserError: unreadable, without one of the columns, or a line or a quote after which the rows
        cannot be told apart.
    """

    def lines() -> Iterator[str]:
        for line in read_texts(path):
            if isinstance(line, BadRow):
                raise line.error
            yield line.text + "\n"

    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            fix = "double the quotes inside of a quoted field, close it, and keep it below 1 MiB"
            raise UserError(f"not CSV: {error}", f"{path}:{start}", fix) from error
        if header is None:
            header = fields
            check_header(f"{path}:1", header, columns)
        else:
            yield _record(f"{path}:{start}", header, fields, "comma")
        start = reader.line_num + 1
    if header is None:
        raise _no_header(path)


def read_jsonl(
    path: Path, columns: Sequence[str], start: int = 0, stop: int | None = None
) -> Iterator[Record | BadRow]:
    """Yields the rows of a file with one JSON object a line.

    Args:
      path: plain, .gz or .zst.
      columns: the names that each object must have.
      start, stop: the bytes that a row's first is among; all of them. Lines count from `start`.

    Raises:
      UserError: unreadable.
    """
    for line in read_texts(path, start):
        if isinstance(line, BadRow):
            yield line
            continue
        if stop is not None and line.start >= stop:
            return
        where = line.where
        try:
            values = json.loads(line.text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:  # a number of too many digits, too
            what = getattr(error, "msg", None) or str(error) or "too deeply nested"
            column = getattr(error, "colno", 1)
            yield BadRow(f"not JSON: {what}", f"{where}:{column}")
            continue
        if not isinstance(values, dict):
            yield BadRow(f"a JSON {type(values).__name__} instead of an object", where)
        elif missing := [column for column in columns if column not in values]:
            yield BadRow(f"no {missing[0]!r}; it has {listing(values) or 'nothing'}", where)
        else:
            yield Record(where, values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name stands there twice")
    return values


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Record | BadRow]:
    """Yields the rows of a Parquet file, a few in memory at a time.

    Raises:
      UserError: not a Parquet file, a damaged one, or without one of the columns.
    """
    file = open_parquet(path)
    check_header(str(path), file.schema_arrow.names, columns)
    row = 0
    for group in range(file.num_row_groups):
        for values in read_group(path, file, group, columns):
            yield Record(f"{path}: row {row}", values)
            row += 1


def open_parquet(path: Path) -> Any:
    """Opens a Parquet file.

    Raises:
      UserError: it is none, or the name of a column is not UTF-8.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Without a buffer, a whole column of a row group would be read at once.
        return pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"not a Parquet file ({error})"
        raise UserError(what, str(path), "copy the file again") from error


def read_group(
    path: Path, file: Any, group: int, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of one row group of an open Parquet file, a few in memory at a time.

    Raises:
      UserError: it is damaged, or its text is not UTF-8.
    """
    import pyarrow

    try:
        for rows in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=list(columns)):
            yield from rows.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"row group {group} cannot be read ({error})"
        raise UserError(what, str(path), "write the file again") from error


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Record | BadRow]]] = {
    "tsv": read_tsv,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}
