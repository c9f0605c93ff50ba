"""Pre-training on text that it was not trained on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxbert.batch import Batch
from jaxbert.objectives.objective import Terms
from jaxbert.objectives.pretraining import Pretraining


@functools.cache
def _terms(objective: Pretraining) -> Callable[[Any, Any, Batch], Terms]:
    """The jitted terms without dropout; the same function for the same objective."""
    still = objective.model.replace(hidden_dropout=0.0, attention_dropout=0.0)
    objective = dataclasses.replace(objective, model=still)
    key = jax.random.key(0)  # of dropout, which is off
    return jax.jit(lambda params, frozen, batch: objective(params, frozen, batch, key))


def measure(
    objective: Pretraining, params: Any, frozen: Any, batches: Sequence[Batch]
) -> dict[str, float]:
    """Every term of pre-training over masked batches, and a yardstick.

    Args:
      objective: gives the terms.
      params: what it trains.
      frozen: what it reads beside that.
      batches: masked.

    Returns:
      ``mlm`` (cross-entropy in nats), ``mlm_accuracy``, with next sentences ``nsp`` and
      ``nsp_accuracy``, ``pieces`` (how many were masked), and ``most_frequent_accuracy``: what
      whoever always says the most frequent of the masked pieces reaches.
    """
    run = _terms(objective)
    found = jax.device_get([run(params, frozen, batch) for batch in batches])
    means = {
        name: float(sum(terms[name].total for terms in found))
        / max(float(sum(terms[name].count for terms in found)), 1.0)
        for name in found[0]
    }
    targets = np.concatenate([batch.targets[batch.targets >= 0] for batch in batches])
    most = np.bincount(targets).max() / len(targets) if len(targets) else 0.0
    return means | {"pieces": len(targets), "most_frequent_accuracy": float(most)}
