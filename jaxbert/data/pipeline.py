"""Batches from Grain: made ahead of the step by threads or processes, and resumed at any step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from jaxbert.batch import Batch
from jaxbert.data.workers import begin_worker
from jaxbert.errors import UserError


class RandomAccess(Protocol):
    """Batches by step, such as PackedBatches."""

    def __getitem__(self, step: int) -> Batch: ...
    def take(self, step: int, rows: np.ndarray) -> Batch:
        """The rows int64 [R] of a batch, bit for bit those of the whole."""
        ...


def iterate(
    batches: RandomAccess,
    start: int,
    stop: int,
    *,
    rows: np.ndarray | None = None,
    threads: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yields batches `start` to `stop` - 1, in order.

    A batch is a function of its step, so going on at step s is ``iterate(batches, s, stop)``:
    there is no iterator state to save, and no number of threads or workers changes a batch.

    Args:
      batches: random access to batches by step.
      start: the first step.
      stop: one past the last step.
      rows: int64 [R], the rows of every batch that are made; None is all.
      threads: threads that make batches, of each process; 0 makes them in the one that asks.
      workers: processes that make batches, each with its copy of `batches`, from the program's
        ``if __name__ == "__main__":``; 0 makes them in this process. They take seconds to start
        and help only where one process is too slow (`benchmarks/pipeline.py` measures it).
      prefetch: batches held ready, by each process.

    Raises:
      UserError: a worker process has died.
    """
    if stop <= start:
        return
    import grain

    make = batches.__getitem__ if rows is None else functools.partial(batches.take, rows=rows)
    steps = grain.MapDataset.range(start, stop).map(make)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    stream = steps.to_iter_dataset(options)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, which only absl.app parses
            flags.FLAGS.mark_as_parsed()
        # A batch is small: in shared memory it would cost more time, and leak if a run is killed.
        copied = grain.experimental.DatasetOptions(min_shm_size=2**30)
        stream = grain.experimental.WithOptionsIterDataset(stream, copied)
        settings = grain.MultiprocessingOptions(min(workers, stop - start), prefetch)
        stream = stream.mp_prefetch(settings, worker_init_fn=_begin)
    iterator = iter(stream)
    try:
        yield from iterator
    except RuntimeError as error:
        if not workers or "terminated" not in str(error):
            raise
        raise UserError(
            f"a process that makes batches has died ({str(error).partition('.')[0]})",
            f"config key data_workers = {workers}",
            "run the same command again, with fewer of them or 0 if memory is short",
        ) from error
    finally:
        iterator.close()  # ends threads and processes, now and not when garbage is collected


def _begin(index: int, count: int) -> None:
    """What Grain calls in each worker."""
    begin_worker()
