"""Batches from Grain: made ahead of the step by threads, and resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator

from jaxbert.batch import Batch
from jaxbert.data.packing import PackedBatches


def iterate(
    batches: PackedBatches, start: int, stop: int, *, threads: int = 1, prefetch: int = 2
) -> Iterator[Batch]:
    """Yields batches `start` to `stop` - 1, in order.

    A batch is a function of its step, so going on at step s is ``iterate(batches, s, stop)``:
    there is no iterator state to save.

    Args:
      batches: random access to batches by step.
      start: the first step.
      stop: one past the last step.
      threads: threads that make batches; 0 makes them in the caller's.
      prefetch: batches held ready.
    """
    if stop <= start:
        return
    import grain

    steps = grain.MapDataset.range(start, stop).map(batches.__getitem__)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    yield from steps.to_iter_dataset(options)
