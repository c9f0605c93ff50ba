"""Encoded examples: what sources of text give and what batches are packed from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxbert.errors import UserError


def stretches(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns int64 [sum of sizes]: start, start + 1, ... of each stretch, one after the other."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def bounds(sizes: np.ndarray) -> np.ndarray:
    """Returns int64 [N + 1]: where stretches of these sizes begin and the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


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

    def gather(self, ids: np.ndarray) -> Marks:
        """Returns the marks of the examples int64 [n], in this order."""
        sizes = np.diff(self.offsets)[ids]
        source = stretches(self.offsets[ids], sizes)
        return Marks(self.places[source], self.targets[source], bounds(sizes))


class ExampleSource(Protocol):
    """Random access to N encoded examples, in memory or not.

    A source that worker processes read is pickled once for each of them.

    Attributes:
      lengths: int [N], pieces of each example, [CLS] and [SEP] included.
      sha256: of all that the examples are, in order.
      truncated: how many examples lost text to fit.
      skipped: how many texts were left out because they are empty.
    """

    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def sha256(self) -> str: ...
    @property
    def truncated(self) -> int: ...
    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def gather(self, ids: np.ndarray) -> Examples:
        """Returns the examples int64 [n], in this order, with all that belongs to them."""
        ...


@dataclasses.dataclass(frozen=True)
class Examples:
    """N encoded examples in memory, one after the other, with their [CLS] and [SEP].

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
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        ends = lengths if seconds is None else np.asarray(seconds)
        return cls(
            tokens.astype(np.int32),
            bounds(lengths),
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

    def gather(self, ids: np.ndarray) -> Examples:
        """Returns the examples int64 [n], in this order, with their labels and marks."""
        starts = self.offsets[ids]
        sizes = self.offsets[ids + 1] - starts
        return Examples(
            self.tokens[stretches(starts, sizes)],
            bounds(sizes),
            self.seconds[ids],
            None if self.labels is None else self.labels[ids],
            marks=None if self.marks is None else self.marks.gather(ids),
        )

    def check(self, limit: int, ids: np.ndarray | None = None) -> None:
        """Refuses on the host what a device would clamp or wrap without a word.

        Args:
          limit: piece ids are from 0 to this, exclusive.
          ids: int64 [N], what to call the examples; None is by their position.

        Raises:
          UserError: naming the first piece outside, or a number of labels that does not fit.
        """
        if self.labels is not None and len(self.labels) != len(self):
            raise UserError(
                f"{len(self.labels)} labels for {len(self)} examples", "", "give one for each"
            )
        outside = (self.tokens < 0) | (self.tokens >= limit)
        if outside.any():
            where = int(outside.argmax())
            example = int(np.searchsorted(self.offsets, where, side="right")) - 1
            raise UserError(
                f"piece id {self.tokens[where]} is outside the vocabulary of {limit}",
                f"example {example if ids is None else ids[example]}, "
                f"piece {where - int(self.offsets[example])}",
                "use the tokenizer that belongs to the model",
            )
