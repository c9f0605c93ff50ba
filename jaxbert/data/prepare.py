"""A corpus, tokenised once by all cores of a machine, resumable at any point.

Three passes over the sources, the last two in the same units of work: the files are hashed, the
keys of the documents are taken (for the duplicates), and what is left is tokenised into one shard
a unit. Finished work is a file under ``unfinished/`` of the folder: whoever runs the same
preparation again, with any number of workers, goes on from there.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.corpus import find_corpus
from jaxbert.data.dedup import find_duplicates
from jaxbert.data.documents import close_rows
from jaxbert.data.manifest import MANIFEST, Plan, count_cores, make_plan, write_manifest
from jaxbert.data.prepared import Corpus, open_corpus
from jaxbert.data.progress import Report
from jaxbert.data.tokenizer import Tokenizer, load_tokenizer
from jaxbert.data.transform import (
    Shard,
    Unit,
    finished_shard,
    lengths_path,
    read_keys,
    save,
    write_shard,
)
from jaxbert.data.workers import begin_worker
from jaxbert.errors import UserError
from jaxbert.files import as_path, hold

_SMALL = 8 << 20  # bytes of text; with less, one process ends before others have begun
_CACHED_SHARD_SIZE = 2 << 20  # bytes of text: enough shards of a small corpus for every core
_LARGE = 200 << 20  # bytes of text
_PREPARED = "prepared:"
_DUPLICATES = "duplicates.npy"


def prepare(
    plan: Plan, tokenizer_folder: Path, out: Path, *, workers: int = 0, report: Report | None = None
) -> Corpus:
    """Makes the folder of a plan, or what is missing of it.

    Args:
      plan: what to make.
      tokenizer_folder: of the tokenizer that the plan was made with.
      out: the folder; new, empty, or with this plan finished or not.
      workers: processes; 0 is one a core, or this one alone for a small corpus.
      report: told of the progress.

    Returns:
      The corpus; opened with its hashes verified if it was there.

    Raises:
      UserError: the folder holds something else, there is too little room, or something is no text.
    """
    workers = workers or (count_cores() if plan.size > _SMALL else 1)
    try:
        with unfinished(plan, out) as work:
            if work is not None:
                with _pool(min(workers, len(plan.units))) as pool:
                    _work(plan, tokenizer_folder, out, work, pool, report)
    except BrokenProcessPool as error:
        fix = "run the same command again, with fewer workers if memory was short"
        raise UserError("a worker process has died", str(out), fix) from error
    finally:
        close_rows()
    return open_corpus(out, verify=True)


@contextlib.contextmanager
def unfinished(plan: Plan, out: Path) -> Iterator[Path | None]:
    """Holds a folder while it is worked on; waits for another process that does.

    Args:
      plan: what it is to hold.
      out: the folder; made if absent.

    Yields:
      Where unfinished work is kept, which is removed in the end; None if there is no work.

    Raises:
      UserError: the folder holds something else, or there is too little room.
    """
    work = out / "unfinished"
    if _is_finished(plan, out):  # where nothing may be written, too
        shutil.rmtree(work, ignore_errors=True)
        yield None
        return

    def wait() -> None:
        said = f"waiting for another process that prepares {out}"
        print(said, file=sys.stderr, flush=True)

    try:
        with hold(work / "lock", wait):
            finished = _is_finished(plan, out)
            if not finished:
                _claim(plan, out, work)
            try:
                yield None if finished else work
            except UserError:  # of the text: once it is mended, it is another
                shutil.rmtree(out, ignore_errors=True)
                raise
            # Whoever comes at this very moment may put the lock there anew, and removes it then.
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"it cannot be written ({error})", str(out), "give another") from error


def _is_finished(plan: Plan, out: Path) -> bool:
    """Whether a folder holds what a plan makes; raises a UserError if it holds something else."""
    if not (out / MANIFEST).is_file():
        return False
    if open_corpus(out).manifest["key"] != plan.key:
        what = "it holds a corpus of other text, another tokenizer or other options"
        raise UserError(what, str(out), "give another folder, or remove it")
    return True


def check_reference(reference: str, data_dir: str = "") -> None:
    """Raises a UserError unless there is such a corpus, to be prepared or prepared."""
    if reference.startswith(_PREPARED):
        open_corpus(as_path(reference.removeprefix(_PREPARED)).expanduser())
    else:
        find_corpus(reference, data_dir)


def open_reference(
    reference: str,
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    *,
    cache: Path,
    data_dir: str = "",
    report: Report | None = None,
) -> Corpus:
    """Opens a corpus by reference; one that is not prepared is, once, into a cache.

    Args:
      reference: ``prepared:DIR``, or as `find_corpus` takes it.
      tokenizer: whose pieces are wanted.
      tokenizer_folder: where it lies.
      cache: a folder of prepared corpora, each by the hash of what it was made from.
      data_dir: the TFDS folder.
      report: told of the progress.

    Raises:
      UserError: what `prepare` raises, or a prepared folder of another tokenizer.
    """
    if reference.startswith(_PREPARED):
        corpus = open_corpus(as_path(reference.removeprefix(_PREPARED)).expanduser())
        corpus.check_tokenizer(tokenizer.fingerprint, str(tokenizer_folder))
        return corpus
    plan = make_plan(
        reference, tokenizer, data_dir=data_dir, shard_size=_CACHED_SHARD_SIZE, report=report
    )
    out = cache / plan.key[:32]
    if plan.size > _LARGE and not (out / MANIFEST).is_file():
        print(
            f"corpus: {plan.size / 1e6:,.0f} MB of text are tokenised first; "
            "jaxbert prepare does it beforehand, for --config.corpus=prepared:DIR",
            flush=True,
        )
    return prepare(plan, tokenizer_folder, out, report=report)


def _claim(plan: Plan, out: Path, work: Path) -> None:
    """Writes down whose work it is, or checks it."""
    path = work / "plan"
    if path.is_file():
        if path.read_text() != plan.key:
            what = "it holds the beginning of a corpus of other text, tokenizer or options"
            raise UserError(what, str(out), "give another folder, or remove it")
        return
    others = sorted(path.name for path in out.iterdir() if path != work)
    if others:
        raise UserError(f"it holds {others[0]}", str(out), "give a new or an empty folder")
    # What is written takes half as much as the text as a rule: all of it is twice what is needed.
    free = shutil.disk_usage(out).free
    if free < plan.size:
        what = f"needs {plan.size / 1e9:.1f} GB, has {free / 1e9:.1f} GB"
        raise UserError(what, str(out), "make room, or give another folder")
    path.write_text(plan.key)


Pool = Callable[[Callable[..., Any], Sequence[Any]], Iterator[Any]]


def _work(
    plan: Plan, tokenizer_folder: Path, out: Path, work: Path, pool: Pool, report: Report | None
) -> None:
    """The passes over the units, and the index of what they made."""

    def each(what: str, function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
        results: list[Any] = []
        done = 0
        for unit, result in zip(plan.units, pool(function, tasks), strict=True):
            results.append(result)
            done += unit.size
            if report:
                report(what, done, plan.size)
        return results

    ranges: list[tuple[int, int]] = [(0, 0)] * len(plan.units)
    if plan.identity["dedup"]:
        counts = each("finding duplicates", functools.partial(_write_keys, work), plan.units)
        ends = np.cumsum(counts, dtype=np.int64).tolist()
        ranges = list(zip([0, *ends[:-1]], ends, strict=True))
        if sum(counts) and not (work / _DUPLICATES).is_file():
            paths = [_keys_path(work, unit) for unit in plan.units]
            find_duplicates(paths, work / _DUPLICATES)
    tasks = list(zip(plan.units, ranges, strict=True))
    fingerprint = plan.identity["tokenizer"]["fingerprint"]
    make = functools.partial(_make_shard, out, work, tokenizer_folder, fingerprint)
    shards = each("tokenising", make, tasks)
    write_manifest(plan, shards, [lengths_path(unit, work) for unit in plan.units], out)


def _keys_path(work: Path, unit: Unit) -> Path:
    return work / f"{unit.number:06d}.keys.npy"


def _write_keys(work: Path, unit: Unit) -> int:
    """Writes the keys of a unit's documents, unless they are there; returns how many."""
    path = _keys_path(work, unit)
    if not path.is_file():
        save(path, read_keys(unit))
    return len(np.load(path, mmap_mode="r"))


def _make_shard(
    out: Path,
    work: Path,
    tokenizer_folder: Path,
    fingerprint: str,
    task: tuple[Unit, tuple[int, int]],
) -> Shard:
    """Writes the shard of a unit, unless it is there as it was written."""
    unit, (first, last) = task
    duplicate = np.load(work / _DUPLICATES, mmap_mode="r")[first:last] if last else None
    tokenizer = open_tokenizer(tokenizer_folder, fingerprint)
    return finished_shard(unit, out, work) or write_shard(unit, duplicate, tokenizer, out, work)


@functools.lru_cache(maxsize=1)
def open_tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    """The plan's tokenizer, loaded once a process."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint != fingerprint:
        raise UserError("the tokenizer has changed meanwhile", str(folder), "run again")
    return tokenizer


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Pool]:
    """Gives a map that yields in order, by processes if there are several."""
    if workers <= 1:
        yield map
        return
    before = set(multiprocessing.active_children())
    # Not forked: the locks of whatever threads run here would be copied as they stand.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as executor:

        def ordered(function: Callable[..., Any], tasks: Sequence[Any]) -> Iterator[Any]:
            for future in [executor.submit(function, task) for task in tasks]:
                yield future.result()

        try:
            yield ordered
        except BaseException:  # what is under way would only be waited for
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            raise


def _begin() -> None:
    """Makes a worker use one core."""
    begin_worker()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
