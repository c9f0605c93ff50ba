"""What every objective is, and the total that a step minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxbert.batch import Batch
from jaxbert.models.bert import BertConfig
from jaxbert.objectives.losses import Term

Array = jax.Array
Terms = Mapping[str, Term]


class Objective(Protocol):
    """A pure function of (params, frozen, batch, key) and what it trains.

    Attributes:
      model: the trained model.
      groups: the parameter groups it reads and trains; others never enter the training state,
        so that they are neither moved nor decayed.
    """

    @property
    def model(self) -> BertConfig: ...

    @property
    def groups(self) -> tuple[str, ...]: ...

    def weights(self, step: Array) -> Mapping[str, Array | float]:
        """The factor of each loss term at a step, int32; terms without one are metrics."""
        ...

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array) -> Terms:
        """The terms of one batch, as (total, count) pairs whose counts depend on masks alone.

        Args:
          params: the trained groups.
          frozen: parameters that no gradient reaches, such as ``{"teacher": ...}``.
          batch: packed rows.
          key: a jax.random key for dropout.
        """
        ...


def weighted_loss(
    terms: Terms, counts: Mapping[str, Array], weights: Mapping[str, Array | float]
) -> Array:
    """Sum over loss terms of weight * total / count, a float32 scalar.

    Args:
      terms: what the objective returned for a batch or a part of one.
      counts: the terms' counts over the whole batch.
      weights: the factor of each loss term.
    """
    return sum(
        (w * terms[name].total / jnp.maximum(counts[name], 1.0) for name, w in weights.items()),
        start=jnp.float32(0.0),
    )
