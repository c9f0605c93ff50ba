"""What a model's logits say of rows: classes, numbers, tags and answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import special

from jaxbert.data.encoding import Windows
from jaxbert.data.labels import Answer
from jaxbert.data.packing import Examples
from jaxbert.data.rows import Rows

_DIGITS = 6
LONGEST_ANSWER = 30  # word pieces, as google-research/bert has it (run_squad.py)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What is predicted of N rows, in the form in which `Rows` holds what is true.

    Attributes:
      values: of classification int [N]; of multi_label float32 [N, C], 0 or 1; of regression
        and similarity float32 [N]; of tagging int [words] for each sentence, -1 for a word that was
        cut off; of spans an `Answer` or None for each question.
      scores: what speaks for it: of classification and multi_label probabilities [N, C]; of tagging
        the tag's probability, [words] for each sentence, 0 for a word that was cut off; of spans
        [N], by how much the logits of the best answer are above those of none; else None.
    """

    values: Any
    scores: Any = None


def read_classes(logits: np.ndarray) -> Predictions:
    """The most probable class of each row; logits [N, C]."""
    return Predictions(logits.argmax(axis=1), special.softmax(logits, axis=1))


def read_labels(logits: np.ndarray) -> Predictions:
    """The labels that are more probable than not; logits [N, C]."""
    return Predictions((logits > 0).astype(np.float32), special.expit(logits))


def read_numbers(logits: np.ndarray) -> Predictions:
    """The number itself; logits [N, 1]."""
    return Predictions(logits[:, 0])


def read_tags(logits: np.ndarray, rows: Rows, examples: Examples) -> Predictions:
    """The most probable tag of each word.

    Args:
      logits: float32 [marks, C], of the words that were not cut off.
      rows: the sentences.
      examples: as they were encoded.
    """
    assert rows.words is not None and examples.marks is not None
    tags, scores = logits.argmax(axis=1), special.softmax(logits, axis=1).max(axis=1)
    values, chances = [], []
    for index, words in enumerate(rows.words):
        part = slice(*examples.marks.offsets[index : index + 2])
        # What is cut off is a sentence's end.
        cut = (0, len(words) - len(tags[part]))
        values.append(np.pad(tags[part], cut, constant_values=-1))
        chances.append(np.pad(scores[part], cut))
    return Predictions(values, chances)


def read_answers(logits: np.ndarray, windows: Windows, *, always: bool) -> Predictions:
    """The best answer to each question in any of its windows (Devlin et al. 2019, section 4.3).

    An answer scores the logit that it begins at its first piece plus the logit that it ends at its
    last; no answer, both of [CLS], the least over the windows.

    Args:
      logits: float32 [pieces, 2].
      windows: what they are of.
      always: False for no answer where that scores higher.
    """
    first, last = logits.astype(np.float64).T
    examples, count = windows.examples, len(logits)
    window = np.repeat(np.arange(len(examples)), examples.lengths)
    inside = windows.starts >= 0
    best, lasts = np.full(count, -np.inf), np.arange(count)
    for more in range(min(LONGEST_ANSWER, count)):
        here, there = slice(0, count - more), slice(more, count)
        score = first[here] + last[there]
        good = inside[here] & inside[there] & (window[here] == window[there]) & (score > best[here])
        best[here][good] = score[good]
        lasts[here][good] = np.arange(more, count)[good]
    cls = examples.offsets[:-1]
    # The windows of a row come one after the other.
    opens = np.flatnonzero(np.diff(windows.rows, prepend=-1))
    none = np.minimum.reduceat(first[cls] + last[cls], opens)
    top = np.maximum.reduceat(best, cls[opens])
    row = windows.rows[window]
    _, places = np.unique(np.where(best == top[row], row, len(opens)), return_index=True)
    answers: list[Answer | None] = []
    for index, place in enumerate(places[: len(opens)]):
        if not np.isfinite(top[index]) or (top[index] < none[index] and not always):
            answers.append(None)
            continue
        begin, end = int(windows.starts[place]), int(windows.ends[lasts[place]])
        answers.append(Answer(begin, windows.contexts[index][begin:end]))
    return Predictions(answers, top - none)


def describe(
    kind: str, classes: Sequence[str], rows: Rows, found: Predictions
) -> Iterator[dict[str, Any]]:
    """What is predicted of each row, by the names of its classes, as JSON types.

    Of classification ``label`` and ``scores``, a probability for each class; of multi_label
    ``labels`` and ``scores``; of regression and similarity ``score``; of tagging ``words``,
    ``tags`` and ``scores``, a tag of None for a word that was cut off; of spans ``answer``,
    ``start`` (None where there is none) and ``score``. Numbers have six decimals.

    Args:
      kind: of the task.
      classes: their names, in the order of the logits.
      rows: what was predicted.
      found: the predictions.
    """

    def named(scores: Any) -> dict[str, float]:
        pairs = zip(classes, scores, strict=True)
        return {name: round(float(score), _DIGITS) for name, score in pairs}

    for index, value in enumerate(found.values):
        scores: Any = None if found.scores is None else found.scores[index]
        if kind == "classification":
            yield {"label": classes[value], "scores": named(scores)}
        elif kind == "multi_label":
            chosen = [name for name, one in zip(classes, value, strict=True) if one]
            yield {"labels": chosen, "scores": named(scores)}
        elif kind == "tagging":
            assert rows.words is not None
            # A word that was cut off has no tag.
            tags = [classes[tag] if tag >= 0 else None for tag in value]
            chances = [round(float(score), _DIGITS) for score in scores]
            yield {"words": list(rows.words[index]), "tags": tags, "scores": chances}
        elif kind == "spans":
            # A context without a piece holds no answer at all.
            score = round(float(scores), _DIGITS) if math.isfinite(scores) else None
            text, start = (value.text, value.start) if value else (None, None)
            yield {"answer": text, "start": start, "score": score}
        else:
            yield {"score": round(float(value), _DIGITS)}
