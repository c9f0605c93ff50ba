"""A model's logits for a whole data set, and what they say of its rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import numpy as np

from jaxbert.batch import Batch
from jaxbert.data.encoding import encode_rows, encode_windows
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.rows import Rows, TaskData
from jaxbert.data.tasks import SIMILARITY
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation import predictions
from jaxbert.evaluation.embeddings import ENCODER, embedder, read_cosines
from jaxbert.evaluation.predictions import Predictions
from jaxbert.models.bert import BertConfig, Params, scored_groups
from jaxbert.objectives.finetuning import classify


@functools.cache
def predictor(config: BertConfig) -> Callable[[Params, Batch], jax.Array]:
    """The jitted (params, batch) -> logits of a model's head, dropout off.

    The same function for the same configuration: evaluating again compiles nothing.
    """
    return jax.jit(lambda params, batch: classify(config, params, batch))


def predict(config: BertConfig, params: Params, batches: PackedBatches) -> np.ndarray:
    """The head's logits float32 [items, C], example after example.

    An example has one item; of ``tagging`` as many as it has marks, of ``spans`` as pieces.

    Args:
      config: the model.
      params: its groups; others than a prediction reads are ignored.
      batches: finite, each example once.

    Raises:
      UserError: a logit is not finite.
    """
    params = {group: params[group] for group in scored_groups(config)}
    return collect(predictor(config), params, batches, config.head)


def collect(
    run: Callable[[Any, Batch], jax.Array], params: Any, batches: PackedBatches, kind: str
) -> np.ndarray:
    """What a function says of every item, float32 [items, C], example after example.

    Args:
      run: jitted (params, batch) -> float32 [B, X, C]: X are the slots of a row, of ``tagging``
        its places, of ``spans`` its positions.
      params: what it reads.
      batches: finite, each example once.
      kind: of the task.

    Raises:
      UserError: a value is not finite.
    """
    # Nothing waits for a result before every batch is under way.
    found, owners = [], []
    for step in range(len(batches)):
        batch = batches[step]
        found.append(run(params, batch))
        owners.append(_owners(kind, batch, batches.example_ids(step)).ravel())
    owner = np.concatenate(owners)
    values = np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in found])
    values, owner = values[owner >= 0], owner[owner >= 0]
    bad = np.unique(owner[~np.isfinite(values).all(axis=1)])
    if bad.size:
        raise UserError(
            f"the predictions for {bad.size} of {len(np.unique(owner))} examples are not finite",
            f"first at example {bad[0]}",
            "train again with a lower learning rate",
        )
    # Stable: the items of an example stand in their order in its row.
    return values[np.argsort(owner, kind="stable")]


def _owners(kind: str, batch: Batch, ids: np.ndarray) -> np.ndarray:
    """Which example each item belongs to, -1 for none; ids int64 [B, S]."""
    if kind == "tagging":
        slots = np.take_along_axis(batch.segments, batch.places, axis=1)
        slots = np.where(batch.targets >= 0, slots, 0)
    elif kind == "spans":
        slots = batch.segments
    else:
        return ids
    with_none = np.pad(ids, ((0, 0), (1, 0)), constant_values=-1)
    return np.take_along_axis(with_none, slots, axis=1)


def all_answered(train: Rows) -> bool:
    """Whether every question that a model learns from has an answer, so that it is to give one."""
    return bool(train.answers) and all(train.answers or ())


def encode_for(
    kind: str,
    tokenizer: Tokenizer,
    rows: Rows,
    *,
    max_length: int,
    stride: int = 0,
    always: bool = False,
) -> tuple[Examples, Callable[[np.ndarray], Predictions]]:
    """Rows as a model of a kind of task reads them, and how its logits for them are read.

    Arguments are those of `RowPredictor`, and what is returned its ``examples`` and ``read``.
    """
    if kind == "spans":
        windows = encode_windows(tokenizer, rows, max_length=max_length, stride=stride)
        return windows.examples, lambda x: predictions.read_answers(x, windows, always=always)
    texts = rows.single_texts if kind == SIMILARITY else rows
    examples = encode_rows(tokenizer, texts, max_length=max_length)
    if kind == "tagging":
        return examples, lambda logits: predictions.read_tags(logits, rows, examples)
    return examples, _READERS[kind]


class RowPredictor:
    """Predicts the same rows with one set of parameters after the other.

    Args:
      kind: of the task; a model's head is of the same, and not read for ``similarity``.
      tokenizer: theirs.
      rows: of a task of that kind.
      max_length: word pieces, as in ``encode_rows``.
      batch_size: examples a batch.
      stride: of spans, as in ``Task``.
      always: of spans, True where every question has an answer.

    Attributes:
      examples: the rows as they were encoded.
      batches: these, packed, each once.
      read: from logits as `predict` gives them, of ``similarity`` from the embeddings of all first
        texts and then all second ones, to what they say of the rows.
    """

    def __init__(
        self,
        kind: str,
        tokenizer: Tokenizer,
        rows: Rows,
        *,
        max_length: int,
        batch_size: int = 64,
        stride: int = 0,
        always: bool = False,
    ) -> None:
        self._kind = kind
        self.examples, self.read = encode_for(
            kind, tokenizer, rows, max_length=max_length, stride=stride, always=always
        )
        self.batches = PackedBatches(
            self.examples,
            batch_size=batch_size,
            row_length=max_length,
            seed=0,
            shuffle=False,
            epochs=1,
        )

    @classmethod
    def of(
        cls,
        data: TaskData,
        rows: Rows,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int = 64,
    ) -> Self:
        """One for rows of a task, of which models learn from the training rows."""
        return cls(
            data.task.kind,
            tokenizer,
            rows,
            max_length=max_length,
            batch_size=batch_size,
            stride=data.task.stride,
            always=all_answered(data.train),
        )

    def __call__(
        self, config: BertConfig, params: Params, order: Sequence[int] | None = None
    ) -> Predictions:
        """What a model says of the rows.

        Args:
          config: the model.
          params: its groups.
          order: which of its classes is each of the task's; None if they are the same.
        """
        if self._kind == SIMILARITY:
            encoder = {group: params[group] for group in ENCODER}
            return self.read(collect(embedder(config), encoder, self.batches, self._kind))
        logits = predict(config, params, self.batches)
        return self.read(logits if order is None else logits[:, list(order)])


_READERS = {
    "classification": predictions.read_classes,
    "multi_label": predictions.read_labels,
    "regression": predictions.read_numbers,
    SIMILARITY: read_cosines,
}
