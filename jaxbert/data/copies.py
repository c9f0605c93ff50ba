"""Copies of a task's rows: what may change in a row, and a row as a file holds it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbert.data.augmentation import Replacement
from jaxbert.data.labels import Answer
from jaxbert.data.rows import Rows
from jaxbert.data.tasks import NUMBERS, Task
from jaxbert.data.wording import Sentence, Wording
from jaxbert.errors import UserError
from jaxbert.files import unsealed

KEPT = "augmented.jsonl"  # in the cache of a run


def sentences_of(wording: Wording, rows: Rows, index: int) -> list[Sentence]:
    """The texts of a row, in the order of its columns.

    Of tagging, each word stays one, so that its tag stays its own. Of spans, no word that an answer
    touches may be replaced.
    """
    if rows.words is not None:
        return [wording.sentence(rows.words[index])]
    if rows.pairs is None:
        return [wording.cut(rows.texts[index])]
    answers = () if rows.answers is None else rows.answers[index]
    protected = [(answer.start, answer.start + len(answer.text)) for answer in answers]
    return [wording.cut(rows.texts[index]), wording.cut(rows.pairs[index], protected)]


def record_of(
    task: Task,
    rows: Rows,
    index: int,
    sentences: Sequence[Sentence],
    replaced: Sequence[Sequence[Replacement]],
) -> dict[str, Any]:
    """A copy of a row: its columns and its label under their names, as JSON holds them.

    Args:
      task: of the rows.
      rows: of one task.
      index: the row that is copied.
      sentences: its texts.
      replaced: what is replaced in each of them; nothing for the row itself.
    """
    copies = [_replace(s, changes) for s, changes in zip(sentences, replaced, strict=True)]
    if rows.tags is not None:
        tags = [task.classes[tag] for tag in rows.tags[index]]
        return {task.columns[0]: copies[0], task.label: tags}
    values: dict[str, Any] = {
        column: "".join(parts) for column, parts in zip(task.columns, copies, strict=True)
    }
    if rows.answers is not None:
        moved = [_move(answer, sentences[1], replaced[1]) for answer in rows.answers[index]]
        values[task.label] = {
            "text": [answer.text for answer in moved],
            "answer_start": [answer.start for answer in moved],
        }
    elif rows.labels is not None:
        values[task.label] = label_of(task, rows.labels[index])
    return values


def label_of(task: Task, label: Any) -> Any:
    """A label as a file holds it: a name, a list of names, or a number.

    Args:
      task: of classification, multi_label, regression or similarity.
      label: as `Rows.labels` has it.
    """
    if task.kind in NUMBERS:
        return float(str(label))  # as short as float32 allows
    if task.kind == "multi_label":
        return [name for name, marked in zip(task.labels, label, strict=True) if marked]
    return task.labels[int(label)]


def changes_of(
    columns: Sequence[str],
    sentences: Sequence[Sentence],
    replaced: Sequence[Sequence[Replacement]],
    words: bool,
) -> list[tuple[str, int, str, str]]:
    """What was replaced: column, where, the old word, the new one.

    Args:
      columns: of the texts.
      sentences: the texts of the row.
      replaced: what is replaced in each of them.
      words: True for sentences of words: then places count words, else characters of the original.
    """
    return [
        (
            column,
            change.part if words else sentence.start(change.part),
            sentence.parts[change.part],
            change.new,
        )
        for column, sentence, changes in zip(columns, sentences, replaced, strict=True)
        for change in changes
    ]


def written(task: Task) -> Task:
    """The task as the file of its copies has it: tags are written in IOB2, whatever they were."""
    if task.kind == "tagging" and task.scheme != "none":
        return dataclasses.replace(task, scheme="IOB2")
    return task


def record_path(path: Path) -> Path:
    """Where it stands what a file of copies was made from, how far it is, and its SHA-256."""
    return path.with_name(path.name + ".json")


def partial_path(path: Path) -> Path:
    """The file of copies while it grows."""
    return path.with_name(path.name + ".part")


def read_record(path: Path) -> dict[str, Any]:
    """What the record beside a file of copies holds.

    Raises:
      UserError: it is not what was written.
      OSError: it cannot be read.
    """
    where, fix = record_path(path), f"remove it and {path.name}"
    try:
        record = unsealed(where.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("not a record of augmentation", str(where), fix) from error
    if record is None:
        raise UserError("it is not what was written", str(where), fix)
    return record


def check_copies(path: Path, record: Mapping[str, Any]) -> tuple[Path, bytes]:
    """The file of copies that is there, whole or growing, and as much of it as its record knows.

    Args:
      path: the file's name once it is whole.
      record: what stands beside it.

    Raises:
      UserError: that is not what was written.
      OSError: it cannot be read.
    """
    partial = partial_path(path)
    held = path if record["finished"] or not partial.exists() else partial
    data = held.read_bytes() if held.exists() else b""
    if not record["finished"]:  # what stands behind was not written to its end
        data = data[: record["bytes"]]
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        fix = f"remove it and {record_path(path).name}, and run again"
        raise UserError("it is not what was written", str(held), fix)
    return held, data


def _replace(sentence: Sentence, changes: Sequence[Replacement]) -> list[str]:
    parts = list(sentence.parts)
    for change in changes:
        parts[change.part] = change.new
    return parts


def _move(answer: Answer, sentence: Sentence, changes: Sequence[Replacement]) -> Answer:
    """The answer where it stands in a copy, of which the answer itself is a part unchanged."""
    shift = sum(
        len(change.new) - len(sentence.parts[change.part])
        for change in changes
        if sentence.start(change.part) < answer.start
    )
    return Answer(answer.start + shift, answer.text)
