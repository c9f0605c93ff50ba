"""One row of a table to one labelled row: every text and label is checked, or named as bad."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbert.data.tables import LONGEST_LINE, BadRow, Record, listing, shorten
from jaxbert.data.tagging import SchemeError, to_iob2
from jaxbert.data.tasks import Task

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Control and private characters, those without a width and, of models that strip accents, marks
# without a letter; so is U+FFFD, which stands where an export has lost a character. An unassigned
# character (Cn) is not: it becomes [UNK].
_DROPPED = ("Cc", "Cf", "Co", "Mn")
_HIDDEN = " (-1 marks the rows of GLUE's test splits)"


class Answer(NamedTuple):
    """An answer within a context: its first character, from 0, and its text."""

    start: int
    text: str


class Example(NamedTuple):
    """A row that can be used.

    Attributes:
      texts: the text, or the two of a pair; of tagging, the words joined by spaces.
      label: the class's number; of multi_label the numbers; of regression the number; of tagging
        the number of each word's tag; of spans a tuple of `Answer`.
      words: of tagging.
    """

    texts: tuple[str, ...]
    label: Any
    words: tuple[str, ...] = ()


class _Bad(ValueError):
    """Why a row cannot be used."""

    def __init__(self, what: str, where: str, fix: str = "mend or remove the row") -> None:
        super().__init__(what)
        self.row = BadRow(what, where, fix)


def read_example(task: Task, record: Record | BadRow) -> Example | BadRow:
    """A row's texts and label as its task has them, or why it has none.

    Args:
      task: its ``scheme`` is known.
      record: has the task's columns.
    """
    if isinstance(record, BadRow):
        return record
    try:
        if task.kind == "tagging":
            return _tagged(task, record)
        texts = tuple(
            _text(record.values[column], f"{record.where}:{column}") for column in task.columns
        )
        where = f"{record.where}:{task.label}"
        return Example(texts, _LABELS[task.kind](task, record.values[task.label], where, texts))
    except _Bad as bad:
        return bad.row


def _text(text: Any, where: str) -> str:
    """A text that a tokenizer can take, and finds something in."""
    text = _string(text, where)
    if not any(map(_is_visible, text)):
        raise _Bad("empty text", where)
    return text


def _word(word: Any, where: str) -> str:
    """A word that a tokenizer can take; where it finds nothing in it, the word is unknown."""
    if not _string(word, where):
        raise _Bad("empty text", where)
    return word


def _string(text: Any, where: str) -> str:
    """A text that a tokenizer can take."""
    if not isinstance(text, str):
        kind = "nothing" if text is None else f"a {type(text).__name__}"
        raise _Bad(f"{kind} instead of text", where)
    if "\0" in text:
        raise _Bad("a NUL character", where)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _Bad(f"{text[error.start]!r} is no character of UTF-8", where) from error
    if size > LONGEST_LINE:
        raise _Bad(f"the text is longer than {LONGEST_LINE:,} bytes", where)
    return text


def _is_visible(character: str) -> bool:
    """Neither a blank nor what BERT drops: see ``_DROPPED``."""
    return not (
        character.isspace() or character == "\ufffd" or unicodedata.category(character) in _DROPPED
    )


def _class(task: Task, label: Any, where: str, texts: Sequence[str]) -> int:
    number = label_number(label, task.labels)
    if number is None:
        hint = _HIDDEN if str(label) in ("-1", "-1.0") else ""
        fix = f"the labels are {listing(task.labels)}"
        raise _Bad(f"unknown label {shorten(label)}{hint}", where, fix)
    return number


def _classes(task: Task, labels: Any, where: str, texts: Sequence[str]) -> tuple[int, ...]:
    if isinstance(labels, str):
        names: Sequence[Any] = [name.strip() for name in labels.split(task.separator)]
        names = [] if names == [""] else names
    elif isinstance(labels, (list, np.ndarray)):
        names = list(labels)
    else:
        what = f"{shorten(labels)} instead of label names"
        raise _Bad(what, where, f"give a list, or a text with {task.separator!r} between them")
    numbers = tuple(_class(task, name, where, texts) for name in names)
    if len(set(numbers)) < len(numbers):
        raise _Bad(f"a label stands twice in {shorten(labels)}", where)
    return numbers


def _number(task: Task, label: Any, where: str, texts: Sequence[str]) -> float:
    is_text = isinstance(label, str) and _NUMBER.fullmatch(label.strip(" "))
    is_number = isinstance(label, (int, float, np.integer, np.floating))
    if isinstance(label, bool) or not (is_text or is_number):
        raise _Bad(f"{shorten(label)} is no number", where)
    try:
        number = float(label)
    except OverflowError:
        number = math.inf
    if not abs(number) <= float(np.finfo(np.float32).max):  # NaN, too
        raise _Bad(f"{shorten(label)} is no finite number", where)
    low, high = task.bounds or (-math.inf, math.inf)
    if not low <= number <= high:
        raise _Bad(f"{shorten(label)} is out of range", where, f"give {low:g} to {high:g}")
    return number


def _answers(task: Task, label: Any, where: str, texts: Sequence[str]) -> tuple[Answer, ...]:
    form = 'give {"text": [...], "answer_start": [...]}'
    if not isinstance(label, Mapping) or not {"text", "answer_start"} <= set(label):
        raise _Bad(f"{shorten(label)} instead of answers", where, form)
    found, starts = label["text"], label["answer_start"]
    for values in (found, starts):
        if not isinstance(values, (list, np.ndarray)):
            raise _Bad(f"{shorten(values)} instead of a list", where, form)
    if len(found) != len(starts):
        raise _Bad(f"{len(found)} answers and {len(starts)} offsets", where, form)
    context = texts[1]
    answers = []
    for number, (text, start) in enumerate(zip(found, starts, strict=True)):
        here = f"{where}[{number}]"
        text = _text(text, here)
        if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or start < 0:
            raise _Bad(f"{shorten(start)} is no offset", here, "count characters from 0")
        there = context[start : int(start) + len(text)]
        if there != text:
            at = context.find(text)
            fix = f"it stands at {at}" if at >= 0 else "it does not stand in the context"
            what = f"answer {shorten(text)} is not at {start}, where {shorten(there)} stands"
            raise _Bad(what, here, fix)
        answers.append(Answer(int(start), text))
    return tuple(answers)


_LABELS: dict[str, Callable[[Task, Any, str, Sequence[str]], Any]] = {
    "classification": _class,
    "multi_label": _classes,
    "regression": _number,
    "similarity": _number,
    "spans": _answers,
}


def _tagged(task: Task, record: Record) -> Example:
    """A sentence with a tag for each word."""
    column = task.columns[0]
    words, tags = (_items(record, name) for name in (column, task.label))
    if not words:
        raise _Bad("no words", f"{record.where}:{column}")
    if len(words) != len(tags):
        raise _Bad(f"{len(words)} words and {len(tags)} tags", f"{record.where}:{task.label}")

    def where(place: int, name: str) -> str:
        if record.places:
            return f"{record.places[place]}:{name}"
        return f"{record.where}:{name}[{place}]"

    texts = tuple(_word(word, where(place, column)) for place, word in enumerate(words))
    names = [_tag(task, tag, where(place, task.label)) for place, tag in enumerate(tags)]
    if task.scheme != "none":
        try:
            names = to_iob2(names, task.scheme)
        except SchemeError as error:
            raise _Bad(str(error), where(error.place, task.label)) from error
    numbers = {name: number for number, name in enumerate(task.classes)}
    return Example((" ".join(texts),), np.array([numbers[name] for name in names], np.int32), texts)


def _items(record: Record, column: str) -> Sequence[Any]:
    """The words or tags of a sentence: a list, or a text with a blank between them."""
    value = record.values[column]
    if isinstance(value, str):
        return value.split(" ") if value.strip() else []
    if not isinstance(value, (list, np.ndarray)):
        raise _Bad(f"{shorten(value)} instead of a list", f"{record.where}:{column}")
    return list(value)


def _tag(task: Task, tag: Any, where: str) -> str:
    """A tag by its name, in the task's scheme, or by its number among the task's classes."""
    if task.scheme == "none":
        known = tag in task.labels if isinstance(tag, str) else False
    else:
        mark, _, kind = tag.partition("-") if isinstance(tag, str) else ("", "", "")
        known = tag == "O" or (len(mark) == 1 and mark in "BIES" and kind in task.labels)
    if known:
        return tag
    number = label_number(tag, task.classes)
    if number is None:
        fix = f"the tags are {listing(task.classes)}"
        if task.scheme != "none":
            fix += ", or set task.scheme=none for tags without B- and I-"
        raise _Bad(f"unknown tag {shorten(tag)}", where, fix)
    return task.classes[number]


def label_number(label: Any, labels: Sequence[str]) -> int | None:
    """The number of a label given by name or by number; None if there is no such label.

    A number is a name first, as JSON writes it. It is a position only if no name is a number: a 4
    among 1 to 5 stars is the fourth class, and never the fifth. A whole number with a point, as
    1.0, is the whole number. A truth value is the name ``true`` or ``false``, in whatever case, and
    never a position: what is true is not known to be the second of two names.
    """
    if isinstance(label, (bool, np.bool_)):
        name, labels = str(label).lower(), [known.lower() for known in labels]
        return labels.index(name) if name in labels else None
    if not isinstance(label, (str, int, float, np.integer, np.floating)):
        return None
    name = str(label)
    if name in labels:
        return labels.index(name)
    whole = re.fullmatch(r"([0-9]{1,9})(\.0*)?", name)
    if whole is None:
        return None
    if any(_NUMBER.fullmatch(known) for known in labels):
        return labels.index(whole[1]) if whole[1] in labels else None
    return int(whole[1]) if int(whole[1]) < len(labels) else None


def tag_names(task: Task, record: Record | BadRow) -> list[str] | None:
    """A sentence's tags as they are written, to find their scheme by; None without them."""
    if isinstance(record, BadRow):
        return None
    try:
        return [_tag(task, tag, record.where) for tag in _items(record, task.label)]
    except _Bad:
        return None
