"""The Grain pipeline yields exactly the batches that random access gives, from anywhere."""

from __future__ import annotations

import threading

import chex
import numpy as np
import pytest

from jaxbert.batch import Batch
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.pipeline import iterate


@pytest.fixture(scope="module")
def batches() -> PackedBatches:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(1, 99, n, dtype=np.int32) for n in rng.integers(3, 20, 60)]
    examples = Examples.join(pieces, labels=np.arange(60))
    return PackedBatches(examples, batch_size=7, row_length=24, seed=5)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_resuming_at_every_step_gives_the_whole_rest_of_the_unbroken_stream(threads, batches):
    whole = list(iterate(batches, 0, 25, threads=threads))
    assert len(whole) == 25
    for start in range(25):
        rest = list(iterate(batches, start, 25, threads=threads))
        chex.assert_trees_all_equal(rest, whole[start:])
    for step, batch in enumerate(whole):
        assert isinstance(batch, Batch) and isinstance(batch.tokens, np.ndarray)
        chex.assert_trees_all_equal(batch, batches[step])


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


def test_an_error_in_a_data_thread_reaches_the_caller(batches):
    finite = PackedBatches(
        Examples.join([np.ones(3, np.int32)] * 4), batch_size=2, row_length=6, seed=0, epochs=1
    )
    with pytest.raises(IndexError, match="no such batch"):
        list(iterate(finite, 0, len(finite) + 1))
