"""Pairs of texts for next-sentence prediction, made of spans as they are read."""

from __future__ import annotations

import hashlib

import numpy as np

from jaxbert.data.examples import Examples, ExampleSource, stretches
from jaxbert.data.plan import uniform
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError

NEXT, RANDOM, UNPAIRED = 0, 1, -1  # labels; BERT's numbers for the first two
_STREAM = 0x70616972  # parts these draws from others of the same seed
_MOST = 2**31 - 1  # spans, each known by an int32
_TRIES = 8  # at a span of another document, with a sentence's end where one is asked for
_SENTENCE_ENDS = frozenset(".!?。！？")


class SentencePairs:
    """Spans cut in two, every other one with a second half from elsewhere (Devlin et al. 2019).

    A span ``[CLS] x [SEP]`` becomes ``[CLS] A [SEP] B [SEP]`` of the same length: its last piece
    makes room for the [SEP], so that nothing about the packing changes. It is cut behind the piece
    ``.``, ``!`` or ``?`` that is nearest to its middle, within its middle half, and in its middle
    where there is none. With probability 1/2 as many pieces from another document take B's place,
    which begin behind a sentence, too, where the cut did: the form must not give the answer away.
    Of eight spans that are drawn the first with such a place is taken; without one, B stays.

    Labels are int32: 0 next, 1 from elsewhere, -1 (not to be counted) for a span of fewer than 5
    pieces, which stays as it is. Everything about example i is a function of (seed, i).

    Memory: 8 bytes a span beside what the source holds.

    Args:
      source: spans of text, each from one document.
      documents: int [N], the document that each span is from.
      tokenizer: the one that made the pieces.
      seed: of the choice of second halves.

    Raises:
      UserError: all spans are from one document, or there are more than 2**31 - 1 spans.
    """

    def __init__(
        self, source: ExampleSource, documents: np.ndarray, tokenizer: Tokenizer, *, seed: int
    ) -> None:
        if len(source) > _MOST:
            what = f"{len(source):,} spans are more than the {_MOST:,} that pairs are made of"
            fix = "set num_documents to take fewer documents, or nsp to false"
            raise UserError(what, "corpus", fix)
        if not len(documents) or (documents == documents[0]).all():
            fix = "give several documents, or set nsp to false"
            raise UserError("pairs of sentences need more than one document", "corpus", fix)
        self._source, self._documents, self._seed = source, documents, seed
        self._sep_id = tokenizer.sep_id
        ends = [p.lstrip("▁").removeprefix("##") in _SENTENCE_ENDS for p in tokenizer.pieces]
        self._ends = np.array(ends)
        lengths = source.lengths
        self._longest_first = np.argsort(lengths, kind="stable")[::-1].astype(np.int32)
        # How many spans have at least this many pieces, [CLS] and [SEP] included.
        self._as_long = np.bincount(lengths)[::-1].cumsum()[::-1]

    @property
    def lengths(self) -> np.ndarray:
        """Those of the spans."""
        return self._source.lengths

    @property
    def sha256(self) -> str:
        """Of the spans and of the draws."""
        return hashlib.sha256(f"pairs 2 {self._seed} {self._source.sha256}".encode()).hexdigest()

    @property
    def truncated(self) -> int:
        """That of the spans; the piece that makes room is not counted."""
        return self._source.truncated

    @property
    def skipped(self) -> int:
        """That of the spans."""
        return self._source.skipped

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, ids: np.ndarray) -> Examples:
        """Returns the pairs int64 [n], in this order, with their labels."""
        spans = self._source.gather(ids)
        draws = uniform((self._seed, _STREAM), ids, 2 + _TRIES)  # [n, 2 + tries]
        kept = spans.lengths - 3  # pieces of A and B together
        pairable = kept >= 2
        low, high = np.maximum(1, -(-kept // 4)), np.minimum(kept - 1, 3 * kept // 4)
        cut, found = _nearest_end(spans, self._ends, low, high, kept // 2)
        labels = np.where(pairable, NEXT, UNPAIRED).astype(np.int32)

        tokens = self._join(spans, np.where(pairable, cut, spans.lengths))
        sizes, left = kept - cut, np.flatnonzero(pairable & (draws[:, 0] < 0.5))
        for tried in draws[:, 2:].T:
            if not left.size:
                break
            size = sizes[left]
            ranks = (tried[left] * self._as_long[size + 2]).astype(np.int64)
            others = self._longest_first[ranks].astype(np.int64)
            elsewhere = self._source.gather(others)
            room = elsewhere.lengths - 2 - size  # pieces that may be passed over
            drawn = (draws[left, 1] * (room + 1)).astype(np.int64)
            offset, behind = _nearest_end(elsewhere, self._ends, np.ones_like(room), room, drawn)
            offset = np.where(found[left], offset, drawn)
            good = self._documents[others] != self._documents[ids[left]]
            good &= behind | ~found[left]
            chosen, size = left[good], size[good]
            to = stretches(spans.offsets[chosen] + cut[chosen] + 2, size)
            begins = (elsewhere.offsets[:-1] + 1 + offset)[good]
            tokens[to] = elsewhere.tokens[stretches(begins, size)]
            labels[chosen] = RANDOM
            left = left[~good]
        seconds = np.where(pairable, cut + 2, spans.lengths).astype(np.int32)
        return Examples(tokens, spans.offsets, seconds, labels)

    def _join(self, spans: Examples, cut: np.ndarray) -> np.ndarray:
        """The spans' pieces with a [SEP] behind the first ``cut`` [n], and one piece fewer."""
        sizes = spans.lengths
        position = stretches(np.zeros_like(sizes), sizes)
        last = np.repeat(sizes - 1, sizes)
        cuts = np.repeat(cut, sizes)
        shifted = (position > cuts + 1) & (position < last)
        tokens = spans.tokens[np.arange(len(position)) - shifted]
        tokens[position == cuts + 1] = self._sep_id
        return tokens


def _nearest_end(
    examples: Examples, ends: np.ndarray, low: np.ndarray, high: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where to cut each example behind a sentence.

    Args:
      examples: n of them, with [CLS].
      ends: bool [V], the pieces that end one.
      low, high: int [n], pieces that may stand before the cut, [CLS] not counted.
      target: int [n], how many should; the lower of two equally near is taken.

    Returns:
      int64 [n], pieces before the cut, and bool [n], whether a sentence ends there; the target
      where none does.
    """
    if not len(examples):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    sizes = examples.lengths
    before = stretches(np.zeros_like(sizes), sizes)  # at the piece p stand p, itself included
    good = ends[examples.tokens]
    good &= (before >= np.repeat(low, sizes)) & (before <= np.repeat(high, sizes))
    distance = np.abs(before - np.repeat(target, sizes))
    span = np.int64(sizes.max() + 1)  # above any position and distance
    best = np.minimum.reduceat(
        np.where(good, distance, span) * span + before, examples.offsets[:-1]
    )
    found = best < span * span
    return np.where(found, best % span, target), found
