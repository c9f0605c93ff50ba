"""Masked-LM batches: which pieces are to be predicted, and what stands in their place."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxbert.batch import Batch
from jaxbert.data.pipeline import RandomAccess
from jaxbert.data.plan import uniform
from jaxbert.data.tokenizer import Tokenizer, special_ids
from jaxbert.errors import UserError

_STREAM = 0x6D61736B  # parts these draws from others of the same seed
_MASKED, _RANDOM = 0.8, 0.9  # below the first: [MASK]; below the second: a random piece; else kept


class MaskedBatches:
    """Batches with pieces masked as BERT does it (Devlin et al. 2019, section 3.1, task 1).

    Of each row's n pieces that are not special, ``max(1, round(rate * n))`` are chosen; 80 % of
    them become [MASK], 10 % a random piece (not special), 10 % stay. Masks are dynamic: row r of
    batch s draws from (seed, s, r) alone, so that every epoch masks other pieces, any batch can be
    made without the ones before it, and any row without the others. Packed examples share their
    row's draw.

    ``places`` and ``targets`` are int32 [R, M], the chosen positions in increasing order and the
    pieces that stood there, with M = max(1, round(rate * (row_length - 2))), which is what a full
    row of one example needs: 19 of 128.

    Args:
      batches: random access to batches of text.
      tokenizer: the one that made their pieces.
      row_length: T, positions a row.
      seed: of the masks.
      rate: share of the pieces to choose.
      whole_words: choose all pieces of a word or none. Words come in random order, and one that
        is longer than what is left of the row's number is passed over, so that the number may not
        be reached; [MASK], random piece or kept is still drawn for each piece, as BERT's code does.

    Raises:
      UserError: a vocabulary with nothing but special pieces, or a rate that is no share.
    """

    def __init__(
        self,
        batches: RandomAccess,
        tokenizer: Tokenizer,
        *,
        row_length: int,
        seed: int,
        rate: float = 0.15,
        whole_words: bool = False,
    ) -> None:
        if not 0 < rate < 1:
            raise UserError(f"the masking rate is {rate}", "rate", "give a share such as 0.15")
        ordinary = np.ones(tokenizer.vocab_size, bool)
        ordinary[list(special_ids(tokenizer))] = False
        self._batches, self._seed, self._rate = batches, seed, rate
        self._ordinary, self._mask_id = ordinary, tokenizer.mask_id
        self._pieces = np.flatnonzero([*map(bool, tokenizer.pieces)] & ordinary).astype(np.int32)
        self._continues = tokenizer.continues if whole_words else np.zeros(len(ordinary), bool)
        self.most = max(1, round(rate * (row_length - 2)))
        if not len(self._pieces):
            raise UserError("the vocabulary has no pieces of text", "", "give a trained tokenizer")

    def __getitem__(self, step: int) -> Batch:
        """Returns batch `step` with its masks; only tokens, places and targets change."""
        batch = self._batches[step]
        return self._mask(batch, step, np.arange(len(batch.tokens)))

    def take(self, step: int, rows: np.ndarray) -> Batch:
        """Returns the rows int64 [R] of batch `step`, with their masks."""
        return self._mask(self._batches.take(step, rows), step, rows)

    def _mask(self, batch: Batch, step: int, rows: np.ndarray) -> Batch:
        length = batch.tokens.shape[1]
        draws = uniform((self._seed, step, _STREAM), rows, 3 * length)
        order, kind, some = draws.reshape(len(rows), 3, length).swapaxes(0, 1)  # [R, T] each
        chosen = self._choose(batch, order)
        row, column = np.nonzero(chosen)
        shape = (len(chosen), self.most)
        within = np.arange(len(row)) - np.searchsorted(row, row)
        places, targets = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        places[row, within] = column
        targets[row, within] = pieces = batch.tokens[chosen]

        draw = kind[chosen]  # [n], as all that follows
        other = self._pieces[(some[chosen] * len(self._pieces)).astype(np.int64)]
        kept_or_random = np.where(draw < _RANDOM, other, pieces)
        tokens = batch.tokens.copy()
        tokens[chosen] = np.where(draw < _MASKED, self._mask_id, kept_or_random)
        return dataclasses.replace(batch, tokens=tokens, places=places, targets=targets)

    def _choose(self, batch: Batch, draw: np.ndarray) -> np.ndarray:
        """Returns bool [R, T], the pieces to predict; the words' order is that of draws [R, T]."""
        usable = (batch.segments > 0) & self._ordinary[batch.tokens]  # [R, T]
        follows = np.zeros_like(usable)  # goes on with the word at the position before
        follows[:, 1:] = usable[:, 1:] & usable[:, :-1]
        follows[:, 1:] &= batch.segments[:, 1:] == batch.segments[:, :-1]
        follows &= self._continues[batch.tokens]
        count = usable.sum(axis=1)
        wanted = np.maximum(np.rint(self._rate * count), count > 0).astype(np.int64)
        wanted = np.minimum(wanted, self.most)

        begins = usable & ~follows
        word = np.cumsum(begins).reshape(begins.shape) - 1  # of each usable piece
        sizes = np.bincount(word[usable], minlength=int(begins.sum()))
        rows = np.nonzero(begins)[0]
        order = np.lexsort((draw[begins], rows))
        taken = np.empty(len(rows), bool)
        taken[order] = _take_in_order(sizes[order], rows, wanted)
        return usable & taken[word] if len(rows) else usable


def _take_in_order(sizes: np.ndarray, rows: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Goes through each row's words in order and takes every one that still fits.

    All rows at once. What is passed over once never fits again, so that a few rounds, each of which
    takes what comes before a row's next misfit, do the same as a walk word by word.

    Args:
      sizes: int [W], pieces of each word.
      rows: int [W], its row, in increasing order.
      room: int [R], pieces that may be taken from each row.

    Returns:
      bool [W].
    """
    taken = np.zeros(len(sizes), bool)
    first = np.searchsorted(rows, np.arange(len(room)))
    while True:
        fits = ~taken & (sizes <= room[rows])
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.where(fits, sizes, 0))])
        new = fits & (total[1:] - total[first][rows] <= room[rows])
        if not new.any():
            return taken
        taken |= new
        room = room - np.bincount(rows[new], sizes[new], len(room)).astype(np.int64)
