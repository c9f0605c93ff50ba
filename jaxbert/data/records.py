"""References to rows: what a user writes in ``task.source``, and the rows that lie there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbert.data.conll import read_conll
from jaxbert.data.glue import FILES, read_glue
from jaxbert.data.sources import check_features, open_tfds, read_movie_reviews
from jaxbert.data.squad import read_squad
from jaxbert.data.tables import READERS as TABLES
from jaxbert.data.tables import BadRow, Record, matching_files
from jaxbert.data.tasks import TASKS, Task
from jaxbert.errors import UserError

_REFERENCE = re.compile(
    r"(?P<kind>\w+):(?P<place>[^#]*?)(#(?P<split>\w+))?"
    r"(\[(?:(?P<low>[0-9]{1,3})%)?:(?:(?P<high>[0-9]{1,3})%)?\])?"
)
_SPLIT = ("tfds", "glue")  # the kinds that have splits
_READERS = {**TABLES, "conll": read_conll, "squad": read_squad}
_KINDS = ("pkg", *_SPLIT, *_READERS)


class Reference(NamedTuple):
    """``KIND:PLACE#SPLIT[LOW%:HIGH%]``, read.

    Attributes:
      kind: how it is stored.
      place: where.
      split: empty for the only one, or the first.
      low, high: which part of its rows, in per cent.
    """

    kind: str
    place: str
    split: str
    low: int
    high: int


def parse_reference(text: str) -> Reference:
    """Reads a reference.

    Raises:
      UserError: it is none.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or match["kind"] not in _KINDS:
        fix = "write KIND:PLACE, KIND:PLACE#SPLIT or KIND:PLACE[A%:B%] with a KIND out of "
        suffix = text.rpartition(".")[2]
        near = f"did you mean {suffix}:{text}? Else " * (suffix in _READERS and ":" not in text)
        raise UserError(f"unknown source {text!r}", "section task", near + fix + ", ".join(_KINDS))
    split = match["split"] or ""
    if split and match["kind"] not in _SPLIT:
        fix = "name another file, or a part of its rows as [A%:B%]"
        raise UserError(f"{match['kind']}: has no splits such as {split!r}", text, fix)
    low, high = int(match["low"] or 0), int(match["high"] or 100)
    if not 0 <= low < high <= 100:
        raise UserError(f"no part of the rows lies in [{low}%:{high}%]", text, "give A < B")
    return Reference(match["kind"], match["place"], split, low, high)


def files_of(reference: Reference) -> list[Path]:
    """The files in which rows lie; none where one does not name files.

    Raises:
      UserError: there is no such file.
    """
    if reference.kind not in _READERS:
        return []
    return matching_files(reference.place, f"give the path of {reference.kind.upper()} files")


def read_records(task: Task, reference: str, data_dir: str = "") -> Iterator[Record | BadRow]:
    """Yields every row of a reference, or why it cannot be read; the file is read as they come.

    Args:
      task: names the columns.
      reference: as `Task` has it.
      data_dir: the TFDS folder.

    Raises:
      UserError: nothing is there, or what is there is not of that kind.
    """
    parsed = parse_reference(reference)
    if (parsed.low, parsed.high) == (0, 100):
        return _records(task, parsed, data_dir)
    total = sum(1 for _ in _records(task, parsed, data_dir))
    first, last = total * parsed.low // 100, total * parsed.high // 100
    return itertools.islice(_records(task, parsed, data_dir), first, last)


def _records(task: Task, reference: Reference, data_dir: str) -> Iterator[Record | BadRow]:
    """Every row of a place, whatever it is stored in."""
    kind, place, split = reference.kind, reference.place, reference.split or "train"
    columns = [*task.columns, task.label]
    if kind == "pkg":
        yield from _review_records(task, place)
    elif kind == "tfds":
        yield from _tfds_records(task, place, split, data_dir)
    elif kind == "glue":
        if task.name not in TASKS or task.name not in FILES:
            known = ", ".join(name for name in FILES if name in TASKS)
            fix = f"name one of {known}, or read the file with tsv:"
            what = f"{task.name!r} is no task of GLUE that is known"
            raise UserError(what, "config key task.name", fix)
        yield from read_glue(place, task.name, split, columns)
    else:
        for path in files_of(reference):
            yield from _READERS[kind](path, columns)


def _review_records(task: Task, place: str) -> Iterator[Record]:
    if not place.startswith("movie-reviews/") or len(task.columns) > 1:
        fix = "write pkg:movie-reviews/rotten_tomatoes or pkg:movie-reviews/imdb, of single texts"
        raise UserError(f"no rows for columns {', '.join(task.columns)}", f"pkg:{place}", fix)
    texts, labels = read_movie_reviews(place.removeprefix("movie-reviews/"))
    for index, (text, label) in enumerate(zip(texts, labels.tolist(), strict=True)):
        # Where labels are not read, their column is that of the text.
        yield Record(f"pkg:{place}: row {index}", {task.label: label, task.columns[0]: text})


def _tfds_records(task: Task, name: str, split: str, data_dir: str) -> Iterator[Record]:
    source = open_tfds(name, split, data_dir)
    check_features(name, source, [*task.columns, task.label])
    feature = source.dataset_info.features[task.label]
    # A list of classes declares them one level below.
    names = getattr(feature, "names", None) or getattr(
        getattr(feature, "feature", None), "names", None
    )
    if task.kind == "classification" and names is not None and tuple(names) != task.labels:
        raise UserError(
            f"its labels are {', '.join(names)}",
            f"tfds:{name}",
            f"{task.name} needs {', '.join(task.labels)}, in this order",
        )
    for index, example in enumerate(source):
        values = {key: _decoded(example[key]) for key in (*task.columns, task.label)}
        if names is not None:
            values[task.label] = _named(values[task.label], names)
        yield Record(f"tfds:{name} {split}: row {index}", values)


def _decoded(value: Any) -> Any:
    """A value of TFDS with text for bytes; what is not UTF-8 is refused with its row."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, (list, np.ndarray)) and np.ndim(value):
        return [_decoded(item) for item in value]
    return value


def _named(label: Any, names: list[str]) -> Any:
    """A class's name in the place of its number, where there is one."""
    if isinstance(label, list):
        return [_named(item, names) for item in label]
    return names[label] if 0 <= label < len(names) else label
