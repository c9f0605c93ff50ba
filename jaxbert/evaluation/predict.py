"""A model's logits for a whole data set, and what they say of its rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import jax
import numpy as np

from jaxbert.batch import Batch
from jaxbert.data.encoding import encode_rows, encode_windows
from jaxbert.data.examples import bounds, stretches
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.rows import Rows, TaskData
from jaxbert.data.tasks import SIMILARITY, Task
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation import predictions
from jaxbert.evaluation.embeddings import ENCODER, embedder, read_cosines
from jaxbert.evaluation.predictions import Predictions
from jaxbert.interop.huggingface import Model
from jaxbert.models.bert import BertConfig, Params, scored_groups
from jaxbert.objectives.finetuning import classify

SHORTEST = 16  # word pieces of the least row


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
    params = jax.device_put(params)  # once: what is on the host would go there with every batch
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


def collect_by_width(
    run: Callable[[Any, Batch], jax.Array],
    params: Any,
    examples: Examples,
    kind: str,
    longest: int,
    cut: Callable[[np.ndarray, int], Iterable[tuple[np.ndarray, int]]],
) -> np.ndarray:
    """What `collect` says of examples that stand alone in rows, which have one of a few widths.

    Widths are 16 word pieces, twice as many, and so on, and at last ``longest``: what was compiled
    for some examples serves others.

    Args:
      run: as of `collect`.
      params: what it reads.
      examples: one or more.
      kind: of the task.
      longest: word pieces; no example has more.
      cut: (ids int [n] of the examples of a width, the width) -> parts of them, and the rows of the
        batches of each.

    Raises:
      UserError: a value is not finite.
    """
    widths = [SHORTEST]
    while widths[-1] < longest:
        widths.append(2 * widths[-1])
    widths[-1] = longest
    sizes = np.ones(len(examples), np.int64)
    if kind == "spans":
        sizes = examples.lengths
    elif examples.marks is not None:
        sizes = np.diff(examples.marks.offsets)
    starts, found = bounds(sizes), np.zeros((0, 0), np.float32)
    chosen = np.searchsorted(widths, examples.lengths)
    for number in np.unique(chosen):
        for ids, rows in cut(np.flatnonzero(chosen == number), widths[number]):
            batches = PackedBatches(
                examples.gather(ids),
                batch_size=rows,
                row_length=widths[number],
                seed=0,
                packing=False,
                shuffle=False,
                epochs=1,
            )
            values = collect(run, params, batches, kind)
            if not found.size:
                found = np.empty((starts[-1], values.shape[1]), np.float32)
            found[stretches(starts[ids], sizes[ids])] = values
    return found


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


def label_order(model: Model, task: Task) -> list[int] | None:
    """Which of the model's classes is each of the task's, by name; None where they have none.

    Of similarity, any model will do: its head, if it has one, is not read.

    Raises:
      UserError: the model has no classifier or one of another kind, or the names are not the same
        set. ``LABEL_0``, ..., which nobody named, are taken by their places.
    """
    fix = "give a model that was fine-tuned on this task"
    mine, theirs = model.labels, task.classes
    if task.kind == SIMILARITY:
        return None
    if "classifier" not in model.params:
        raise UserError("the model has no classifier", f"{model.folder}", fix)
    if model.config.head != task.kind:
        what = f"the model is for {model.config.head}, and {task.name} is {task.kind}"
        raise UserError(what, f"{model.folder}/config.json", fix)
    if len(mine) == len(theirs) and model.unnamed:
        return list(range(len(theirs))) or None
    if (order := model.class_order(theirs)) is not None:
        return order
    raise UserError(
        f"the model's labels {', '.join(mine)} are not the task's {', '.join(theirs)}",
        f"{model.folder}/config.json, id2label",
        fix,
    )


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
