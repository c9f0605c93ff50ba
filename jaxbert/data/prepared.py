"""A prepared corpus on disk: opened at once, read at random, a little at a time."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import re
import threading
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.examples import bounds, stretches
from jaxbert.data.manifest import FORMAT, LENGTHS, MANIFEST, RECORDS
from jaxbert.errors import UserError
from jaxbert.files import as_path, fetched, file_sha256, read_object

_AGAIN = "copy the folder again, or prepare it again"
_MOST_OPEN = 512  # shards, each of which holds a file open
_MAX_MANIFEST = 1 << 28  # bytes: a shard takes some hundred of them
_COUNT = (int,)
# What is read of a manifest, of each of its shards and of each of its sources.
_FIELDS = {
    "documents": _COUNT,
    "empty": _COUNT,
    "duplicates": _COUNT,
    "record_pieces": _COUNT,
    "dtype": (str,),
    "lengths_sha256": (str,),
    "shards": (list,),
    "sources": (list,),
    "tokenizer": (dict,),
}
_SHARD = {"name": (str,), "size": _COUNT, "records": _COUNT, "sha256": (str,)}
_SOURCE = {"weight": (int, float), "documents": _COUNT}
_READER = "readahead_buffer_size:0,max_parallelism:0"


def open_corpus(folder: Path, *, verify: bool = False) -> Corpus:
    """Opens a folder that `jaxbert prepare` has made.

    Args:
      folder: it; one of an object store is copied to this machine first.
      verify: hash every file, instead of looking at their sizes alone.

    Raises:
      UserError: no such folder, one of another format, or a damaged one; names the file.
    """
    folder = fetched(as_path(folder))
    path = folder / MANIFEST
    if not path.is_file():
        fix = "give a folder that jaxbert prepare has finished"
        raise UserError("no prepared corpus", str(folder), fix)
    manifest = read_object(path, _AGAIN, _MAX_MANIFEST)
    if (known := manifest.get("format")) != FORMAT:
        what = f"its format is {known!r}, and this version reads {FORMAT}"
        raise UserError(what, str(path), "prepare the corpus again")
    for at, problem in _problems(manifest):
        raise UserError(f"not a manifest: {problem}", f"{path}, key {at}", _AGAIN)
    for shard in manifest["shards"]:
        file = folder / shard["name"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["size"]:
            what = "missing" if size is None else f"{size} bytes instead of {shard['size']}"
            raise UserError(f"a shard is damaged: {what}", str(file), _AGAIN)
        if verify:
            _verify(file, shard["sha256"])
    if verify:
        _verify(folder / LENGTHS, manifest["lengths_sha256"])
    corpus = Corpus(folder, manifest)
    if verify:
        corpus.check_records()
    return corpus


def _problems(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a manifest, which anyone may have written, and where."""
    yield from _wrong(manifest, "", _FIELDS)
    if manifest["dtype"] not in ("<u2", "<u4"):
        yield "dtype", f"{manifest['dtype']!r} instead of <u2 or <u4"
    if manifest["record_pieces"] < 1:
        yield "record_pieces", "no piece in a record"
    if not isinstance(manifest["tokenizer"].get("fingerprint"), str):
        yield "tokenizer", "no fingerprint"
    for key, fields in (("shards", _SHARD), ("sources", _SOURCE)):
        for number, part in enumerate(manifest[key]):
            yield from _wrong(part, f"{key}[{number}]", fields)
    for number, shard in enumerate(manifest["shards"]):
        if not re.fullmatch(r"\w[\w.-]{0,99}", shard["name"]):
            yield f"shards[{number}]", "its name is that of no file of the folder"


def _wrong(
    part: Any, where: str, fields: Mapping[str, tuple[type, ...]]
) -> Iterator[tuple[str, str]]:
    for key, types in fields.items():
        value: Any = part.get(key) if isinstance(part, dict) else None
        known = type(value) in types  # a bool is no number here
        if not known or (isinstance(value, int | float) and not 0 <= value < 1 << 62):
            yield f"{where}.{key}".lstrip("."), "it is missing" if value is None else repr(value)


def _verify(path: Path, sha256: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})", str(path), _AGAIN) from error
    if found != sha256:
        raise UserError(f"it has changed: SHA-256 {found} instead of {sha256}", str(path), _AGAIN)


class Corpus:
    """Documents as piece ids, in the order of their sources.

    Threads may read at the same time; a pickled corpus is opened anew where it arrives.

    Args:
      folder: where it lies.
      manifest: what is written down there.

    Attributes:
      folder, manifest: these.
      lengths: int32 [documents], pieces of each, at least 1; mapped from the disk.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.lengths = self._map(LENGTHS, self.num_documents)
        self._records = self._map(RECORDS, self.num_documents + 1)
        self._ends = np.cumsum([shard["records"] for shard in manifest["shards"]])
        self._size, self._dtype = manifest["record_pieces"], np.dtype(manifest["dtype"])
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_corpus, (self.folder,)

    @property
    def num_documents(self) -> int:
        """How many there are."""
        return self.manifest["documents"]

    @functools.cached_property
    def sha256(self) -> str:
        """Of the tokenizer, every piece and bound, and the shares; not of where files lay."""
        parts = [
            self.manifest["tokenizer"],
            self.manifest["lengths_sha256"],
            [shard["sha256"] for shard in self.manifest["shards"]],
            [[source["weight"], source["documents"]] for source in self.manifest["sources"]],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def manifest_sha256(self) -> str:
        """Of the manifest, which has the hashes of all else."""
        return file_sha256(self.folder / MANIFEST)

    def check_tokenizer(self, fingerprint: str, owner: str) -> None:
        """Raises a UserError unless the corpus is in the pieces of the tokenizer of `owner`."""
        if self.manifest["tokenizer"]["fingerprint"] != fingerprint:
            raise UserError(
                f"its text was tokenised by another tokenizer than that of {owner}",
                str(self.folder),
                f"prepare it with jaxbert prepare --tokenizer={owner}",
            )

    def check_records(self) -> None:
        """Raises a UserError unless the first records are those that the lengths give."""
        counts = -(-self.lengths // self._size)
        if self._records[0] or (np.diff(self._records) != counts).any():
            raise UserError("it has changed", str(self.folder / RECORDS), _AGAIN)

    def read(self, documents: np.ndarray) -> list[np.ndarray]:
        """Returns the pieces, int32 [length], of each of the documents int [n].

        Raises:
          IndexError: there is no such document.
          UserError: a shard is damaged.
        """
        documents = np.asarray(documents, np.int64)
        lengths = self.lengths[documents].astype(np.int64)
        pieces = self.pieces(documents, np.zeros_like(documents), lengths)
        return np.split(pieces, np.cumsum(lengths)[:-1]) if len(documents) else []

    def pieces(self, documents: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Reads stretches of documents, and no more of the disk than they need.

        Args:
          documents: int64 [n].
          starts: int64 [n], the first piece within each document.
          sizes: int64 [n], pieces of each stretch, at least 1 and within the document.

        Returns:
          int32 [sum of sizes].

        Raises:
          UserError: a shard is damaged.
        """
        skipped, within = np.divmod(starts, self._size)
        first = self._records[documents] + skipped
        counts = (within + sizes - 1) // self._size + 1
        if (
            len(first)
            and (
                (sizes < 1) | (counts < 1) | (first < 0) | (first + counts > self._num_records)
            ).any()
        ):
            raise self._unfit()
        records = stretches(first, counts)
        data = self._read_records(records)
        held = bounds(np.fromiter(map(len, data), np.int64, len(data)) // self._dtype.itemsize)
        begins = held[np.cumsum(counts) - counts] + within
        if len(begins) and (begins + sizes > held[np.cumsum(counts)]).any():
            raise self._unfit()
        wanted = stretches(begins, sizes)
        return np.frombuffer(b"".join(data), self._dtype)[wanted].astype(np.int32)

    @property
    def _num_records(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _unfit(self) -> UserError:
        return UserError("its shards do not fit its index", str(self.folder), _AGAIN)

    def _read_records(self, records: np.ndarray) -> list[bytes]:
        """Records by their number over all shards, in this order."""
        shards = np.searchsorted(self._ends, records, "right")
        data: list[bytes] = [b""] * len(records)
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            first = int(self._ends[shard - 1]) if shard else 0
            try:
                found = self._reader(shard).read((records[here] - first).tolist())
            except (RuntimeError, ValueError, IndexError) as error:
                path = self.folder / self.manifest["shards"][shard]["name"]
                raise UserError(f"a shard is damaged ({error})", str(path), _AGAIN) from error
            for place, record in zip(here.tolist(), found, strict=True):
                data[place] = record
        return data

    def _reader(self, shard: int) -> Any:
        from array_record.python import array_record_module

        with self._lock:
            if shard not in self._readers:
                path = self.folder / self.manifest["shards"][shard]["name"]
                self._readers[shard] = array_record_module.ArrayRecordReader(str(path), _READER)
                if len(self._readers) > _MOST_OPEN:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(shard)
            return self._readers[shard]

    def _map(self, name: str, length: int) -> np.ndarray:
        """An index, mapped into memory."""
        path = self.folder / name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a header that is read as Python 2 wrote it
                array = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
            raise UserError(f"it cannot be read ({error})", str(path), _AGAIN) from error
        if array.shape != (length,) or array.dtype.kind != "i":
            what = f"{array.dtype} {list(array.shape)} instead of {length} numbers"
            raise UserError(what, str(path), _AGAIN)
        return array
