"""The batch: the one type that travels from the data to the objectives."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

Array = Any  # a NumPy array on the host, a jax.Array on a device

# Added to the attention scores of masked pairs: large enough for a probability of exactly zero in
# float32, finite so that a fully masked query (a padding position) yields no NaN.
MASKED = -1e9

# The axes of a mesh along which the rows of a batch lie.
ROWS = ("data", "fsdp")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed examples, static in shape.

    One example a row is the special case S = 1. B rows, T positions a row, S example slots a row.

    Attributes:
      tokens: int32 [B, T], word piece ids.
      segments: int32 [B, T], 0 at padding, k at the row's k-th packed example (from 1).
      token_types: int32 [B, T], 0 in the first text of an example, 1 in the second.
      positions: int32 [B, T], position within the example, from 0.
      starts: int32 [B, S], where each packed example's [CLS] stands; 0 for an empty slot.
      labels: int32 or float32 [B, S, ...], 0 for an empty slot; None for unlabelled text.
      weights: float32 [B, S], 1 for an example, 0 for an empty slot.
      places: int32 [B, M], positions in the row of pieces that have a label of their own (a word
        to tag, a piece that was masked); 0 for none. None where no piece has one.
      targets: int32 [B, M], those labels; -1 for none.
      taught: what a frozen teacher has said of these examples, so that none need be asked: a
        mapping from ``logits`` to float32 [B, S, C] ([B, M, C] of tagging, [B, T, 2] of spans),
        ``pooled`` to [B, S, D], ``hidden/3`` to [B, T, D], ``scores/2`` to [B, H, T, T], and
        ``queries/2``, ``keys/2`` and ``values/2`` to [B, T, H, K]; hidden states are counted from
        the embeddings (0), layers from 0. None where nothing was asked before.
    """

    tokens: Array
    segments: Array
    token_types: Array
    positions: Array
    starts: Array
    labels: Array
    weights: Array
    places: Array = None
    targets: Array = None
    taught: Any = None
