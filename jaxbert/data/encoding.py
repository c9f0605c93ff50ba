"""Labelled rows to examples: word pieces, cut where they are too long, and their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbert.data.packing import Examples, Marks
from jaxbert.data.rows import Answer, Rows
from jaxbert.data.tokenizer import Pieces, Tokenizer
from jaxbert.errors import UserError

_LONGEST_QUESTION = 64  # word pieces, as google-research/bert cuts them (run_squad.py)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Questions, each with a window of its context: what of a span task is encoded.

    Attributes:
      examples: W windows, ``[CLS] question [SEP] window [SEP]``, with labels int32 [W, 2]: first
        and last piece of the answer within the example, 0 0 where the window does not hold it.
      rows: int32 [W], whose window it is; a row's windows come one after the other.
      starts: int32 [sum of lengths], where in the context the piece begins, in characters; -1 for
        pieces of the question and special ones.
      ends: int32 [sum of lengths], where it ends (exclusive).
      contexts: N contexts, those of the rows.
    """

    examples: Examples
    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    contexts: Sequence[str]

    def text(self, window: int, first: int, last: int) -> str:
        """What stands in the context from one piece of a window to another, as it is written.

        Args:
          window: from 0.
          first, last: pieces within the example; 0 0 is no answer, and an empty text.

        Raises:
          ValueError: they are not two pieces of the context, in order.
        """
        if first == last == 0:
            return ""
        begin, end = self.examples.offsets[window : window + 2]
        if not 0 <= first <= last < end - begin or self.starts[begin + first] < 0:
            raise ValueError(f"pieces {first} to {last} of window {window} are none of a context")
        if self.starts[begin + last] < 0:
            raise ValueError(f"piece {last} of window {window} is none of a context")
        context = self.contexts[self.rows[window]]
        return context[self.starts[begin + first] : self.ends[begin + last]]


def encode_rows(tokenizer: Tokenizer, rows: Rows, *, max_length: int, stride: int = 0) -> Examples:
    """Encodes rows as [CLS] a [SEP] or [CLS] a [SEP] b [SEP], whatever their task's kind.

    A pair that is too long loses pieces of its longer text, of the second when both are equally
    long (`_truncate_seq_pair` of google-research/bert). `truncated` counts the rows cut. Of
    tagging, the first piece of each word that is left is marked with the word's tag; a word
    without a piece is an unknown one. Of spans, see `encode_windows`.

    Args:
      tokenizer: the model's.
      rows: of one task.
      max_length: word pieces of the longest example.
      stride: of spans, as in `Task`.

    Raises:
      UserError: a `max_length` that leaves no room for the text.
    """
    if rows.answers is not None:
        return encode_windows(tokenizer, rows, max_length=max_length, stride=stride).examples
    if rows.words is not None:
        return _encode_words(tokenizer, rows, max_length)
    specials = 2 if rows.pairs is None else 3
    budget = _budget(max_length, specials)
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


def _budget(max_length: int, specials: int) -> int:
    """What `max_length` leaves for text beside the special pieces, at least one for each text."""
    budget = max_length - specials
    if budget < specials - 1:
        raise UserError(
            f"max_length is {max_length}", "max_length", f"give at least {2 * specials - 1}"
        )
    return budget


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


def _encode_words(tokenizer: Tokenizer, rows: Rows, max_length: int) -> Examples:
    """Sentences of tagging: every word is encoded by itself, as BERT's splitting has it."""
    assert rows.words is not None and rows.tags is not None
    budget = _budget(max_length, 2)
    words = list(dict.fromkeys(word for sentence in rows.words for word in sentence))
    unknown = np.array([tokenizer.unk_id], np.int32)
    found = (ids if len(ids) else unknown for ids in tokenizer.encode(words))
    pieces = dict(zip(words, found, strict=True))
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    examples, places, targets, counts = [], [], [], [0]
    truncated = 0
    for sentence, tags in zip(rows.words, rows.tags, strict=True):
        parts = [pieces[word] for word in sentence]
        sizes = np.array([len(part) for part in parts])
        firsts = np.cumsum(sizes) - sizes
        kept = firsts < budget
        truncated += int(sizes.sum() > budget)
        examples.append(np.concatenate([cls, np.concatenate(parts)[:budget], sep]))
        places.append(firsts[kept] + 1)
        targets.append(tags[kept])
        counts.append(int(kept.sum()))
    marks = Marks(
        np.concatenate([*places, np.zeros(0)]).astype(np.int32),
        np.concatenate([*targets, np.zeros(0)]).astype(np.int32),
        np.cumsum(counts).astype(np.int64),
    )
    return Examples.join(examples, truncated=truncated, marks=marks)


def encode_windows(
    tokenizer: Tokenizer, rows: Rows, *, max_length: int, stride: int = 0
) -> Windows:
    """Encodes questions with overlapping windows of their contexts (Devlin et al. 2019, SQuAD).

    A question keeps 64 word pieces at most, and half of the room at most. `truncated` counts the
    rows whose question is cut or whose (first) answer fits into no window.

    Args:
      tokenizer: the model's.
      rows: of a span task.
      max_length: word pieces of a window with its question.
      stride: as in `Task`.

    Raises:
      UserError: a `max_length` that leaves no room for the text.
    """
    assert rows.pairs is not None and rows.answers is not None
    budget = _budget(max_length, 3)
    questions = tokenizer.encode(rows.texts)
    texts = list(dict.fromkeys(rows.pairs))  # a context has several questions
    contexts = dict(zip(texts, tokenizer.encode_with_offsets(texts), strict=True))
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    nowhere = np.array([-1])
    examples, seconds, labels, owners = [], [], [], []
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    truncated = 0
    for index, (question, text) in enumerate(zip(questions, rows.pairs, strict=True)):
        context = contexts[text]
        kept = question[: min(_LONGEST_QUESTION, budget // 2)]
        room = budget - len(kept)
        step = min(stride or max(1, room // 2), room)
        answer = _answer_pieces(context, rows.answers[index])
        held = not rows.answers[index]
        head = len(kept) + 2  # where the context begins
        for begin in range(0, max(1, len(context.ids) - room + step), step):
            part = slice(begin, begin + room)
            inside = answer is not None and begin <= answer[0] and answer[1] < begin + room
            held |= inside
            examples.append(np.concatenate([cls, kept, sep, context.ids[part], sep]))
            starts += [np.full(head, -1), context.starts[part], nowhere]
            ends += [np.full(head, -1), context.ends[part], nowhere]
            seconds.append(head)
            labels.append(np.array(answer) - begin + head if inside else np.zeros(2))
            owners.append(index)
        truncated += len(kept) < len(question) or not held
    joined = Examples.join(
        examples,
        seconds=seconds,
        labels=np.array(labels, np.int32).reshape(-1, 2),
        truncated=truncated,
    )
    return Windows(
        joined,
        np.array(owners, np.int32),
        np.concatenate([*starts, np.zeros(0)]).astype(np.int32),
        np.concatenate([*ends, np.zeros(0)]).astype(np.int32),
        rows.pairs,
    )


def _answer_pieces(context: Pieces, answers: Sequence[Answer]) -> tuple[int, int] | None:
    """First and last piece of the context that the first answer has a part of; None without."""
    if not answers:
        return None
    start, text = answers[0]
    first = int(np.searchsorted(context.ends, start, side="right"))
    last = int(np.searchsorted(context.starts, start + len(text), side="left")) - 1
    return (first, last) if first <= last else None


def count_cuts(rows: Rows, examples: Examples) -> dict[str, Any]:
    """What encoding has cut off: the ``rows``, those ``truncated``, and their ``percent``.

    Of tagging also ``words`` and ``words_cut``, of spans the ``windows``.
    """
    counts: dict[str, Any] = {
        "rows": len(rows),
        "truncated": examples.truncated,
        "percent": round(100 * examples.truncated / max(1, len(rows)), 2),
    }
    if rows.words is not None and examples.marks is not None:
        words = sum(map(len, rows.words))
        counts |= {"words": words, "words_cut": words - len(examples.marks.places)}
    if rows.answers is not None:
        counts["windows"] = len(examples)
    return counts
