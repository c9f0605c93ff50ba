"""Question answering files as SQuAD 1.1 and 2.0 have them (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbert.data.tables import BadRow, Record, listing, open_bytes
from jaxbert.errors import UserError

_LARGEST = 128 << 20  # bytes; SQuAD 2.0 has 40 MiB


def read_squad(path: Path, columns: Sequence[str]) -> Iterator[Record | BadRow]:
    """Yields the questions of a file, with ``question``, ``context``, ``answers`` and ``id``.

    The answers are ``{"text": [...], "answer_start": [...]}``, both empty for a question that
    ``is_impossible``. A row is named by its place in the JSON, from 0.

    Args:
      path: plain, .gz or .zst; read into memory as a whole, 128 MiB at most.
      columns: those that are wanted; without ``answers`` there need be none.

    Raises:
      UserError: unreadable, larger, no JSON, not of this form, or another column.
    """
    try:
        with open_bytes(path) as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            what = f"more than {_LARGEST >> 20} MiB of JSON, which is read as a whole"
            raise UserError(what, str(path), "divide it into several files, or write jsonl:")
        found = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        what = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise UserError(what, f"{path}: byte {error.start}", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
        what = getattr(error, "msg", None) or str(error) or "too deeply nested"
        fix = "mend or copy the file again"
        raise UserError(f"not JSON: {what}", f"{path}:{line}:{column}", fix) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"it cannot be read ({error})", str(path), "copy the file again") from error
    for where, context, question in _questions(str(path), found):
        row = _row(where, context, question, answered="answers" in columns)
        if isinstance(row, Record):
            missing = [column for column in columns if column not in row.values]
            if missing:
                raise UserError(f"no {missing[0]!r}", where, f"it has {listing(row.values)}")
        yield row


def _questions(path: str, found: Any) -> Iterator[tuple[str, Any, Any]]:
    """(where it stands, its context, the question as it is) for each one."""
    for a, article in _items(f"{path}: ", found, "data"):
        for p, paragraph in _items(f"{path}: data[{a}].", article, "paragraphs"):
            place = f"{path}: data[{a}].paragraphs[{p}]."
            for q, question in _items(place, paragraph, "qas"):
                yield f"{place}qas[{q}]", paragraph.get("context"), question


def _items(where: str, owner: Any, key: str) -> Iterator[tuple[int, Any]]:
    items = owner.get(key) if isinstance(owner, Mapping) else None
    if not isinstance(items, list):
        fix = "give a file as SQuAD has it: data, paragraphs, qas"
        raise UserError("there is no list", where + key, fix)
    return enumerate(items)


def _row(where: str, context: Any, question: Any, *, answered: bool) -> Record | BadRow:
    if not isinstance(question, Mapping):
        return BadRow(f"a JSON {type(question).__name__} instead of an object", where)
    given = question.get("answers")
    if question.get("is_impossible") or not answered:
        given = []  # what stands there then is plausible at best, or not asked for
    elif not given:
        fix = "give one, or is_impossible"
        return BadRow("a question without an answer", f"{where}.answers", fix)
    if not isinstance(given, list) or not all(isinstance(answer, Mapping) for answer in given):
        return BadRow("no list of answers", f"{where}.answers")
    answers = {key: [answer.get(key) for answer in given] for key in ("text", "answer_start")}
    values = {"question": question.get("question"), "context": context, "answers": answers}
    return Record(where, {**values, "id": question.get("id")})
