"""Labelled rows: every one of a task's rows is read, checked, and used or named."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxbert.data.labels import Answer, Example, read_example, tag_names
from jaxbert.data.records import read_records
from jaxbert.data.tables import BadRow, Record
from jaxbert.data.tagging import find_scheme
from jaxbert.data.tasks import NUMBERS, Task
from jaxbert.errors import UserError

_SHOWN = 5  # bad rows that are named
_TOO_MANY = 0.01  # share of bad rows at which skipping them stops


@dataclasses.dataclass(frozen=True)
class Rows:
    """Labelled rows of one task.

    Attributes:
      texts: N texts; of tagging the words joined by spaces, of spans the questions.
      pairs: N second texts, of spans the contexts; None for a task of single texts.
      labels: of classification int32 [N]; of multi_label float32 [N, C], 0 or 1; of regression
        and similarity float32 [N]; None of tagging and spans.
      words: of tagging, the words of each sentence.
      tags: of tagging, int32 [words] for each sentence, indices into `Task.classes`.
      answers: of spans, those of each question, the first to be trained on; none where the
        context holds none.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray | None
    words: list[tuple[str, ...]] | None = None
    tags: list[np.ndarray] | None = None
    answers: list[tuple[Answer, ...]] | None = None

    @classmethod
    def join(cls, task: Task, examples: Sequence[Example]) -> Rows:
        """The rows of one task's examples."""
        columns = [[e.texts[i] for e in examples] for i in range(len(task.columns))]
        texts, pairs = columns[0], columns[1] if len(columns) > 1 else None
        labels = [example.label for example in examples]
        if task.kind == "tagging":
            return cls(texts, pairs, None, [example.words for example in examples], labels)
        if task.kind == "spans":
            return cls(texts, pairs, None, answers=labels)
        if task.kind == "multi_label":
            marked = np.zeros((len(examples), len(task.labels)), np.float32)
            for row, numbers in enumerate(labels):
                marked[row, list(numbers)] = 1
            return cls(texts, pairs, marked)
        kind = np.float32 if task.kind in NUMBERS else np.int32
        return cls(texts, pairs, np.array(labels, kind))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def single_texts(self) -> Rows:
        """Both texts of each pair as rows of their own, all first ones before all second ones."""
        return Rows([*self.texts, *(self.pairs or ())], None, None)

    @property
    def keys(self) -> list[str]:
        """What tells rows apart: the text, or ``first TAB second``."""
        if self.pairs is None:
            return self.texts
        return [f"{a}\t{b}" for a, b in zip(self.texts, self.pairs, strict=True)]

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of every text and label, in order."""
        digest = hashlib.sha256()
        for texts in (self.texts, self.pairs or (), *(self.words or ())):
            for text in texts:
                digest.update(text.encode() + b"\0")
        for array in (self.labels, *(self.tags or ())):
            if array is not None:
                kind = "<f4" if array.dtype.kind == "f" else "<i4"
                digest.update(array.astype(kind).tobytes())
        for answers in self.answers or ():
            digest.update(repr([tuple(answer) for answer in answers]).encode())
        return digest.hexdigest()

    def take(self, chosen: np.ndarray) -> Rows:
        """Returns the rows where `chosen`, bool [N], is true."""
        ids = np.nonzero(chosen)[0].tolist()

        def some(values: list[Any] | None) -> Any:
            return None if values is None else [values[i] for i in ids]

        labels = None if self.labels is None else self.labels[chosen]
        listed = (some(values) for values in (self.words, self.tags, self.answers))
        return Rows(some(self.texts), some(self.pairs), labels, *listed)

    def sample(self, count: int) -> Rows:
        """Returns `count` rows at most, in their order, that a fixed seed chooses from all."""
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(self))
        return self.take(order < count)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task and its three splits: train on the first, choose on the second, report the third.

    Attributes:
      task: what is known of it.
      train, dev, test: the rows.
      note: how the splits were made.
      rows: what was read: reference -> rows ``read``, ``used`` and ``skipped``, the first skipped
        ones, ``problems``, the ``sha256`` of those used and, of tagging, the ``scheme``.
      overlap: rows of ``dev`` and of ``test`` whose text is one of the training rows', too.
    """

    task: Task
    train: Rows
    dev: Rows
    test: Rows
    note: str
    rows: dict[str, dict[str, Any]]
    overlap: dict[str, int]

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers: `Task.classes`."""
        return self.task.classes

    @property
    def metric(self) -> str:
        """What selects."""
        return self.task.metric


def load_task(task: Task, data_dir: str = "") -> TaskData:
    """Loads a task and checks every row of it.

    Args:
      task: what to read.
      data_dir: the TFDS folder; "" is ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      UserError: data that is not there, a row that cannot be used, or one class only to train on.
    """
    record: dict[str, dict[str, Any]] = {}

    def read(reference: str) -> Rows:
        rows, record[reference] = _read(task, reference, data_dir)
        return rows

    train = read(task.source)
    part = split_parts(train)
    notes, kept = [], np.ones(len(train), bool)
    splits = {}
    for split, reference, tenth in (("dev", task.dev, 8), ("test", task.test, 9)):
        if reference:
            splits[split] = read(reference)
            notes.append(f"{split}: {reference}")
        else:
            splits[split] = train.take(part == tenth)
            kept &= part != tenth
            notes.append(f"{split}: the tenth of {task.source} chosen by a hash of the text")
    whole, train = train, train.take(kept)
    notes.append(f"train: {'all' if kept.all() else 'the rest'} of {task.source}")
    for split, rows in (("train", train), *splits.items()):
        if not len(rows):
            raise _empty(task, split, whole)
    _check_labels(task, train)
    seen = set(train.keys)
    overlap = {split: sum(key in seen for key in rows.keys) for split, rows in splits.items()}
    note = "; ".join(notes)
    return TaskData(task, train, splits["dev"], splits["test"], note, record, overlap)


def _empty(task: Task, split: str, whole: Rows) -> UserError:
    """Why a split has no rows: there are none, or the tenths of the source leave it none."""
    given = {"train": task.source, "dev": task.dev, "test": task.test}
    cut = not (task.dev and task.test) if split == "train" else not given[split]
    if not (cut and len(whole)):
        return UserError(f"the {split} split is empty", given[split], "give more rows")
    key = "text" if whole.answers is None else "context"
    part = f"in the tenth that a hash of the {key} chooses"
    if split == "train":
        part = f"left beside the tenths that a hash of the {key} chooses"
    count = f"{len(whole)} rows (different {key}s: {len(set(_split_keys(whole)))})"
    what = f"the {split} split is empty: of {count} none is {part}"
    return UserError(what, task.source, f"give more {key}s, or name task.dev and task.test")


def _check_labels(task: Task, train: Rows) -> None:
    """Raises a UserError if there is nothing to tell apart in the training rows."""
    only, fix = "", "give rows of at least two classes"
    if train.tags is not None:
        tags = np.unique(np.concatenate(train.tags))
        only = "" if len(tags) > 1 else f"the tag {task.classes[tags[0]]!r} on every word"
    elif train.answers is not None:
        only = "" if any(train.answers) else "no answer"
        fix = "give questions with answers"
    elif train.labels is not None and (train.labels == train.labels[:1]).all():
        first = train.labels[0]
        if task.kind == "classification":
            only = f"the label {task.labels[int(first)]!r}"
        elif task.kind in NUMBERS:
            only, fix = f"the label {first:g}", "give rows of at least two values"
        else:
            only = "the same labels"
    if only:
        raise UserError(f"all {len(train)} training rows have {only}", task.source, fix)


def _read(task: Task, reference: str, data_dir: str) -> tuple[Rows, dict[str, Any]]:
    """The rows of a reference that can be used, and what was read."""

    def records() -> Iterator[Record | BadRow]:
        return read_records(task, reference, data_dir)

    described = {}
    if task.kind == "tagging":
        if not task.scheme:
            tags = (tag_names(task, record) for record in records())
            task = dataclasses.replace(task, scheme=find_scheme(filter(None, tags)))
        described["scheme"] = task.scheme
    examples: list[Example] = []
    bad: list[BadRow] = []  # the first of them
    read = 0
    for record in records():
        read += 1
        example = read_example(task, record)
        if isinstance(example, Example):
            examples.append(example)
        else:
            bad += [example] * (len(bad) < _SHOWN)
    skipped = read - len(examples)
    if skipped and (task.on_bad_row == "error" or skipped > _TOO_MANY * read):
        more, fix = f"{skipped} of {read} rows cannot be used", bad[0].fix
        if task.on_bad_row == "error":
            more, fix = more * (skipped > 1), f"{fix}, or set task.on_bad_row=skip"
        else:
            more += f", and {100 * _TOO_MANY:g} % may be skipped"
        raise UserError(bad[0].what + f" ({more})" * bool(more), bad[0].where, fix)
    rows = Rows.join(task, examples)
    return rows, {
        "read": read,
        "used": len(examples),
        "skipped": skipped,
        "problems": [f"{row.what}, {row.where}" for row in bad],
        "sha256": rows.sha256,
        **described,
    }


def _split_keys(rows: Rows) -> list[str]:
    """What is hashed of each row to choose its split."""
    return rows.keys if rows.answers is None else rows.pairs or []


def split_parts(rows: Rows) -> np.ndarray:
    """Returns int64 [N], a stable tenth (0 to 9) for each row.

    The first eight bytes, big-endian, of the SHA-256 of the UTF-8 text, modulo 10; a pair is
    hashed as ``first TAB second``, of spans the context alone. Repeated texts fall into the same
    split, and so do all questions on one context.
    """
    hashes = (hashlib.sha256(key.encode()).digest() for key in _split_keys(rows))
    parts = (int.from_bytes(digest[:8], "big") % 10 for digest in hashes)
    return np.fromiter(parts, np.int64, len(rows))
