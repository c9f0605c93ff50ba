"""Supervised fine-tuning, of every kind of head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbert.batch import Batch
from jaxbert.models.bert import BertConfig, class_logits, scored_groups
from jaxbert.objectives import losses
from jaxbert.objectives.objective import Terms

Array = jax.Array
_OUTSIDE = -1e9  # the logit of what cannot be chosen: finite, so that 0 times it is 0


def classify(
    config: BertConfig, params: Any, batch: Batch, key: Array | None = None, compat: str = ""
) -> Array:
    """The head's logits, as ``jaxbert.models.bert.class_logits`` shapes them.

    Args:
      config: the model; without a dropout rate the key is not used.
      params: its groups, those of ``scored_groups``.
      batch: packed rows.
      key: a jax.random key for dropout; None turns dropout off.
      compat: ``huawei`` for the authors' key-only mask and untouched row 0 of the word table.
    """
    padded = compat == "huawei"
    if padded:
        params = params | {"embeddings": freeze_padding_row(params["embeddings"])}
    key = key if has_dropout(config) else None
    return class_logits(config, params, batch, key=key, key_mask_only=padded)


class Choices(NamedTuple):
    """Choices among classes: every kind of head but ``regression`` makes them.

    ``classification`` is one choice an example and ``tagging`` one a word; ``multi_label`` is C
    choices between no and yes, as sigmoid(z) is the softmax of (0, z); ``spans`` is two, the first
    and the last piece among those of the example.

    Attributes:
      logits: float32 [..., C].
      labels: int32 [...].
      weights: float32 [...], 1 for a choice, 0 for none.
    """

    logits: Array
    labels: Array
    weights: Array


def choices(head: str, logits: Array, batch: Batch) -> Choices:
    """What a head's logits and a batch's labels say of each choice.

    Args:
      head: of the model.
      logits: what ``classify`` returns.
      batch: labelled rows.
    """
    if head == "tagging":
        marked = (batch.targets >= 0).astype(jnp.float32)
        return Choices(logits, jnp.maximum(batch.targets, 0), marked)
    if head == "classification":
        return Choices(logits, batch.labels, batch.weights)
    weights = jnp.broadcast_to(batch.weights[..., None], batch.labels.shape)
    if head == "multi_label":
        pairs = jnp.stack([jnp.zeros_like(logits), logits], axis=-1)  # [B, S, C, 2]
        return Choices(pairs, batch.labels.astype(jnp.int32), weights)
    slots = 1 + jnp.arange(batch.starts.shape[1], dtype=batch.segments.dtype)
    inside = batch.segments[:, None, :] == slots[None, :, None]  # [B, S, T]
    pieces = jnp.where(inside[:, :, None], logits.swapaxes(1, 2)[:, None], _OUTSIDE)
    return Choices(pieces, batch.starts[..., None] + batch.labels, weights)  # [B, S, 2, T]


def has_dropout(config: BertConfig) -> bool:
    """Whether training this model draws random numbers."""
    return max(config.hidden_dropout, config.attention_dropout) > 0


def freeze_padding_row(embeddings: Any) -> Any:
    """The same embeddings with no gradient into row 0 of the word table (torch's padding_idx)."""
    table = jnp.asarray(embeddings["word"])
    return embeddings | {"word": table.at[0].set(jax.lax.stop_gradient(table[0]))}


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """Cross-entropy with the labels, mean over all choices; of ``regression`` the squared error.

    Attributes:
      model: the trained model.
      compat: ``huawei`` for the authors' key-only mask and untouched row 0 of the word table.
    """

    model: BertConfig
    compat: str = ""

    @property
    def groups(self) -> tuple[str, ...]:
        return scored_groups(self.model)

    def weights(self, step: Array) -> Mapping[str, Array | float]:
        return {"squared_error" if self.model.head == "regression" else "cross_entropy": 1.0}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array) -> Terms:
        logits = classify(self.model, params, batch, key, self.compat)
        if self.model.head == "regression":
            error = losses.mse(logits[..., 0], batch.labels, batch.weights > 0)
            return {"squared_error": error}
        made = choices(self.model.head, logits, batch)
        return {"cross_entropy": losses.cross_entropy(*made), "accuracy": losses.accuracy(*made)}
