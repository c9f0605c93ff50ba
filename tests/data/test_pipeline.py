"""The Grain pipeline yields exactly the batches that random access gives, from anywhere."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxbert.batch import Batch
from jaxbert.data.examples import Examples, ExampleSource, Marks
from jaxbert.data.manifest import make_plan
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pairs import SentencePairs
from jaxbert.data.pipeline import iterate
from jaxbert.data.prepare import prepare
from jaxbert.data.spans import Spans
from jaxbert.data.tokenizer import load_tokenizer

LABELLED = ("classes", "pairs", "scores", "several labels", "answers", "tags")
ON_DISK = ("prepared text", "pairs of prepared text")
KINDS = ("text", *LABELLED, *ON_DISK)


def in_memory(kind: str) -> Examples:
    """24 examples as each kind of task has them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, 24)
    seconds = rng.integers(1, lengths) if kind == "pairs" else lengths
    labels = {
        "classes": rng.integers(0, 3, 24),
        "pairs": rng.integers(0, 3, 24),
        "scores": rng.normal(size=24).astype(np.float32),
        "several labels": rng.integers(0, 2, (24, 5)).astype(np.float32),
        "answers": np.sort(rng.integers(0, lengths[:, None], (24, 2))).astype(np.int32),
    }
    marks = None
    if kind == "tags":
        counts = rng.integers(0, lengths)
        places = [np.sort(rng.permutation(n)[:k]) for n, k in zip(lengths, counts, strict=True)]
        targets = rng.integers(0, 9, counts.sum())
        marks = Marks(np.concatenate(places), targets, np.cumsum([0, *counts]))
    pieces = [rng.integers(1, 99, n, dtype=np.int32) for n in lengths]
    return Examples.join(pieces, seconds=seconds, labels=labels.get(kind), marks=marks)


def on_disk(folder: Path) -> dict[str, ExampleSource]:
    """24 spans of two prepared sources with shares, some of them twice, and pairs of them."""
    words = [f"w{i}" for i in range(20)]
    vocab = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    (folder / "vocab.txt").write_text(vocab, encoding="utf-8")
    rng = np.random.default_rng(0)
    for name, count in (("a", 5), ("b", 3)):
        documents = [" ".join(rng.choice(words, rng.integers(4, 80))) for _ in range(count)]
        (folder / name).write_text("\n\n".join(documents), encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    reference = f"0.6 text:{folder / 'a'} + 0.4 text:{folder / 'b'}"
    corpus = prepare(make_plan(reference, tokenizer, shard_size=500), folder, folder / "prepared")
    spans = Spans(corpus, tokenizer, max_length=20, seed=1)
    pairs = SentencePairs(spans, spans.documents, tokenizer, seed=1)
    return dict(zip(ON_DISK, (spans, pairs), strict=True))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, ExampleSource]:
    found: dict[str, ExampleSource] = {kind: in_memory(kind) for kind in ("text", *LABELLED)}
    return found | on_disk(tmp_path_factory.mktemp("corpus"))


def stream(source: ExampleSource, packing: bool) -> PackedBatches:
    return PackedBatches(source, batch_size=5, row_length=24, seed=5, packing=packing)


@pytest.fixture(scope="module")
def batches() -> PackedBatches:
    return stream(in_memory("classes"), True)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_at_every_step_of_two_epochs_gives_the_whole_rest(kind, packing, sources):
    batches = stream(sources[kind], packing)
    stop = int(np.ceil(2 * batches.steps_per_epoch))
    assert 8 <= stop <= 12
    whole = list(iterate(batches, 0, stop))
    assert len(whole) == stop
    for step, batch in enumerate(whole):
        assert isinstance(batch, Batch) and isinstance(batch.tokens, np.ndarray)
        chex.assert_trees_all_equal(batch, batches[step])
    for start in range(stop):
        again = pickle.loads(pickle.dumps(batches))  # as another process has it
        for threads in (0, 1, 3):
            rest = list(iterate(again, start, stop, threads=threads))
            chex.assert_trees_all_equal(rest, whole[start:])


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_any_rows_of_a_batch_are_those_of_the_whole_in_two_epochs(kind, packing, sources):
    batches = PackedBatches(
        sources[kind], batch_size=5, row_length=24, seed=5, packing=packing, epochs=2, multiple=4
    )
    whole = list(iterate(batches, 0, len(batches)))
    assert not whole[-1].segments[-1].any()  # rows that complete the last batch, or all of them
    count = batches.rows
    for rows in (np.arange(count // 2), np.arange(count // 2, count), np.array([0, count - 1])):
        parts = list(iterate(batches, 0, len(batches), rows=rows))
        cut = [jax.tree.map(lambda x, rows=rows: x[rows], batch) for batch in whole]
        chex.assert_trees_all_equal(parts, cut)


# Processes take a second to start: a few steps each time, every step among the long tests.
@pytest.mark.parametrize(
    "starts", [(0, 4, 7), pytest.param(range(10), marks=pytest.mark.slow)], ids=["few", "every"]
)
def test_worker_processes_give_what_threads_give_from_any_step_of_two_epochs(starts, sources):
    streams = [stream(source, packing) for source in sources.values() for packing in (True, False)]

    class EveryKind:
        """All at once: processes start once for all of them, and without this module."""

        def __getitem__(self, step):
            return [batches[step] for batches in streams]

    every = EveryKind()
    stop = max(int(np.ceil(2 * batches.steps_per_epoch)) for batches in streams)
    assert stop == 10
    whole = [every[step] for step in range(stop)]
    for start in starts:
        rest = list(iterate(every, start, stop, workers=1 + start % 2))
        chex.assert_trees_all_equal(rest, whole[start:])


def test_an_empty_range_yields_nothing(batches):
    assert list(iterate(batches, 4, 4)) == [] and list(iterate(batches, 5, 4)) == []


def test_a_late_range_is_as_good_as_an_early_one(batches):
    late = next(iterate(batches, 10**9, 10**9 + 5))
    chex.assert_trees_all_equal(late, batches[10**9])


def test_threads_run_ahead_and_end_with_the_iterator(batches):
    made = threading.Event()

    class Watched:
        def __getitem__(self, step):
            if step == 2:
                made.set()
            return batches[step]

    stream = iterate(Watched(), 0, 100, threads=1, prefetch=4)
    next(stream)
    assert made.wait(timeout=30), "nothing was made ahead of the step"
    stream.close()


ENDS = """
import multiprocessing, sys, time
import numpy as np
from jaxbert.data.examples import Examples
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate

def main():
    examples = Examples.join([np.ones(3, np.int32)] * 9)
    batches = PackedBatches(examples, batch_size=2, row_length=6, seed=0)
    stream = iterate(batches, 0, 10**9, workers=2)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.read()
    sys.exit(3)

if __name__ == "__main__":
    main()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux has /proc")
@pytest.mark.parametrize("killed", [True, False])
def test_worker_processes_do_not_outlive_a_run_that_ends_in_between(killed, tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, script], text=True, env=environment, **pipes) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        if killed:
            process.kill()
        process.stdin.close()
        said = process.stderr.read()  # until all who could write there have ended
    assert not any(map(alive, workers))
    assert process.returncode == (-signal.SIGKILL if killed else 3)
    # Python's resource tracker removes what a killed process can no longer remove, and says so.
    assert (said == "") if not killed else ("leaked semaphore objects to clean up" in said)


def test_an_error_in_a_data_thread_reaches_the_caller(batches):
    finite = PackedBatches(
        Examples.join([np.ones(3, np.int32)] * 4), batch_size=2, row_length=6, seed=0, epochs=1
    )
    with pytest.raises(IndexError, match="no such batch"):
        list(iterate(finite, 0, len(finite) + 1))
