"""What terms of a distillation read of an encoder: states, and pairs of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxbert.batch import MASKED, Batch
from jaxbert.models.encoder import Collect, EncoderOutput
from jaxbert.models.pooling import mean_states
from jaxbert.objectives.alignment import ATTENTION, PROJECTED, RELATIONS, Match

Array = jax.Array


def collect(matches: Sequence[Match], teacher: int | None) -> Collect:
    """What the terms read of the student (None) or of the teacher of a number."""
    wanted: dict[str, set[int]] = {}
    for match in matches:
        feature = match.feature
        field = "hidden" if feature in PROJECTED else RELATIONS.get(feature, "scores")
        if feature in (*PROJECTED, *ATTENTION, *RELATIONS):
            chosen = match.layers if teacher is None else match.layers[teacher : teacher + 1]
            layers = {pair[teacher is not None] for pairs in chosen for pair in pairs}
            # Attention belongs to layers, counted from 0; hidden state 0 is the embeddings.
            wanted.setdefault(field, set()).update(n - (field != "hidden") for n in layers)
    return Collect(
        **{field: tuple(sorted(layers)) for field, layers in wanted.items()},
        last=any(m.feature in ("logits", "mlm_logits", "pooled") for m in matches),
    )


def states(feature: str, output: EncoderOutput, batch: Batch, layer: int) -> Array:
    """States float32 [B, T, D] of tokens, or [B, S, D] of examples for ``cls`` and ``sentence``."""
    hidden = output.hidden[layer]
    if feature == "cls":
        return jnp.take_along_axis(hidden, batch.starts[:, :, None], axis=1)
    if feature == "sentence":
        return mean_states(hidden, batch.segments, batch.starts.shape[1])
    return hidden


def state_mask(feature: str, batch: Batch) -> Array:
    """Which states are real: bool [B, T] of tokens, [B, S] of examples."""
    return batch.weights > 0 if feature in ("cls", "sentence") else batch.segments > 0


def same_example(segments: Array) -> Array:
    """Which pairs of tokens are real and of one example: bool [B, T, T]."""
    return (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]


def pairs(match: Match, heads: int, output: EncoderOutput, batch: Batch, layer: int) -> Array:
    """Float32 [B, heads, T, T]: what is compared of a layer's pairs of tokens.

    Scores before the softmax, as logits of the keys for each query, masked between examples; of
    ``probabilities`` under ``mse`` the probabilities themselves.
    """
    if match.feature in RELATIONS:
        vectors = getattr(output, RELATIONS[match.feature])[layer - 1]
        return relations(vectors, heads, batch.segments)
    scores = output.scores[layer - 1]
    if match.feature == "scores":
        return mean_heads(scores, heads)
    if match.loss == "kl" and heads == scores.shape[1]:
        return scores
    if match.loss == "mse":
        return mean_heads(jax.nn.softmax(scores, axis=-1), heads)
    # The mean of probabilities, in logarithms all along: a masked pair stays near MASKED, so that
    # it has no share at any temperature.
    logs = _grouped(jax.nn.log_softmax(scores, axis=-1), heads)
    return jax.nn.logsumexp(logs, axis=2) - math.log(logs.shape[2])


def mean_heads(x: Array, heads: int) -> Array:
    """[B, H, T, T] to [B, heads, T, T], each the mean of H / heads neighbours."""
    if heads == x.shape[1]:
        return x
    return _grouped(x, heads).mean(axis=2)


def _grouped(x: Array, heads: int) -> Array:
    """[B, H, T, T] to [B, heads, H / heads, T, T]."""
    return x.reshape(x.shape[0], heads, -1, *x.shape[2:])


def relations(vectors: Array, heads: int, segments: Array) -> Array:
    """Scaled products of a layer's queries, keys or values with themselves (Wang et al. 2021).

    The vectors of all attention heads are joined and cut anew into relation heads, so that models
    with other heads and widths can be compared.

    Args:
      vectors: float32 [B, T, H, K].
      heads: R, relation heads, a divisor of H K.
      segments: int32 [B, T].

    Returns:
      float32 [B, R, T, T], before the softmax, masked between examples.
    """
    cut = vectors.reshape(*vectors.shape[:2], heads, -1)  # [B, T, R, HK / R]
    products = jnp.einsum("bqrk,btrk->brqt", cut, cut, preferred_element_type=jnp.float32)
    scaled = products / jnp.sqrt(jnp.float32(cut.shape[-1]))
    return jnp.where(same_example(segments)[:, None], scaled, MASKED)
