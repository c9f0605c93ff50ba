"""Examples of different lengths to rows of one length, and rows to batches.

One pass over the examples (an epoch) fills n rows. Best-fit-decreasing looks at lengths alone, so
it runs once, over a whole epoch: every epoch has the same n rows of the same shape, and only the
examples of equal length change places and the rows change their order. The row r of the endless
stream is therefore row ``r % n`` of epoch ``r // n``, and any batch can be made without the ones
before it: data order is a pure function of (seed, step).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import threading
from collections.abc import Sequence

import numpy as np

from jaxbert.batch import Batch
from jaxbert.errors import UserError

_SLOTS_PER_MEAN = 3.0  # slots a row, as a multiple of the examples of mean length that it holds
_PLANS_KEPT = 3  # the epoch in use, its neighbour where a batch spans both, and one for prefetching


@dataclasses.dataclass(frozen=True)
class Marks:
    """Labels of single pieces, those of one example after those of the other.

    Attributes:
      places: int32 [sum], the piece within its example, from 0.
      targets: int32 [sum], its label, from 0.
      offsets: int64 [N + 1], example i has ``places[offsets[i]:offsets[i + 1]]``.
    """

    places: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Examples:
    """N encoded examples, one after the other, with their [CLS] and [SEP].

    Attributes:
      tokens: int32 [sum of lengths], word piece ids.
      offsets: int64 [N + 1], example i is ``tokens[offsets[i]:offsets[i + 1]]``.
      seconds: int32 [N], where the second text (token type 1) begins within the example; its
        length if there is none.
      labels: int32 or float32 [N, ...], or None for unlabelled text.
      truncated: how many texts were cut to fit.
      skipped: how many texts were left out because they are empty.
      marks: labels of single pieces, or None.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    seconds: np.ndarray
    labels: np.ndarray | None = None
    truncated: int = 0
    skipped: int = 0
    marks: Marks | None = None

    @classmethod
    def join(
        cls,
        pieces: Sequence[np.ndarray],
        *,
        seconds: Sequence[int] | np.ndarray | None = None,
        labels: np.ndarray | None = None,
        truncated: int = 0,
        skipped: int = 0,
        marks: Marks | None = None,
    ) -> Examples:
        """Joins int [length] arrays, one an example; without `seconds` all are single texts."""
        lengths = np.fromiter((len(p) for p in pieces), np.int64, len(pieces))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        ends = lengths if seconds is None else np.asarray(seconds)
        return cls(
            tokens.astype(np.int32),
            offsets,
            ends.astype(np.int32),
            labels,
            truncated,
            skipped,
            marks,
        )

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], pieces of each example, [CLS] and [SEP] included."""
        return np.diff(self.offsets)

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of every piece, bound and label, in order."""
        digest = hashlib.sha256()
        marks = () if self.marks is None else dataclasses.astuple(self.marks)
        for array in (self.tokens, self.offsets, self.seconds, self.labels, *marks):
            if array is not None:
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.offsets) - 1


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
      vocab_size: if given, ids at or above it are refused.

    Attributes:
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
        examples: Examples,
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
        _check_examples(examples, row_length, vocab_size)
        if epochs is not None:
            _check_sizes(epochs=epochs)
        self.row_length = row_length
        self._examples, self._seed = examples, seed
        self._packing, self._shuffle = packing, shuffle
        self._lengths = examples.lengths
        count = len(examples)
        if packing:
            self._ranks = _pack(np.sort(self._lengths)[::-1], row_length)
            wanted = batch_size * len(self._ranks) / count
            self.filled_rows = max(1, round(wanted))
        else:
            self._ranks = np.arange(count, dtype=np.int32)[:, None]
            self.filled_rows = batch_size
        self.rows = math.ceil(self.filled_rows / multiple) * multiple
        self.rows_per_epoch, self.slots = self._ranks.shape
        self.fill = float(self._lengths.sum() / (self.rows_per_epoch * row_length))
        self.steps_per_epoch = self.rows_per_epoch / self.filled_rows
        self.examples_per_batch = count / self.steps_per_epoch
        self._total_rows = None if epochs is None else epochs * self.rows_per_epoch
        self._plans: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Batches of a finite stream; TypeError for an endless one."""
        if self._total_rows is None:
            raise TypeError("an endless stream has no length")
        return math.ceil(self._total_rows / self.filled_rows)

    @property
    def sha256(self) -> str:
        """Of the examples."""
        return self._examples.sha256

    def epoch(self, step: int) -> float:
        """Returns how many epochs have been seen before batch `step`."""
        return step * self.filled_rows / self.rows_per_epoch

    def example_ids(self, step: int) -> np.ndarray:
        """Returns int64 [R, S], which example each slot of batch `step` holds; -1 for none.

        Raises:
          IndexError: a negative step, or one past the end of a finite stream.
        """
        if step < 0 or (self._total_rows is not None and step >= len(self)):
            raise IndexError(f"batch {step} of a stream that has no such batch")
        stream = np.arange(step * self.filled_rows, (step + 1) * self.filled_rows)
        epochs, rows = np.divmod(stream, self.rows_per_epoch)
        ids = np.full((self.rows, self.slots), -1, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            if self._total_rows is not None:
                here &= stream < self._total_rows
            if here.any():
                ids[np.flatnonzero(here)] = self._plan(int(epoch))[rows[here]]
        return ids

    def __getitem__(self, step: int) -> Batch:
        """Returns batch `step` as NumPy arrays, 0 at padding, at a cost independent of `step`."""
        ids = self.example_ids(step)
        filled = ids >= 0
        chosen = ids[filled]
        lengths = np.where(filled, self._lengths[ids], 0)
        starts = np.where(filled, np.cumsum(lengths, axis=1) - lengths, 0)

        # One entry a real token, example after example, row after row.
        sizes = lengths[filled]
        before = np.cumsum(sizes) - sizes
        row, slot = np.nonzero(filled)
        token = np.arange(sizes.sum())
        position = token - np.repeat(before, sizes)
        source = np.repeat(self._examples.offsets[chosen], sizes) + position
        target = np.repeat(row * self.row_length + starts[filled], sizes) + position

        def scatter(values: np.ndarray) -> np.ndarray:
            out = np.zeros(self.rows * self.row_length, np.int32)
            out[target] = values
            return out.reshape(self.rows, self.row_length)  # [R, T]

        labels = None
        if self._examples.labels is not None:
            given = self._examples.labels
            kind = np.float32 if np.issubdtype(given.dtype, np.floating) else np.int32
            labels = np.zeros((*ids.shape, *given.shape[1:]), kind)  # [R, S, ...]
            labels[filled] = given[chosen]
        places, targets = self._marks(chosen, row, starts[filled])
        return Batch(
            tokens=scatter(self._examples.tokens[source]),
            segments=scatter(np.repeat(slot + 1, sizes)),
            token_types=scatter(position >= np.repeat(self._examples.seconds[chosen], sizes)),
            positions=scatter(position),
            starts=starts.astype(np.int32),
            labels=labels,
            weights=filled.astype(np.float32),
            places=places,
            targets=targets,
        )

    def _marks(
        self, chosen: np.ndarray, rows: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The places and targets, int32 [R, T] each, of examples in the order of their slots."""
        marks = self._examples.marks
        if marks is None:
            return None, None
        sizes = np.diff(marks.offsets)[chosen]
        before = np.cumsum(sizes) - sizes
        within = np.arange(sizes.sum()) - np.repeat(before, sizes)
        source = np.repeat(marks.offsets[chosen], sizes) + within
        row = np.repeat(rows, sizes)
        first = np.searchsorted(row, np.arange(self.rows))  # slots come row after row
        column = np.arange(len(row)) - first[row]
        places = np.zeros((self.rows, self.row_length), np.int32)
        targets = np.full_like(places, -1)
        places[row, column] = marks.places[source] + np.repeat(starts, sizes)
        targets[row, column] = marks.targets[source]
        return places, targets

    def _plan(self, epoch: int) -> np.ndarray:
        """Returns int32 [rows of an epoch, S], the examples of each row; -1 for an empty slot."""
        epoch = epoch if self._shuffle else 0
        with self._lock:  # data threads may ask for the same new epoch at once
            if epoch in self._plans:
                return self._plans[epoch]
            count = len(self._examples)
            if not self._shuffle:
                order, rows = np.arange(count), np.arange(self.rows_per_epoch)
            else:
                rng = np.random.Generator(np.random.PCG64((self._seed, epoch)))
                order, rows = rng.permutation(count), rng.permutation(self.rows_per_epoch)
            if self._packing:
                order = order[np.argsort(-self._lengths[order], kind="stable")]
            ranks = self._ranks[rows]
            plan = np.where(ranks >= 0, order[ranks], -1).astype(np.int32)
            self._plans[epoch] = plan
            if len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
            return plan


def _pack(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """Best-fit-decreasing (Johnson, 1973), with a bounded number of examples a row.

    Args:
      lengths: int [N], in decreasing order.
      row_length: capacity of a row.

    Returns:
      int32 [rows, S]: indices into `lengths`, -1 for an empty slot; each index once.
    """
    slots = max(1, math.ceil(_SLOTS_PER_MEAN * row_length / float(lengths.mean())))
    open_rows: list[list[int]] = [[] for _ in range(row_length + 1)]  # by the room left in them
    rooms = 0  # bit r is set where open_rows[r] is not empty
    held: list[int] = []  # examples in each row
    places: list[int] = []  # row of each example
    for length in lengths.tolist():
        fitting = rooms >> length
        if fitting:
            room = (fitting & -fitting).bit_length() - 1 + length
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row = row_length, len(held)
            held.append(0)
        places.append(row)
        held[row] += 1
        room -= length
        if room and held[row] < slots:
            open_rows[room].append(row)
            rooms |= 1 << room

    ranks = np.full((len(held), max(held)), -1, np.int32)
    rows = np.array(places)
    order = np.argsort(rows, kind="stable")
    first = np.cumsum(held) - held
    ranks[rows[order], np.arange(len(rows)) - first[rows[order]]] = order
    return ranks


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} is {value}", name, "give a whole number of at least 1")


def _check_examples(examples: Examples, row_length: int, vocab_size: int | None) -> None:
    """Refuses on the host what a device would clamp or wrap without a word."""
    if not len(examples):
        raise UserError("there is not one example to pack", "", "give some text")
    lengths = examples.lengths
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
    limit = np.iinfo(np.int32).max if vocab_size is None else vocab_size
    outside = (examples.tokens < 0) | (examples.tokens >= limit)
    if outside.any():
        where = int(outside.argmax())
        example = int(np.searchsorted(examples.offsets, where, side="right")) - 1
        raise UserError(
            f"piece id {examples.tokens[where]} is outside the vocabulary of {limit}",
            f"example {example}, piece {where - int(examples.offsets[example])}",
            "use the tokenizer that belongs to the model",
        )
    if examples.labels is not None and len(examples.labels) != len(examples):
        raise UserError(
            f"{len(examples.labels)} labels for {len(examples)} examples", "", "give one for each"
        )
