"""Student against teacher: where they agree, how sure they are, what they take for what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from jaxbert.data.rows import Rows
from jaxbert.data.tasks import NUMBERS, Task
from jaxbert.evaluation.metrics import normalize_answer
from jaxbert.evaluation.predictions import Predictions

BINS = 15  # of confidence, as Guo et al. 2017 have them
_MOST_CLASSES = 50  # of a confusion matrix that is kept
_POINTS = 500  # numbers that are kept to be drawn
_TEXT = 400  # characters of a text that are kept
_ROWS = 10


def compare(
    task: Task, rows: Rows, model: Predictions, teacher: Predictions | None
) -> dict[str, Any]:
    """What a model says of rows, held against what is true and what its teacher says.

    Args:
      task: what the rows are of.
      rows: N, labelled.
      model: its predictions of them.
      teacher: the teacher's; None = there is none.

    Returns:
      ``agreement``, the share of decisions that are the teacher's (of rows; of tagging, of words
      that both read; of numbers, Pearson's correlation with the teacher's), null without a teacher
      or where it is undefined; ``outcomes``, decisions that ``both`` get right, the ``teacher`` or
      the ``model`` alone, or ``neither``, null for numbers; ``calibration`` (see `calibration`),
      null where nothing is a probability; ``confusion``, see `confusion`; ``numbers``, of
      regression and similarity up to 500 rows, ``true`` and ``found``, else null.
    """
    agreement, outcomes = None, None
    if teacher is not None:
        agreement, outcomes = _against(task, rows, model, teacher)
    numbers = None
    if task.kind in NUMBERS:
        assert rows.labels is not None
        numbers = {"true": _floats(rows.labels), "found": _floats(model.values)}
    return {
        "agreement": agreement,
        "outcomes": outcomes,
        "calibration": calibration(task, rows, model),
        "confusion": confusion(task, rows, model),
        "numbers": numbers,
    }


# --- agreement ------------------------------------------------------------------------------------


def _against(
    task: Task, rows: Rows, model: Predictions, teacher: Predictions
) -> tuple[float | None, dict[str, int] | None]:
    if not len(rows):
        return None, None
    mine, theirs = model.values, teacher.values
    if task.kind in NUMBERS:
        if np.ptp(mine) == 0 or np.ptp(theirs) == 0:
            return None, None
        pair = np.corrcoef(np.asarray(mine, np.float64), np.asarray(theirs, np.float64))
        return float(pair[0, 1]), None
    if task.kind == "tagging":
        true, mine, theirs = (np.concatenate(tags) for tags in (rows.tags or (), mine, theirs))
        read = (mine >= 0) & (theirs >= 0)
        true, mine, theirs = true[read], mine[read], theirs[read]
        same, right, known = mine == theirs, mine == true, theirs == true
    elif task.kind == "spans":
        a, b = _words(mine), _words(theirs)
        same = np.array([x == y for x, y in zip(a, b, strict=True)])
        right, known = _exact(rows, a), _exact(rows, b)
    else:

        def equal(x: np.ndarray, y: Any) -> np.ndarray:
            return np.all((np.asarray(x) == np.asarray(y)).reshape(len(rows), -1), axis=1)

        same, right, known = (
            equal(mine, theirs),
            equal(mine, rows.labels),
            equal(theirs, rows.labels),
        )
    if not same.size:
        return None, None
    counts = {
        "both": right & known,
        "teacher": ~right & known,
        "model": right & ~known,
        "neither": ~right & ~known,
    }
    return float(same.mean()), {name: int(one.sum()) for name, one in counts.items()}


def _words(answers: Sequence[Any]) -> list[list[str]]:
    return [normalize_answer(answer.text if answer else "") for answer in answers]


def _exact(rows: Rows, found: Sequence[list[str]]) -> np.ndarray:
    """Whether each answer is one of the true ones; of none, whether there is none."""
    true = [[w for w in _words(answers) if w] or [[]] for answers in rows.answers or ()]
    return np.array([mine in theirs for mine, theirs in zip(found, true, strict=True)])


# --- calibration ----------------------------------------------------------------------------------


def calibration(task: Task, rows: Rows, model: Predictions) -> dict[str, Any] | None:
    """The expected calibration error (Guo et al. 2017, equation 5), and the bins it comes from.

    Decisions fall into 15 bins of equal width by their confidence, (m - 1) / 15 < c <= m / 15; the
    error is the sum over bins of n_m / n |accuracy_m - confidence_m|. A decision is a row; of
    multi_label a row and a class, its confidence max(p, 1 - p); of tagging a word that was read.

    Returns:
      ``error``, ``decisions`` and ``bins``, those with a decision: ``low`` and ``high``,
      ``count``, and the means ``confidence`` and ``accuracy``. None where nothing is a probability.
    """
    if task.kind == "classification":
        sure, right = model.scores.max(axis=1), model.values == rows.labels
    elif task.kind == "multi_label":
        sure = np.maximum(model.scores, 1 - model.scores).ravel()
        right = (model.values == rows.labels).ravel()
    elif task.kind == "tagging":
        true, found = np.concatenate(rows.tags or ()), np.concatenate(model.values)
        sure, right = np.concatenate(model.scores)[found >= 0], (true == found)[found >= 0]
    else:
        return None
    sure = np.asarray(sure, np.float64)
    if not sure.size:
        return None
    place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        {
            "low": m / BINS,
            "high": (m + 1) / BINS,
            "count": int(inside.sum()),
            "confidence": float(sure[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for m in range(BINS)
        if (inside := place == m).any()
    ]
    gaps = [bin["count"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins]
    return {"error": sum(gaps) / sure.size, "decisions": int(sure.size), "bins": bins}


# --- confusion ------------------------------------------------------------------------------------


def confusion(task: Task, rows: Rows, model: Predictions) -> dict[str, Any] | None:
    """Which class is taken for which.

    Returns:
      ``classes`` and ``counts`` [C, C], decisions that are of the first class and said to be of the
      second: rows; of tagging words that were read; of spans questions with and without an answer.
      Of multi_label ``counts`` [C, 4]: rows that have a class and are said to, are said to and have
      not, have it and are not said to, neither. None for numbers and more than 50 classes.
    """
    if task.kind in NUMBERS or len(task.classes) > _MOST_CLASSES:
        return None
    names: Sequence[str] = task.classes
    if task.kind == "multi_label":
        has, said = (np.asarray(x, bool) for x in (rows.labels, model.values))
        cases = (has & said, ~has & said, has & ~said, ~has & ~said)
        counts = np.stack([case.sum(axis=0) for case in cases], axis=1).tolist()
        return {"classes": list(names), "counts": counts}
    if task.kind == "tagging":
        true, found = np.concatenate(rows.tags or ()), np.concatenate(model.values)
        true, found = true[found >= 0], found[found >= 0]
    elif task.kind == "spans":
        names = ("no answer", "an answer")
        true = np.array([bool(answers) for answers in rows.answers or ()], int)
        found = np.array([answer is not None for answer in model.values], int)
    else:
        assert rows.labels is not None
        true, found = rows.labels, model.values
    if not len(found):
        return None
    counts = sk.confusion_matrix(true, found, labels=range(len(names))).tolist()
    return {"classes": list(names), "counts": counts}


# --- rows -----------------------------------------------------------------------------------------


def differing(
    task: Task, rows: Rows, student: Predictions, teacher: Predictions, count: int = _ROWS
) -> list[dict[str, Any]]:
    """The rows on which student and teacher differ most, the largest difference first.

    The difference is the total variation distance of the class probabilities, 1/2 sum |p - q|; of
    multi_label the mean of |p - q|; of numbers |a - b|; of tagging the share of the words with
    another tag; of spans 1 for another answer, else 0.

    Returns:
      Of each ``row`` (from 0), ``text``, ``pair`` or None, ``difference``, and what is ``true`` and
      what ``teacher`` and ``student`` say, as texts; none where they do not differ.
    """
    if not len(rows):
        return []
    difference = _difference(task.kind, rows, student, teacher)
    order = np.argsort(-difference, kind="stable")[:count]
    return [
        {
            "row": int(i),
            "text": _short(rows.texts[i]),
            "pair": None if rows.pairs is None else _short(rows.pairs[i]),
            "difference": float(difference[i]),
            **dict(
                zip(
                    ("true", "teacher", "student"),
                    _say(task, rows, teacher, student, i),
                    strict=True,
                )
            ),
        }
        for i in order.tolist()
        if difference[i] > 0
    ]


def _difference(kind: str, rows: Rows, student: Predictions, teacher: Predictions) -> np.ndarray:
    if kind in NUMBERS:
        return np.abs(np.asarray(student.values, np.float64) - teacher.values)
    if kind == "tagging":
        pairs = zip(student.values, teacher.values, strict=True)
        return np.array([float(np.mean(a != b)) if len(a) else 0.0 for a, b in pairs])
    if kind == "spans":
        pairs = zip(_words(student.values), _words(teacher.values), strict=True)
        return np.array([float(a != b) for a, b in pairs])
    gap = np.abs(np.asarray(student.scores, np.float64) - teacher.scores)
    return gap.sum(axis=1) / 2 if kind == "classification" else gap.mean(axis=1)


def _say(
    task: Task, rows: Rows, teacher: Predictions, student: Predictions, i: int
) -> Iterator[str]:
    """What is true of a row, and what the two say of it."""
    names = task.classes
    if task.kind == "spans":
        answers = (rows.answers or ())[i]
        yield " / ".join(dict.fromkeys(_short(a.text) for a in answers)) or "no answer"
        for found in (teacher.values[i], student.values[i]):
            yield _short(found.text) if found else "no answer"
        return
    if task.kind == "tagging":
        words, true = (rows.words or ())[i], (rows.tags or ())[i]
        other = np.flatnonzero(teacher.values[i] != student.values[i])
        for tags in (true, teacher.values[i], student.values[i]):
            named = [f"{words[j]}: {names[tags[j]] if tags[j] >= 0 else 'not read'}" for j in other]
            yield _short(", ".join(named))
        return
    assert rows.labels is not None
    if task.kind in NUMBERS:
        for value in (rows.labels[i], teacher.values[i], student.values[i]):
            yield f"{value:.3f}"
    elif task.kind == "multi_label":
        for marked in (rows.labels[i], teacher.values[i], student.values[i]):
            yield ", ".join(names[c] for c in np.flatnonzero(marked)) or "none"
    else:
        yield names[rows.labels[i]]
        for said in (teacher, student):
            yield f"{names[said.values[i]]} ({said.scores[i].max():.2f})"


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _floats(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values[:_POINTS]]
