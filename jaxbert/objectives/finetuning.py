"""Supervised fine-tuning of a classifier."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxbert.batch import Batch
from jaxbert.models.bert import BertConfig, class_logits
from jaxbert.objectives import losses
from jaxbert.objectives.objective import Terms

Array = jax.Array


def classify(
    config: BertConfig, params: Any, batch: Batch, key: Array | None = None, compat: str = ""
) -> Array:
    """Class logits float32 [B, S, C] of every packed example.

    Args:
      config: the model; without a dropout rate the key is not used.
      params: its ``embeddings``, ``encoder``, ``pooler`` and ``classifier``.
      batch: packed rows.
      key: a jax.random key for dropout; None turns dropout off.
      compat: ``huawei`` for the authors' key-only mask and untouched row 0 of the word table.
    """
    padded = compat == "huawei"
    if padded:
        params = params | {"embeddings": freeze_padding_row(params["embeddings"])}
    key = key if has_dropout(config) else None
    return class_logits(config, params, batch, key=key, key_mask_only=padded)


def has_dropout(config: BertConfig) -> bool:
    """Whether training this model draws random numbers."""
    return max(config.hidden_dropout, config.attention_dropout) > 0


def freeze_padding_row(embeddings: Any) -> Any:
    """The same embeddings with no gradient into row 0 of the word table (torch's padding_idx)."""
    table = jnp.asarray(embeddings["word"])
    return embeddings | {"word": table.at[0].set(jax.lax.stop_gradient(table[0]))}


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """Cross-entropy with the labels.

    Attributes:
      model: the trained model.
      compat: ``huawei`` for the authors' key-only mask and untouched row 0 of the word table.
    """

    model: BertConfig
    compat: str = ""

    groups = ("embeddings", "encoder", "pooler", "classifier")
    weights = {"cross_entropy": 1.0}  # noqa: RUF012  (a constant of the class, not a field)

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array) -> Terms:
        logits = classify(self.model, params, batch, key, self.compat)
        return {
            "cross_entropy": losses.cross_entropy(logits, batch.labels, batch.weights),
            "accuracy": losses.accuracy(logits, batch.labels, batch.weights),
        }
