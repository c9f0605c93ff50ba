"""Which example stands where, in any row of any epoch, without a table of the rows.

An epoch's rows follow a few patterns, such as one example of 90 pieces and one of 38: histogram
packing finds them from the number of examples of each length, at a cost that does not depend on
how many examples there are (Krell et al. 2021, "Efficient sequence packing without
cross-contamination", arXiv 2107.02027). Which row follows which pattern, and which of the examples
of a length stands in which row, are two random permutations of (seed, epoch) whose value at one
place is computed without the others. So a plan holds one int32 an example, the examples in order
of length, whatever the number of epochs; an epoch costs nothing to begin.
"""

from __future__ import annotations

import math

import numpy as np

_SLOTS_PER_MEAN = 3.0  # slots a row, as a multiple of the examples of mean length that it holds
_ROUNDS = 6  # each moves both digits once; with 3, permutations of 5 were not equally likely
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: its multiples lie far apart


class EpochPlan:
    """The rows of an endless stream of epochs, each of which has every example once.

    Args:
      lengths: int [N], from 1 to `row_length`; not kept.
      row_length: positions a row.
      seed: epoch e draws from (seed, e) alone.
      packing: False puts one example in a row.
      shuffle: False keeps rows and examples in one order, the same in every epoch; without packing
        that is the examples' own.

    Attributes:
      rows: rows an epoch.
      slots: S, examples that fit in a row at most.
    """

    def __init__(
        self, lengths: np.ndarray, row_length: int, *, seed: int, packing: bool, shuffle: bool
    ) -> None:
        self._key, self._shuffle = mix(np.array([seed], np.uint64)), shuffle
        self._order: np.ndarray | None = None
        self.rows, self.slots = len(lengths), 1
        if packing:
            kind = np.uint16 if row_length < 2**16 else np.int64  # NumPy sorts 16 bits by counting
            order = np.argsort(lengths.astype(kind), kind="stable")
            self._order = order.astype(np.int32 if len(order) < 2**31 else np.int64)
            self._counts = np.bincount(lengths, minlength=row_length + 1)  # [T + 1]
            self._starts = np.cumsum(self._counts) - self._counts  # [T + 1]
            self._patterns, copies = pack_histogram(self._counts, row_length)  # [P, S], [P]
            self._ends = np.cumsum(copies)
            self._firsts = _first_of_length(self._patterns, copies)  # [P, S]
            self.rows, self.slots = int(self._ends[-1]), self._patterns.shape[1]

    def example_ids(self, stream: np.ndarray) -> np.ndarray:
        """Returns int64 [R, S], the examples of the rows int64 [R] of the stream; -1 for none."""
        epochs, rows = np.divmod(stream, self.rows)
        rows = self._permute(rows, np.full_like(rows, self.rows), epochs, np.zeros_like(rows))
        if self._order is None:
            return rows[:, None]
        pattern = np.searchsorted(self._ends, rows, side="right")  # [R]
        copy = rows - np.where(pattern > 0, self._ends[pattern - 1], 0)
        lengths = self._patterns[pattern]  # [R, S]
        filled = lengths > 0
        # The k-th example of its length, before and after the permutation of that length.
        k = (self._firsts[pattern] + copy[:, None])[filled]
        of_length = lengths[filled]
        size = self._counts[of_length]
        k = self._permute(k, size, np.repeat(epochs, filled.sum(axis=1)), of_length)
        ids = np.full(lengths.shape, -1, np.int64)
        ids[filled] = self._order[self._starts[of_length] + k]
        return ids

    def _permute(
        self, index: np.ndarray, size: np.ndarray, epoch: np.ndarray, name: np.ndarray
    ) -> np.ndarray:
        """The permutation `name` of an epoch; all int64 [n]."""
        if not self._shuffle:
            return index
        key = mix(mix(self._key + epoch.astype(np.uint64)) + name.astype(np.uint64))
        return permute(index, size, key)


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where random permutations take single indices: a Feistel network, walked until it is inside.

    An index is written with two digits of about sqrt(size) values each, and each digit is moved by
    a hash of the other: whatever the hash, that can be undone. The few results that are not below
    `size` go through again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
      index: int64 [n], from 0 to size - 1.
      size: int64 [n], of what is permuted.
      key: uint64 [n], equal for the indices of one permutation.

    Returns:
      int64 [n], from 0 to size - 1.
    """
    size = size.astype(np.uint64)
    wide = np.ceil(np.sqrt(size)).astype(np.uint64)
    high = (size + wide - np.uint64(1)) // wide
    out = index.astype(np.uint64)
    todo = np.arange(len(out))
    while todo.size:
        left, right = np.divmod(out[todo], high)
        for round_key in range(1, 2 * _ROUNDS, 2):
            left = (left + _hash(right, key, round_key)) % wide
            right = (right + _hash(left, key, round_key + 1)) % high
        out[todo] = left * high + right
        outside = out[todo] >= size[todo]
        todo, wide, high, key = todo[outside], wide[outside], high[outside], key[outside]
    return out.astype(np.int64)


def pack_histogram(counts: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit-decreasing (Johnson, 1973) on whole groups of equal rows, with bounded slots.

    Args:
      counts: int64 [T + 1], examples of each length; none of length 0, at least one in all.
      row_length: T, capacity of a row.

    Returns:
      int64 [P, S], the lengths that stand in a row of each pattern, longest first, 0 for an empty
      slot; int64 [P], how many rows follow it. P is at most a few times T.
    """
    mean = float(counts @ np.arange(len(counts)) / counts.sum())
    slots = max(1, math.ceil(_SLOTS_PER_MEAN * row_length / mean))
    done: list[tuple[tuple[int, ...], int]] = []
    # Rows that can take more, as (lengths, how many), by the room left in them.
    rooms: dict[int, list[tuple[tuple[int, ...], int]]] = {}

    def put(lengths: tuple[int, ...], copies: int) -> None:
        room = row_length - sum(lengths)
        if room and len(lengths) < slots:
            rooms.setdefault(room, []).append((lengths, copies))
        else:
            done.append((lengths, copies))

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            room = min((r for r in rooms if r >= length), default=row_length)
            held, copies = rooms[room].pop() if room in rooms else ((), left)
            if room in rooms and not rooms[room]:
                del rooms[room]
            # What has taken one example is the best fit for the next, as long as there is room.
            each = min(room // length, slots - len(held))
            full = min(copies, left // each)
            rest = left - full * each if full < copies else 0
            if full:
                put(held + (length,) * each, full)
            if 0 < rest < each:
                put(held + (length,) * rest, 1)
            if held and (untouched := copies - full - (0 < rest < each)):
                put(held, untouched)
            left -= full * each + rest
    done += [group for groups in rooms.values() for group in groups]
    patterns = np.zeros((len(done), max(len(lengths) for lengths, _ in done)), np.int64)
    for row, (lengths, _) in enumerate(done):
        patterns[row, : len(lengths)] = lengths
    return patterns, np.array([copies for _, copies in done])


def _first_of_length(patterns: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """int64 [P, S]: how many examples of its length stand in the slots before a pattern's slot."""
    lengths = patterns.ravel()
    sizes = np.repeat(copies, patterns.shape[1])
    order = np.argsort(lengths, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    begins = np.searchsorted(lengths[order], lengths[order])
    firsts = np.empty_like(before)
    firsts[order] = before - before[begins]
    return firsts.reshape(patterns.shape)


def _hash(x: np.ndarray, key: np.ndarray, number: int) -> np.ndarray:
    """uint64 [n] below 2**31, so that a digit added to it does not wrap around."""
    x = (x ^ (key + np.uint64(number * _GOLDEN % 2**64))) * np.uint64(0xBF58476D1CE4E5B9)
    return (x ^ (x >> np.uint64(32))) * np.uint64(0x94D049BB133111EB) >> np.uint64(33)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): uint64 to uint64, every bit of every."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(entropy: tuple[int, ...], ids: np.ndarray, draws: int) -> np.ndarray:
    """Returns float64 [n, draws] in [0, 1), a function of the entropy and of each id alone.

    SplitMix64 (Steele et al. 2014), of which any element can be computed by itself: NumPy's
    generators would have to be made anew for each id.
    """
    start = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    steps = (ids[:, None] * draws + np.arange(1, draws + 1)).astype(np.uint64)  # [n, draws]
    return (mix(start + steps * np.uint64(_GOLDEN)) >> np.uint64(11)) * 2.0**-53
