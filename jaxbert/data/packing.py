"""Examples of different lengths to rows of one length, and rows to batches.

The row r of the endless stream is row ``r % n`` of epoch ``r // n``, and what stands in it is a
pure function of (seed, r): any batch can be made without the ones before it, on any number of
devices, threads or processes, and any row of it without the others.

Memory: the plan's 4 bytes an example (`plan.py`) beside what the source itself holds, and the
batches in hand; it grows neither with the length of the text nor with the number of epochs.
"""

from __future__ import annotations

import math

import numpy as np

from jaxbert.batch import Batch
from jaxbert.data.examples import Examples, ExampleSource, Marks, stretches
from jaxbert.data.plan import EpochPlan
from jaxbert.errors import UserError


class PackedBatches:
    """Random access to the batches of a stream of packed rows: batch s, whatever came before.

    The rows of epoch 0, 1, 2, ... follow each other without padding rows and without dropped rows;
    batch s is the s-th group of rows of that stream. A finite stream completes its last batch with
    empty rows.

    Args:
      examples: what to pack.
      batch_size: examples a batch, on average where rows are packed.
      row_length: T, positions a row.
      seed: of the order of examples and rows; epoch e draws from (seed, e) alone.
      packing: False puts one example in a row (R = batch_size, S = 1).
      shuffle: False keeps the rows in the order of the plan, the same in every epoch.
      epochs: how often each example comes; None is an endless stream.
      multiple: empty rows complete R to a multiple of this (devices times micro-batches), so that
        what a batch holds does not depend on them.
      vocab_size: if given, ids at or above it are refused; of a source that is not in memory, when
        they are read.

    Attributes:
      source: the examples.
      filled_rows: rows of the stream in a batch.
      rows: R, rows a batch, the empty ones included.
      slots: S, examples that fit in a row at most.
      fill: share of the positions of an epoch's rows that hold a real token.
      steps_per_epoch: batches an epoch, not rounded.
      examples_per_batch: real examples a batch, on average.

    Raises:
      UserError: no examples, one longer than a row, an id outside the vocabulary, or sizes that
        do not fit together.
    """

    def __init__(
        self,
        examples: ExampleSource,
        *,
        batch_size: int,
        row_length: int,
        seed: int,
        packing: bool = True,
        shuffle: bool = True,
        epochs: int | None = None,
        multiple: int = 1,
        vocab_size: int | None = None,
    ) -> None:
        _check_sizes(batch_size=batch_size, row_length=row_length, multiple=multiple)
        lengths = examples.lengths
        _check_examples(examples, lengths, row_length, vocab_size)
        if epochs is not None:
            _check_sizes(epochs=epochs)
        self.row_length = row_length
        self.source = examples
        # What is in memory has been checked; what is not, is when it is read.
        self._limit = None if isinstance(examples, Examples) else _limit(vocab_size)
        count = len(examples)
        self._plan = EpochPlan(lengths, row_length, seed=seed, packing=packing, shuffle=shuffle)
        self.rows_per_epoch, self.slots = self._plan.rows, self._plan.slots
        wanted = batch_size * self.rows_per_epoch / count
        self.filled_rows = max(1, round(wanted)) if packing else batch_size
        self.rows = math.ceil(self.filled_rows / multiple) * multiple
        self.fill = float(lengths.sum(dtype=np.int64) / (self.rows_per_epoch * row_length))
        self.steps_per_epoch = self.rows_per_epoch / self.filled_rows
        self.examples_per_batch = count / self.steps_per_epoch
        self._total_rows = None if epochs is None else epochs * self.rows_per_epoch

    def __len__(self) -> int:
        """Batches of a finite stream; TypeError for an endless one."""
        if self._total_rows is None:
            raise TypeError("an endless stream has no length")
        return math.ceil(self._total_rows / self.filled_rows)

    @property
    def sha256(self) -> str:
        """Of the examples."""
        return self.source.sha256

    def epoch(self, step: int) -> float:
        """Returns how many epochs have been seen before batch `step`."""
        return step * self.filled_rows / self.rows_per_epoch

    def example_ids(self, step: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Returns int64 [R, S], which example each slot of batch `step` holds; -1 for none.

        Args:
          step: of the batch.
          rows: int64 [R], those that are asked for; None is all, in order.

        Raises:
          IndexError: a negative step, or one past the end of a finite stream.
        """
        if step < 0 or (self._total_rows is not None and step >= len(self)):
            raise IndexError(f"batch {step} of a stream that has no such batch")
        rows = np.arange(self.rows) if rows is None else rows
        stream = step * self.filled_rows + rows
        there = rows < self.filled_rows
        if self._total_rows is not None:
            there &= stream < self._total_rows
        ids = np.full((len(rows), self.slots), -1, np.int64)
        ids[there] = self._plan.example_ids(stream[there])
        return ids

    def __getitem__(self, step: int) -> Batch:
        """Returns batch `step` as NumPy arrays, 0 at padding, at a cost independent of `step`."""
        return self.take(step, np.arange(self.rows))

    def take(self, step: int, rows: np.ndarray) -> Batch:
        """Returns the rows int64 [R] of batch `step`, at the cost of these alone."""
        ids = self.example_ids(step, rows)
        filled = ids >= 0
        chosen = ids[filled]
        examples = self.source.gather(chosen)
        if self._limit is not None:
            examples.check(self._limit, chosen)
        sizes = examples.lengths
        lengths = np.zeros(ids.shape, np.int64)
        lengths[filled] = sizes
        starts = np.where(filled, np.cumsum(lengths, axis=1) - lengths, 0)  # [R, S]

        # One entry a real token, example after example, row after row.
        row, slot = np.nonzero(filled)
        target = stretches(row * self.row_length + starts[filled], sizes)
        position = stretches(np.zeros_like(sizes), sizes)

        def scatter(values: np.ndarray) -> np.ndarray:
            out = np.zeros(len(ids) * self.row_length, np.int32)
            out[target] = values
            return out.reshape(len(ids), self.row_length)  # [R, T]

        labels = None
        if (given := examples.labels) is not None:
            kind = np.float32 if np.issubdtype(given.dtype, np.floating) else np.int32
            labels = np.zeros((*ids.shape, *given.shape[1:]), kind)  # [R, S, ...]
            labels[filled] = given
        places, targets = self._place(examples.marks, row, starts[filled], len(ids))
        return Batch(
            tokens=scatter(examples.tokens),
            segments=scatter(np.repeat(slot + 1, sizes)),
            token_types=scatter(position >= np.repeat(examples.seconds, sizes)),
            positions=scatter(position),
            starts=starts.astype(np.int32),
            labels=labels,
            weights=filled.astype(np.float32),
            places=places,
            targets=targets,
        )

    def _place(
        self, marks: Marks | None, rows: np.ndarray, starts: np.ndarray, count: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The places and targets, int32 [R, T] each, of examples in the order of their slots."""
        if marks is None:
            return None, None
        sizes = np.diff(marks.offsets)
        row = np.repeat(rows, sizes)
        first = np.searchsorted(row, np.arange(count))  # slots come row after row
        column = np.arange(len(row)) - first[row]
        places = np.zeros((count, self.row_length), np.int32)
        targets = np.full_like(places, -1)
        places[row, column] = marks.places + np.repeat(starts, sizes)
        targets[row, column] = marks.targets
        return places, targets


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} is {value}", name, "give a whole number of at least 1")


def _limit(vocab_size: int | None) -> int:
    return np.iinfo(np.int32).max if vocab_size is None else vocab_size


def _check_examples(
    examples: ExampleSource, lengths: np.ndarray, row_length: int, vocab_size: int | None
) -> None:
    """Refuses what cannot be packed, and of examples in memory what no model could read."""
    if not len(examples):
        raise UserError("there is not one example to pack", "", "give some text")
    for bad, what, fix in (
        (lengths > row_length, f"longer than a row of {row_length}", "lower max_length"),
        (lengths < 1, "without a single piece", "leave it out"),
    ):
        if bad.any():
            index = int(bad.argmax())
            raise UserError(
                f"{int(bad.sum())} of {len(examples)} examples {what}",
                f"the first is example {index} with {lengths[index]} pieces",
                fix,
            )
    if isinstance(examples, Examples):
        examples.check(_limit(vocab_size))
