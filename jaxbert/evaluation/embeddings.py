"""Texts as vectors, and how alike two texts are: what an encoder is worth without any head."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.batch import Batch
from jaxbert.evaluation.predictions import Predictions
from jaxbert.models.bert import BertConfig, Params, encode
from jaxbert.models.pooling import mean_states

ENCODER = ("embeddings", "encoder")  # the parameter groups that are read


@functools.cache
def embedder(config: BertConfig, *, normalize: bool = True) -> Callable[[Params, Batch], jax.Array]:
    """The jitted (params, batch) -> embeddings float32 [B, S, D], dropout off.

    An embedding is the mean of the last hidden state over an example's tokens (Reimers and Gurevych
    2019); 0 for an empty slot.

    Args:
      config: the model.
      normalize: divide each by its length, so that it is of length 1.
    """

    def embed(params: Params, batch: Batch) -> jax.Array:
        hidden = encode(config, params, batch).last_hidden
        assert hidden is not None
        means = mean_states(hidden, batch.segments, batch.starts.shape[1])
        if not normalize:
            return means
        norms = jnp.linalg.norm(means, axis=2, keepdims=True)
        return means / jnp.maximum(norms, 1e-12)

    return jax.jit(embed)


def read_cosines(embeddings: np.ndarray) -> Predictions:
    """The cosine of each pair of texts.

    Args:
      embeddings: float32 [2 N, D] of length 1, all first texts before all second ones.
    """
    first, second = np.split(embeddings, 2)
    return Predictions(np.einsum("nd,nd->n", first, second))
