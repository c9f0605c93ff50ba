"""Column files of words and tags, a word a line and an empty line between two sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxbert.data.tables import BadRow, Line, Record, read_texts
from jaxbert.errors import UserError

_DOCUMENT = "-DOCSTART-"  # CoNLL-2003's line between two documents
_MOST_WORDS = 1 << 16  # of a sentence


def read_conll(path: Path, columns: Sequence[str]) -> Iterator[Record | BadRow]:
    """Yields the sentences of a file, each column a list with a text for each word.

    Columns are parted by one tab where a line has one, else by spaces.

    Args:
      path: plain, .gz or .zst.
      columns: numbers from 0, or from the last one down: ``0``, ``-1``.

    Raises:
      UserError: unreadable, or a column that is no number.
    """
    for column in columns:
        if not re.fullmatch(r"-?[0-9]{1,4}", column):
            what = f"column {column!r} is no number"
            raise UserError(what, f"conll:{path}", "number the columns from 0; -1 is the last one")
    width = 0  # fields of the file's first word
    sentence: list[Line] = []
    bad: BadRow | None = None  # the first problem of the sentence
    for line in itertools.chain(read_texts(path), [None]):
        if isinstance(line, BadRow):
            bad = bad or line
        elif line is not None and (fields := _fields(line.text)):
            width = width or len(fields)
            if len(fields) != width:
                fix = f"write {width} columns on every line, as on the first one"
                bad = bad or BadRow(f"{len(fields)} columns instead of {width}", line.where, fix)
            elif beyond := [c for c in columns if not -width <= int(c) < width]:
                fix = f"number them from 0 to {width - 1}"
                raise UserError(f"there is no column {beyond[0]}", line.where, fix)
            if len(sentence) == _MOST_WORDS:
                what = f"a sentence of more than {_MOST_WORDS:,} words"
                bad = bad or BadRow(what, line.where, "put an empty line between sentences")
            else:
                sentence.append(line)
        else:
            if bad is not None:
                yield bad
            elif sentence:
                fields_of = [_fields(line.text) for line in sentence]
                values = {c: [fields[int(c)] for fields in fields_of] for c in columns}
                yield Record(sentence[0].where, values, tuple(line.where for line in sentence))
            sentence, bad = [], None


def _fields(text: str) -> list[str]:
    """The columns of a line; none of one that parts two sentences."""
    if not text.strip(" \t") or text.startswith(_DOCUMENT):
        return []
    return text.split("\t") if "\t" in text else re.split(" +", text.strip(" "))
