"""Class logits of a model for a whole data set."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxbert.batch import Batch
from jaxbert.data.packing import PackedBatches
from jaxbert.models.bert import BertConfig, Params
from jaxbert.objectives.finetuning import classify

SCORED = ("embeddings", "encoder", "pooler", "classifier")  # what a prediction reads


@functools.cache
def predictor(config: BertConfig) -> Callable[[Params, Batch], jax.Array]:
    """The jitted (params, batch) -> class logits float32 [B, S, C] of a model, dropout off.

    The same function for the same configuration: evaluating again compiles nothing.
    """
    return jax.jit(lambda params, batch: classify(config, params, batch))


def predict(config: BertConfig, params: Params, batches: PackedBatches) -> np.ndarray:
    """Class logits float32 [N, C] in the order of the examples.

    Args:
      config: the model.
      params: its groups; others than a prediction reads are ignored.
      batches: finite, each example once.
    """
    run = predictor(config)
    params = {group: params[group] for group in SCORED}
    # Nothing waits for a result before every batch is under way.
    found = [run(params, batches[step]) for step in range(len(batches))]
    ids = np.concatenate([batches.example_ids(step).ravel() for step in range(len(batches))])
    rows = np.concatenate([np.asarray(x).reshape(-1, config.num_labels) for x in found])
    return rows[ids >= 0][np.argsort(ids[ids >= 0])]
