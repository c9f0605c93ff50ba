"""Labelled text: which columns, labels and splits a task has, checked before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from jaxbert.data.packing import Examples
from jaxbert.data.sources import check_features, open_tfds, read_movie_reviews
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """What jaxbert knows of a task before it reads a row.

    Attributes:
      name: as the user writes it.
      source: ``movie-reviews/SOURCE`` or ``tfds:NAME/CONFIG``.
      columns: the text column, or the two of a pair.
      labels: label names; the label of a row is an index into them.
      metric: what is reported.
      test_split: the official TFDS split that is reported; its test split has no labels.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str = "accuracy"
    test_split: str = "validation"


_ENTAILMENT = ("entailment", "not_entailment")
_SENTIMENT = ("negative", "positive")
TASKS = {
    task.name: task
    for task in (
        Task("rotten_tomatoes", "movie-reviews/rotten_tomatoes", ("text",), _SENTIMENT),
        Task("sst2", "tfds:glue/sst2", ("sentence",), _SENTIMENT),
        Task("cola", "tfds:glue/cola", ("sentence",), ("unacceptable", "acceptable")),
        Task(
            "mrpc",
            "tfds:glue/mrpc",
            ("sentence1", "sentence2"),
            ("not_equivalent", "equivalent"),
        ),
        Task(
            "qqp",
            "tfds:glue/qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
        ),
        Task("qnli", "tfds:glue/qnli", ("question", "sentence"), _ENTAILMENT),
        Task("rte", "tfds:glue/rte", ("sentence1", "sentence2"), _ENTAILMENT),
        Task(
            "mnli",
            "tfds:glue/mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            test_split="validation_matched",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Labelled rows.

    Attributes:
      texts: N texts.
      pairs: N second texts, or None for a task of single texts.
      labels: int32 [N].
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: np.ndarray) -> Rows:
        """Returns the rows where `chosen`, bool [N], is true."""
        ids = np.nonzero(chosen)[0].tolist()
        pairs = None if self.pairs is None else [self.pairs[i] for i in ids]
        return Rows([self.texts[i] for i in ids], pairs, self.labels[chosen])


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task and its three splits: train on the first, choose on the second, report the third.

    Attributes:
      name: of the task.
      labels: label names, in the order of the label numbers.
      train, dev, test: the rows.
      metric: what is reported.
      note: how the splits were made.
    """

    name: str
    labels: tuple[str, ...]
    train: Rows
    dev: Rows
    test: Rows
    metric: str
    note: str


def load_task(name: str, data_dir: str = "") -> TaskData:
    """Loads a task and checks every row of it.

    Args:
      name: a key of `TASKS`.
      data_dir: the TFDS folder of the GLUE tasks; "" is ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``.

    Raises:
      UserError: an unknown task, data that is not there, an empty text, a label out of range, or
        one class only to train on.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}", "task", f"choose from {', '.join(TASKS)}")
    task = TASKS[name]
    if task.source.startswith("tfds:"):
        official = _read_tfds(task, "train", data_dir)
        test = _read_tfds(task, task.test_split, data_dir)
        part = split_parts(official)
        train, dev = official.take(part != 8), official.take(part == 8)
        note = (
            f"test: the official {task.test_split} split (the official test split has no labels); "
            "dev: the tenth of the official train split chosen by a hash of the text; "
            "train: the rest of it"
        )
    else:
        texts, labels = read_movie_reviews(task.source.removeprefix("movie-reviews/"))
        rows = Rows(texts, None, labels)
        check_rows(rows, task.labels, task.source)
        part = split_parts(rows)
        train, dev, test = rows.take(part < 8), rows.take(part == 8), rows.take(part == 9)
        note = "80/10/10 by a hash of the text; the source has one split"
    for split, rows in (("train", train), ("dev", dev), ("test", test)):
        if not len(rows):
            raise UserError(f"the {split} split is empty", task.source, "give more rows")
    if len(np.unique(train.labels)) < 2:
        only = task.labels[int(train.labels[0])]
        raise UserError(
            f"all {len(train)} training rows have the label {only!r}",
            task.source,
            "give rows of at least two classes",
        )
    return TaskData(name, task.labels, train, dev, test, task.metric, note)


def _read_tfds(task: Task, split: str, data_dir: str) -> Rows:
    """Reads and checks a split of a task from files that TFDS has prepared."""
    name = task.source.removeprefix("tfds:")
    source = open_tfds(name, split, data_dir)
    check_features(name, source, [*task.columns, "label"])
    names = getattr(source.dataset_info.features["label"], "names", None)
    if names is not None and tuple(names) != task.labels:
        raise UserError(
            f"its labels are {', '.join(names)}",
            task.source,
            f"{task.name} needs {', '.join(task.labels)}, in this order",
        )
    examples = list(source)
    columns = [[example[c].decode("utf-8") for example in examples] for c in task.columns]
    labels = np.array([example["label"] for example in examples], np.int32)
    rows = Rows(columns[0], columns[1] if len(columns) > 1 else None, labels)
    check_rows(rows, task.labels, f"{task.source} {split}")
    return rows


def split_parts(rows: Rows) -> np.ndarray:
    """Returns int64 [N], a stable tenth (0 to 9) for each row.

    The first eight bytes, big-endian, of the SHA-256 of the UTF-8 text, modulo 10; a pair is
    hashed as ``first TAB second``. Repeated texts fall into the same split.
    """
    if rows.pairs is None:
        keys = rows.texts
    else:
        keys = [f"{a}\t{b}" for a, b in zip(rows.texts, rows.pairs, strict=True)]
    parts = (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10 for key in keys)
    return np.fromiter(parts, np.int64, len(keys))


def check_rows(rows: Rows, labels: Sequence[str], where: str) -> None:
    """Raises a UserError for the first row (from 0) with an empty text or a label out of range."""
    for texts in (rows.texts, rows.pairs or ()):
        for index, text in enumerate(texts):
            if not text.strip():
                raise UserError("empty text", f"{where}: row {index}", "remove the row")
    wrong = (rows.labels < 0) | (rows.labels >= len(labels))
    if wrong.any():
        index = int(wrong.argmax())
        hint = " (-1 marks the rows of GLUE's test splits)" if rows.labels[index] == -1 else ""
        known = ", ".join(f"{i} {label}" for i, label in enumerate(labels))
        raise UserError(
            f"label {rows.labels[index]}{hint} in {int(wrong.sum())} rows",
            f"{where}: the first is row {index}",
            f"the labels are {known}",
        )


def encode_rows(tokenizer: Tokenizer, rows: Rows, *, max_length: int) -> Examples:
    """Encodes rows as [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

    A pair that is too long loses pieces of its longer text, of the second when both are equally
    long (`_truncate_seq_pair` of google-research/bert). `truncated` counts the rows cut.

    Raises:
      UserError: a `max_length` that leaves no room for the text.
    """
    specials = 2 if rows.pairs is None else 3
    budget = max_length - specials
    if budget < specials - 1:
        raise UserError(
            f"max_length is {max_length}", "max_length", f"give at least {2 * specials - 1}"
        )
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    firsts = tokenizer.encode(rows.texts)
    examples: list[np.ndarray] = []
    seconds = np.empty(len(rows), np.int32)
    truncated = 0
    if rows.pairs is None:
        for index, first in enumerate(firsts):
            truncated += len(first) > budget
            examples.append(np.concatenate([cls, first[:budget], sep]))
            seconds[index] = len(examples[-1])
    else:
        others = tokenizer.encode(rows.pairs)
        for index, (first, second) in enumerate(zip(firsts, others, strict=True)):
            truncated += len(first) + len(second) > budget
            a, b = pair_lengths(len(first), len(second), budget)
            examples.append(np.concatenate([cls, first[:a], sep, second[:b], sep]))
            seconds[index] = a + 2
    return Examples.join(examples, seconds=seconds, labels=rows.labels, truncated=truncated)


def pair_lengths(first: int, second: int, budget: int) -> tuple[int, int]:
    """Returns what is left of two lengths when the longer one is cut until both fit in `budget`.

    The closed form of taking one piece at a time from the longer text, from the second at a tie.
    """
    if first + second <= budget:
        return first, second
    half = budget // 2
    if second <= half:
        return budget - second, second
    if first <= budget - half:
        return first, budget - first
    return budget - half, half
