"""The likeliest words for masked places, many sentences at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxbert.batch import Batch
from jaxbert.data.augmentation import Question
from jaxbert.errors import UserError
from jaxbert.models.bert import BertConfig, Params, fill_logits

GROUPS = ("embeddings", "encoder", "mlm")
_WIDTHS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384)
# Rows x width of a batch, which with the width fixes the shape of every program: small on a CPU,
# whose caches hold the logits then, and where what is missing in the last batches costs more.
_POSITIONS = {"cpu": 2048}
_POSITIONS_ELSEWHERE = 16_384


@functools.cache
def _filler(config: BertConfig, candidates: int) -> Callable[..., jax.Array]:
    """The jitted (params, words [V], batch) -> pieces int32 [B, K]."""

    @jax.jit
    def fill(params: Params, words: jax.Array, batch: Batch) -> jax.Array:
        logits = fill_logits(config, params, batch)[:, 0]  # [B, V]
        # Of equal logits, top_k takes the lower piece first.
        return jax.lax.top_k(jax.numpy.where(words, logits, -jax.numpy.inf), candidates)[1]

    return fill


class MaskedLM:
    """Answers what may stand at masked places.

    A question stands in a row of its own, whose width follows from its length, in a program whose
    shape follows from its width: an answer depends on nothing else that is asked, to the bit.

    Args:
      config: the model's.
      params: its groups ``embeddings``, ``encoder`` and ``mlm``.
      words: bool [V], the pieces that are words.
      candidates: K.

    Attributes:
      limit: pieces of the longest question.
      candidates: K, or the number of words if that is less.
    """

    def __init__(
        self, config: BertConfig, params: Params, words: np.ndarray, candidates: int
    ) -> None:
        self.limit = config.max_position_embeddings
        self.candidates = min(candidates, int(words.sum()))
        self._run = _filler(config, self.candidates)
        self._params = jax.device_put({group: params[group] for group in GROUPS})
        self._words = jax.device_put(np.pad(words, (0, config.vocab_size - len(words))))

    def width(self, length: int) -> int:
        """The width to which a question of this length is padded."""
        return next((w for w in _WIDTHS if length <= w < self.limit), self.limit)

    def rows(self, width: int) -> int:
        """How many questions of a width are answered at once."""
        return max(1, _POSITIONS.get(jax.default_backend(), _POSITIONS_ELSEWHERE) // width)

    def __call__(self, width: int, questions: Sequence[Question]) -> np.ndarray:
        """Returns int32 [n, K], the likeliest words' pieces, the likeliest first.

        Args:
          width: of all questions.
          questions: at most ``rows(width)``.
        """
        shape = (self.rows(width), width)
        tokens, segments, types = (np.zeros(shape, np.int32) for _ in range(3))
        places = np.zeros((shape[0], 1), np.int32)
        for row, question in enumerate(questions):
            length = len(question.tokens)
            tokens[row, :length] = question.tokens
            segments[row, :length] = 1
            types[row, question.second : length] = 1
            places[row] = question.place
        positions = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
        batch = Batch(tokens, segments, types, positions, None, None, None, places)
        return np.asarray(self._run(self._params, self._words, batch))[: len(questions)]


def check_masked_lm(params: Params, reference: str) -> None:
    """Raises a UserError that says how to get one if a model has no masked-LM head."""
    if "mlm" in params:
        return
    raise UserError(
        "the model has no masked-LM head, so that it predicts no words",
        f"model {reference}",
        "train one on it: python train.py --config=configs/bert_pretrain.py --workdir=runs/mlm "
        f"--config.teacher={reference}, then give run:runs/mlm",
    )
