"""BERT's pre-training: masked pieces, and whether one text follows the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbert.batch import Batch
from jaxbert.models.bert import BertConfig, last_states, masked_lm_logits, next_sentence_logits
from jaxbert.objectives import losses
from jaxbert.objectives.finetuning import choices, has_dropout
from jaxbert.objectives.objective import Terms

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Cross-entropy of masked pieces, and of next or not (Devlin et al. 2019, section 3.1).

    The head reads the hidden states at ``batch.places`` alone: logits are [B, M, V], not [B, T, V].
    The decoder is the word table, into which gradients flow from both ends.

    Attributes:
      model: the trained model.
      nsp: whether next sentences are learned, too; then ``batch.labels`` are 0 (next), 1 (not) or
        -1, which is not counted.
      encoder_frozen: train the heads alone, on top of ``frozen["model"]``, which holds the
        embeddings and the encoder.
    """

    model: BertConfig
    nsp: bool = False
    encoder_frozen: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        heads = ("mlm", *("pooler", "nsp") * self.nsp)
        return heads if self.encoder_frozen else (*self.frozen_groups, *heads)

    @property
    def frozen_groups(self) -> tuple[str, ...]:
        """What ``frozen["model"]`` holds where the encoder is frozen."""
        return ("embeddings", "encoder")

    def weights(self, step: Array) -> Mapping[str, Array | float]:
        return {"mlm": 1.0, "nsp": 1.0} if self.nsp else {"mlm": 1.0}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array) -> Terms:
        if self.encoder_frozen:
            params = frozen["model"] | params
        key_or_none = key if has_dropout(self.model) else None
        places = [batch.places, *[batch.starts] * self.nsp]
        _, states = last_states(self.model, params, batch, places, key=key_or_none)
        words = masked_lm_logits(self.model, params, states[0])  # [B, M, V]
        made = choices("tagging", words, batch)  # masked words are tags of places
        terms = {"mlm": losses.cross_entropy(*made), "mlm_accuracy": losses.accuracy(*made)}
        if self.nsp:
            follows = next_sentence_logits(self.model, params, states[1])  # [B, S, 2]
            counted = batch.weights * (batch.labels >= 0)
            labels = jnp.maximum(batch.labels, 0)
            terms["nsp"] = losses.cross_entropy(follows, labels, counted)
            terms["nsp_accuracy"] = losses.accuracy(follows, labels, counted)
        return terms
