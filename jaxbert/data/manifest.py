"""What a prepared corpus is made from, cut into units of work, and what is written down of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbert.data.corpus import Term, find_corpus
from jaxbert.data.documents import Part, TextFiles
from jaxbert.data.progress import Report
from jaxbert.data.tables import open_bytes
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.data.transform import RECORD_PIECES, Shard, Unit, piece_dtype
from jaxbert.errors import UserError, warn
from jaxbert.files import file_sha256, whole

FORMAT = 1
MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"  # int32 [documents], pieces of each
RECORDS = "records.npy"  # int64 [documents + 1], the first record of each, counted over all shards
SHARD_SIZE = 32 << 20  # bytes of text
_BLOCK = 1 << 22  # bytes


class Plan(NamedTuple):
    """What a folder is made from, and how.

    Attributes:
      identity: all that decides its bytes: format, tokenizer, options, sources with their hashes.
      units: the work.
    """

    identity: dict[str, Any]
    units: list[Unit]

    @property
    def key(self) -> str:
        """SHA-256 of the identity, but for where the files lie."""
        sources = [
            {**source, "files": [(file["bytes"], file["sha256"]) for file in source["files"]]}
            for source in self.identity["sources"]
        ]
        text = json.dumps({**self.identity, "sources": sources}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of text, about."""
        return sum(unit.size for unit in self.units)


def make_plan(
    reference: str,
    tokenizer: Tokenizer,
    *,
    data_dir: str = "",
    shard_size: int = SHARD_SIZE,
    dedup: bool = True,
    report: Report | None = None,
) -> Plan:
    """Finds and hashes what a corpus consists of, and cuts it into units.

    Args:
      reference: as `find_corpus` takes it.
      tokenizer: whose pieces are stored.
      data_dir: the TFDS folder.
      shard_size: bytes of text in a shard, about.
      dedup: leave out documents that an earlier one equals.
      report: told of the progress.

    Raises:
      UserError: no such corpus, or a file that cannot be read.
    """
    terms = find_corpus(reference, data_dir)
    listed = [term.source.files() for term in terms]
    paths = list(dict.fromkeys(path for files in listed for path in files))
    found: dict[Path, _File] = {}
    total, done = sum(path.stat().st_size for path in paths), 0
    with concurrent.futures.ThreadPoolExecutor(count_cores()) as threads:  # C code, in parallel
        for path, file in zip(paths, threads.map(_inspect, paths), strict=True):
            found[path] = file
            done += file.size
            if report:
                report("reading", done, total)
    units: list[Unit] = []
    sources = []
    for number, (term, files) in enumerate(zip(terms, listed, strict=True)):
        sizes = {path: found[path].unpacked for path in files}
        if isinstance(term.source, TextFiles):
            _say_undivided(term.source.undivided(sizes))
        units += _units(len(units), number, term, sizes, shard_size)
        records = [
            {"path": str(path), "bytes": found[path].size, "sha256": found[path].sha256}
            for path in files
        ]
        sources.append({"reference": term.reference, "weight": term.weight, "files": records})
    identity = {
        "format": FORMAT,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "dedup": dedup,
        "shard_size": shard_size,
        "sources": sources,
    }
    return Plan(identity, units)


def write_manifest(plan: Plan, shards: Sequence[Shard], lengths: Sequence[Path], out: Path) -> None:
    """Writes the index of the documents and, last of all and in one piece, the manifest.

    Args:
      plan: what was made.
      shards: in order.
      lengths: for each of them the file (npy) of its documents' pieces.
      out: the folder.

    Raises:
      UserError: there is not one document.
    """
    fields = ("documents", "empty", "duplicates", "records", "pieces", "text_bytes")

    def counts(some: Sequence[Shard]) -> dict[str, int]:
        return {field: sum(getattr(shard, field) for shard in some) for field in fields}

    total = counts(shards)
    if not total["documents"]:
        read = total["empty"] + total["duplicates"]
        what = f"the corpus is empty: {read} documents without a piece of text"
        raise UserError(what, "", "give a corpus with text")
    first = 0
    shape = (total["documents"],)
    index = np.lib.format.open_memmap(out / LENGTHS, mode="w+", dtype=np.int32, shape=shape)
    for path in lengths:
        part = np.load(path)
        index[first : first + len(part)] = part
        first += len(part)
    index.flush()
    starts = np.lib.format.open_memmap(
        out / RECORDS, mode="w+", dtype=np.int64, shape=(len(index) + 1,)
    )
    starts[0] = 0
    np.cumsum(-(-index // RECORD_PIECES), dtype=np.int64, out=starts[1:])
    starts.flush()
    sources = []
    for number, source in enumerate(plan.identity["sources"]):
        mine = [shard for shard in shards if shard.term == number]
        sources.append({**source, "shards": len(mine), **counts(mine)})
    manifest = {
        **plan.identity,
        "key": plan.key,
        "dtype": piece_dtype(plan.identity["tokenizer"]["vocab_size"]).str,
        "record_pieces": RECORD_PIECES,
        **total,
        "lengths_sha256": file_sha256(out / LENGTHS),
        "sources": sources,
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    with whole(out / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1) + "\n")


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say_undivided(paths: Sequence[Path]) -> None:
    """Files that are meant to hold many documents, one a line perhaps, and hold one."""
    if paths:
        others = f" (and of {len(paths) - 1:,} more)" * (len(paths) > 1)
        warn(
            f"the first MiB of {paths[0]}{others} has no empty line, and is one document; "
            "put an empty line between two, or one a line into jsonl:GLOB:FIELD; a file that is "
            "one document is said by text:GLOB#file"
        )


class _File(NamedTuple):
    size: int  # bytes
    sha256: str
    unpacked: int  # bytes


def _inspect(path: Path) -> _File:
    try:
        sha256, size = file_sha256(path), path.stat().st_size
        unpacked = size
        if path.suffix in (".gz", ".zst"):
            unpacked = 0
            with open_bytes(path) as file:
                while block := file.read(_BLOCK):
                    unpacked += len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"it cannot be read ({error})", str(path), "copy the file again") from error
    return _File(size, sha256, unpacked)


def _units(
    first: int, number: int, term: Term, sizes: dict[Path, int], shard_size: int
) -> Iterator[Unit]:
    """Consecutive parts of a source, up to the size of a shard."""
    parts: list[Part] = []
    size = 0
    for part in term.source.parts(sizes, shard_size):
        if parts and size + part.size > shard_size:
            yield Unit(first, number, term.source, tuple(parts))
            parts, size, first = [], 0, first + 1
        parts.append(part)
        size += part.size
    if parts:
        yield Unit(first, number, term.source, tuple(parts))
