"""Documents to records: what is done to one unit of a corpus, whoever runs it.

A unit is one or more parts of a source, about one shard of text; its result depends on nothing
but the unit, the tokenizer and the list of duplicates. So any number of processes, or Apache Beam,
make the same bytes. This module imports neither jax nor TFDS (of which only a ``tfds:`` source has
need).

A shard is an ArrayRecord file. A document is one record or more: its piece ids, little-endian, in
records of 4,096 of which the last has the rest, so that a span of a long document is read without
the whole of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbert.data.corpus import read_documents
from jaxbert.data.documents import Part, Source
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError
from jaxbert.files import file_sha256, temporary, whole

RECORD_PIECES = 4_096
KEY_BYTES = 32
_BATCH_DOCUMENTS = 1_000  # tokenised at once, or fewer of
_BATCH_CHARACTERS = 1 << 20
# One record a chunk: read one by one. Not compressed: ids shrink by a sixth, at a tenth of the
# speed, and to bytes that depend on the version of the compressor.
_WRITER = "group_size:1,uncompressed"


class Unit(NamedTuple):
    """The work of one worker at a time.

    Attributes:
      number: its position among the corpus's units, from 0.
      term: of which of the corpus's sources.
      source: that source.
      parts: what of it, in order.
    """

    number: int
    term: int
    source: Source
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of text, about."""
        return sum(part.size for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Shard:
    """What became of a unit. Documents read = documents + empty + duplicates.

    Attributes:
      name: of the file.
      term: the source it comes from.
      documents: those in the shard; each has a piece at least.
      empty: documents without one, left out.
      duplicates: documents left out because an earlier one is the same.
      records: of the file.
      pieces: ids in it.
      text_bytes: UTF-8 of the documents.
      size: bytes of the file.
      sha256: of the file.
    """

    name: str
    term: int
    documents: int
    empty: int
    duplicates: int
    records: int
    pieces: int
    text_bytes: int
    size: int
    sha256: str


def read_unit(unit: Unit) -> Iterator[str]:
    """Yields the documents of a unit."""
    for part in unit.parts:
        yield from read_documents(unit.source, part)


def read_keys(unit: Unit) -> np.ndarray:
    """Returns uint8 [documents, 32]: SHA-256 of the UTF-8 text; zeros where nothing is visible."""
    empty = bytes(KEY_BYTES)
    keys = (
        hashlib.sha256(text.encode()).digest() if text.strip() else empty
        for text in read_unit(unit)
    )
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def finished_shard(unit: Unit, out: Path, work: Path) -> Shard | None:
    """Returns what was written of a unit, if it was finished and is there as it was written."""
    try:
        shard = Shard(**json.loads(_record(unit, work).read_text(encoding="utf-8")))
        return shard if file_sha256(out / shard.name) == shard.sha256 else None
    except OSError:
        return None


def write_shard(
    unit: Unit, duplicate: np.ndarray | None, tokenizer: Tokenizer, out: Path, work: Path
) -> Shard:
    """Tokenises a unit into a shard, put in place in one piece.

    Args:
      unit: what to read.
      duplicate: bool [documents of the unit], those to leave out; None for none.
      tokenizer: gives the pieces.
      out: where the shard is put in the end.
      work: where it is written, and, then, the lengths of its documents and its record.

    Raises:
      UserError: something that is no text, with its place, or a source that has changed.
      OSError: it cannot be written.
    """
    path = out / f"{unit.number:06d}.array_record"
    # A name of its own: Beam may run one unit twice at the same time.
    partial = temporary(work / path.name)
    dtype = piece_dtype(tokenizer.vocab_size)
    lengths: list[int] = []
    read = records = text_bytes = 0
    with _writer(partial) as write:
        for texts in _batches(unit):
            first, read = read, read + len(texts)
            if duplicate is not None:
                flags = duplicate[first:read].tolist()
                texts = [text for text, left_out in zip(texts, flags, strict=False) if not left_out]
            for text, pieces in zip(texts, tokenizer.encode(texts), strict=True):
                if not len(pieces):
                    continue
                lengths.append(len(pieces))
                text_bytes += len(text.encode())
                for start in range(0, len(pieces), RECORD_PIECES):
                    write(pieces[start : start + RECORD_PIECES].astype(dtype).tobytes())
                    records += 1
    if duplicate is not None and len(duplicate) != read:
        what = f"it has {read} documents and had {len(duplicate)}: it has changed meanwhile"
        raise UserError(what, unit.parts[0].path, "run the command again when it stays the same")
    left_out = 0 if duplicate is None else int(duplicate.sum())
    shard = Shard(
        name=path.name,
        term=unit.term,
        documents=len(lengths),
        empty=read - len(lengths) - left_out,
        duplicates=left_out,
        records=records,
        pieces=sum(lengths),
        text_bytes=text_bytes,
        size=partial.stat().st_size,
        sha256=file_sha256(partial),
    )
    partial.replace(path)
    save(lengths_path(unit, work), np.array(lengths, np.int32))
    with whole(_record(unit, work)) as file:
        json.dump(dataclasses.asdict(shard), file)
    return shard


def lengths_path(unit: Unit, work: Path) -> Path:
    """Where the pieces of a unit's documents, int32 [documents] (npy), are written."""
    return work / f"{unit.number:06d}.lengths.npy"


def _record(unit: Unit, work: Path) -> Path:
    return work / f"{unit.number:06d}.json"


def save(path: Path, array: np.ndarray) -> None:
    """Writes an npy file in one piece."""
    partial = temporary(path)
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives what writes a record."""
    from array_record.python import array_record_module

    try:
        writer = array_record_module.ArrayRecordWriter(str(path), _WRITER)
        yield writer.write
        writer.close()
    except RuntimeError as error:  # how the library says that a disk is full
        raise OSError(str(error)) from error


def piece_dtype(vocab_size: int) -> np.dtype:
    """What ids are stored as."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _batches(unit: Unit) -> Iterator[list[str]]:
    """The documents of a unit, as many at a time as bound the memory of tokenising them."""
    batch: list[str] = []
    size = 0
    for text in read_unit(unit):
        batch.append(text)
        size += len(text)
        if len(batch) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
