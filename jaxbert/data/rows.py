"""Labelled rows: every one of a task's rows is read, checked, and used or named."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxbert.data.glue import FILES, read_glue
from jaxbert.data.packing import Examples
from jaxbert.data.sources import check_features, open_tfds, read_movie_reviews
from jaxbert.data.tables import (
    LONGEST_LINE,
    READERS,
    BadRow,
    Record,
    listing,
    matching_files,
    shorten,
)
from jaxbert.data.tasks import TASKS, Task
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError

_SHOWN = 5  # bad rows that are named
_TOO_MANY = 0.01  # share of bad rows at which skipping them stops


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

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of every text and label, in order."""
        digest = hashlib.sha256()
        for texts in (self.texts, self.pairs or ()):
            for text in texts:
                digest.update(text.encode() + b"\0")
        digest.update(self.labels.astype("<i4").tobytes())
        return digest.hexdigest()

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
      rows: what was read: reference -> rows ``read``, ``used`` and ``skipped``, the first skipped
        ones, ``problems``, and the ``sha256`` of those used.
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
    places = {"train": task.source, "dev": task.dev, "test": task.test}
    for split, rows in (("train", train), *splits.items()):
        if not len(rows):
            where = places[split] or task.source
            raise UserError(f"the {split} split is empty", where, "give more rows")
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
    r"(?P<kind>\w+):(?P<place>[^#]*?)(#(?P<split>\w+))?"
    r"(\[(?:(?P<low>[0-9]{1,3})%)?:(?:(?P<high>[0-9]{1,3})%)?\])?"
)
_SPLIT = ("tfds", "glue")  # the kinds that have splits
_KINDS = ("pkg", *_SPLIT, *READERS)


def _read(task: Task, reference: str, data_dir: str) -> tuple[Rows, dict[str, Any]]:
    """The rows of a reference that can be used, and what was read."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or match["kind"] not in _KINDS:
        fix = "write KIND:PLACE, KIND:PLACE#SPLIT or KIND:PLACE[A%:B%] with a KIND out of "
        raise UserError(f"unknown source {reference!r}", "section task", fix + ", ".join(_KINDS))
    kind, place, split = match["kind"], match["place"], match["split"] or ""
    if split and kind not in _SPLIT:
        fix = "name another file, or a part of its rows as [A%:B%]"
        raise UserError(f"{kind}: has no splits such as {split!r}", reference, fix)
    low, high = int(match["low"] or 0), int(match["high"] or 100)
    if not 0 <= low < high <= 100:
        raise UserError(f"no part of the rows lies in [{low}%:{high}%]", reference, "give A < B")

    def records() -> Iterator[Record | BadRow]:
        return _records(task, kind, place, split, data_dir)

    first, last = 0, None
    if (low, high) != (0, 100):
        total = sum(1 for _ in records())
        first, last = total * low // 100, total * high // 100
    texts: list[list[str]] = [[] for _ in task.columns]
    labels: list[int] = []
    bad: list[BadRow] = []  # the first of them
    read = 0
    for record in itertools.islice(records(), first, last):
        read += 1
        example = _example(task, record)
        if isinstance(example, BadRow):
            bad += [example] * (len(bad) < _SHOWN)
            continue
        for column, text in zip(texts, example[0], strict=True):
            column.append(text)
        labels.append(example[1])
    skipped = read - len(labels)
    if skipped and (task.on_bad_row == "error" or skipped > _TOO_MANY * read):
        more = f" ({skipped} of {read} rows cannot be used)" if skipped > 1 else ""
        skip = ", or set task.on_bad_row=skip" * (task.on_bad_row == "error")
        raise UserError(bad[0].what + more, bad[0].where, bad[0].fix + skip)
    rows = Rows(texts[0], texts[1] if len(texts) > 1 else None, np.array(labels, np.int32))
    return rows, {
        "read": read,
        "used": len(labels),
        "skipped": skipped,
        "problems": [f"{row.what}, {row.where}" for row in bad],
        "sha256": rows.sha256,
    }


def _records(
    task: Task, kind: str, place: str, split: str, data_dir: str
) -> Iterator[Record | BadRow]:
    """Every row of a place, whatever it is stored in."""
    columns = [*task.columns, task.label]
    if kind == "pkg":
        if not place.startswith("movie-reviews/") or len(task.columns) > 1:
            fix = (
                "write pkg:movie-reviews/rotten_tomatoes or pkg:movie-reviews/imdb, of single texts"
            )
            raise UserError(f"no rows for columns {', '.join(task.columns)}", f"pkg:{place}", fix)
        texts, labels = read_movie_reviews(place.removeprefix("movie-reviews/"))
        for index, (text, label) in enumerate(zip(texts, labels.tolist(), strict=True)):
            values = {task.columns[0]: text, task.label: label}
            yield Record(f"pkg:{place}: row {index}", values)
    elif kind == "tfds":
        yield from _tfds_records(task, place, split or "train", data_dir)
    elif kind == "glue":
        if task.name not in TASKS or task.name not in FILES:
            known = ", ".join(name for name in FILES if name in TASKS)
            fix = f"name one of {known}, or read the file with tsv:"
            what = f"{task.name!r} is no task of GLUE that is known"
            raise UserError(what, "config key task.name", fix)
        yield from read_glue(place, task.name, split or "train", columns)
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
        values = {key: example[key] for key in (*task.columns, task.label)}
        label = values[task.label]
        if names is not None and 0 <= label < len(names):
            values[task.label] = names[label]
        for key, value in values.items():
            if isinstance(value, bytes):
                values[key] = value.decode("utf-8", "surrogateescape")  # refused with its row
        yield Record(f"tfds:{name} {split}: row {index}", values)


def _example(task: Task, record: Record | BadRow) -> tuple[tuple[str, ...], int] | BadRow:
    """A row's texts and label number, or why it has none."""
    if isinstance(record, BadRow):
        return record
    texts = []
    for column in task.columns:
        text = record.values[column]
        where = f"{record.where}:{column}"
        if not isinstance(text, str):
            kind = "nothing" if text is None else f"a {type(text).__name__}"
            return BadRow(f"{kind} instead of text", where)
        if not text.strip():
            return BadRow("empty text", where)
        if "\0" in text:
            return BadRow("a NUL character", where)
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            return BadRow(f"{text[error.start]!r} is no character of UTF-8", where)
        if size > LONGEST_LINE:
            return BadRow(f"the text is longer than {LONGEST_LINE:,} bytes", where)
        texts.append(text)
    number = _label_number(record.values[task.label], task.labels)
    if number is not None:
        return tuple(texts), number
    label = record.values[task.label]
    hint = " (-1 marks the rows of GLUE's test splits)" if str(label) == "-1" else ""
    return BadRow(
        f"unknown label {shorten(label)}{hint}",
        f"{record.where}:{task.label}",
        f"the labels are {listing(task.labels)}",
    )


def _label_number(label: Any, labels: Sequence[str]) -> int | None:
    """The number of a label given by name or by number; None if there is no such label.

    A number or a truth value is a name first, as JSON writes it. It is a position only if no name
    is a number, and a truth value only if none is ``true`` or ``false`` either: a 4 among 1 to 5
    stars is the fourth class, and never the fifth.
    """
    truth = isinstance(label, (bool, np.bool_))
    name = str(label).lower() if truth else str(label)
    if not isinstance(label, (str, int, np.integer, np.bool_)):
        return None
    if name in labels:
        return labels.index(name)
    if any(re.fullmatch(r"[+-]?[0-9]+", known) for known in labels):
        return None
    if truth and not {"true", "false"} & set(labels):
        return int(label)
    known = re.fullmatch(r"[0-9]{1,9}", name)
    return int(name) if known and int(name) < len(labels) else None


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
