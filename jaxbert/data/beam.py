"""The preparation of a corpus on Apache Beam, for text that is too much for one machine.

    python -m jaxbert.data.beam --corpus=... --tokenizer=FOLDER --out=DIR [flags of Beam's runner]

The units, and what is done to each, are those of `jaxbert prepare` (`transform.py`), and so are the
bytes. Every worker sees the text, the tokenizer's folder and DIR under the same paths: a shared
file system. Neither jax nor TFDS is imported (TFDS for a ``tfds:`` corpus alone), so that an
environment of its own can have Beam's versions of what both need.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from jaxbert.data.manifest import SHARD_SIZE, Plan, make_plan, write_manifest
from jaxbert.data.prepare import open_tokenizer, unfinished
from jaxbert.data.prepared import Corpus, open_corpus
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.data.transform import Unit, finished_shard, lengths_path, read_keys, write_shard
from jaxbert.errors import exit_on_user_error

_COUNTS = "counts"


def prepare(plan: Plan, tokenizer_folder: Path, out: Path, flags: Sequence[str]) -> Corpus:
    """Makes the folder of a plan, or what is missing of it.

    Args:
      plan: what to make.
      tokenizer_folder: of the tokenizer that the plan was made with.
      out: the folder; new, empty, or with this plan finished or not.
      flags: of Beam, such as ``--runner=FlinkRunner``.

    Raises:
      UserError: the folder holds something else, or there is too little room.
    """
    with unfinished(plan, out) as work:
        if work is not None:
            with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
                _build(pipeline, plan, tokenizer_folder, out, work)
            shards = [finished_shard(unit, out, work) for unit in plan.units]
            lengths = [lengths_path(unit, work) for unit in plan.units]
            write_manifest(plan, [shard for shard in shards if shard], lengths, out)
    return open_corpus(out, verify=True)


def _build(pipeline: beam.Pipeline, plan: Plan, tokenizer: Path, out: Path, work: Path) -> None:
    """The two passes over the units."""
    units = (
        pipeline
        | "units" >> beam.Create([(unit.number, unit) for unit in plan.units])
        | "spread" >> beam.Reshuffle()
    )
    parts = {"unit": units}
    if plan.identity["dedup"]:
        keys = units | "keys" >> beam.FlatMap(_keys).with_outputs(_COUNTS, main="keys")
        parts[_COUNTS] = keys[_COUNTS]
        parts["duplicates"] = (
            keys["keys"] | "equal" >> beam.GroupByKey() | "later" >> beam.FlatMap(_all_but_first)
        )
    fingerprint = plan.identity["tokenizer"]["fingerprint"]
    make = functools.partial(_make, tokenizer, fingerprint, out, work)
    _ = parts | "by unit" >> beam.CoGroupByKey() | "shards" >> beam.Map(make)


def _keys(numbered: tuple[int, Unit]) -> Iterator[Any]:
    """(key, place) of each document that has a key; and how many documents the unit has."""
    number, unit = numbered
    keys = read_keys(unit)
    for index in np.flatnonzero(keys.any(axis=1)).tolist():
        yield keys[index].tobytes(), (number, index)
    yield beam.pvalue.TaggedOutput(_COUNTS, (number, len(keys)))


def _all_but_first(equal: tuple[bytes, Iterable[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """The places of the documents of one key but for the first of them."""
    _, places = equal
    first = min(places)
    return (place for place in places if place != first)


def _make(
    folder: Path, fingerprint: str, out: Path, work: Path, grouped: tuple[int, dict[str, Any]]
) -> None:
    """Writes the shard of a unit, unless it is there as it was written."""
    _, parts = grouped
    (unit,) = parts["unit"]
    duplicate = None
    if _COUNTS in parts:
        (count,) = parts[_COUNTS]
        duplicate = np.zeros(count, bool)
        duplicate[list(parts["duplicates"])] = True
    if not finished_shard(unit, out, work):
        write_shard(unit, duplicate, open_tokenizer(folder, fingerprint), out, work)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m jaxbert.data.beam", description=__doc__)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE >> 20, help="MiB")
    parser.add_argument("--dedup", action=argparse.BooleanOptionalAction, default=True)
    args, flags = parser.parse_known_args(argv)
    with exit_on_user_error():
        plan = make_plan(
            args.corpus,
            load_tokenizer(args.tokenizer),
            shard_size=args.shard_size << 20,
            dedup=args.dedup,
        )
        corpus = prepare(plan, args.tokenizer, args.out, flags)
    print(f"{corpus.num_documents:,} documents -> {args.out}")


if __name__ == "__main__":
    main()
