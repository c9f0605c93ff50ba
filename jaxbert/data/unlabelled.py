"""Rows to predict: texts as a task has them, checked like any other row, without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sized
from typing import Any

from jaxbert.data.labels import Example, read_example
from jaxbert.data.records import read_records
from jaxbert.data.rows import Rows
from jaxbert.data.tables import BadRow, Record
from jaxbert.data.tasks import NUMBERS, Task


def read_unlabelled(task: Task, reference: str, data_dir: str = "") -> Rows:
    """Reads the texts of every row of a reference; there need be no column of labels.

    Args:
      task: names the columns of the texts.
      reference: as `Task` has it.
      data_dir: the TFDS folder.

    Returns:
      The rows, in their order, with labels that say nothing.

    Raises:
      UserError: nothing is there, or a row that cannot be used: none is left out.
    """
    # Any column may hold the texts, and none of them the label that says nothing.
    label = f"label of {','.join(task.columns)}"
    task = dataclasses.replace(task, label=label, scheme=task.scheme or "IOB2")
    # A column that is there is read in the place of the label's.
    texts_alone = dataclasses.replace(task, label=task.columns[0])
    examples = []
    for record in read_records(texts_alone, reference, data_dir):
        if isinstance(record, Record):
            nothing = {label: _nothing(task, record.values[task.columns[0]])}
            record = dataclasses.replace(record, values={**record.values, **nothing})
        example = read_example(task, record)
        if isinstance(example, BadRow):
            raise example.error
        assert isinstance(example, Example)
        examples.append(example)
    return Rows.join(task, examples)


def _nothing(task: Task, text: Any) -> Any:
    """A label that every row of a task may have."""
    if task.kind == "tagging":
        words = text.split(" ") if isinstance(text, str) else text
        return [task.classes[0]] * (len(words) if isinstance(words, Sized) else 0)
    if task.kind == "spans":
        return {"text": [], "answer_start": []}
    if task.kind in NUMBERS:
        return task.bounds[0] if task.bounds else 0.0
    return [] if task.kind == "multi_label" else task.labels[0]
