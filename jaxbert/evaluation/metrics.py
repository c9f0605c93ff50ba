"""The metrics of every kind of task, with the reason where one is undefined."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbert.data.rows import Rows
from jaxbert.data.tasks import Task
from jaxbert.evaluation.predictions import Predictions


class Metric(NamedTuple):
    """A metric's value, or why it has none.

    Attributes:
      value: None where the metric is undefined.
      undefined: the reason, empty where there is a value.
    """

    value: float | None
    undefined: str = ""


def score_rows(
    task: Task, rows: Rows, predictions: Predictions, names: Sequence[str]
) -> dict[str, Metric]:
    """The named metrics of what was predicted of rows.

    Args:
      task: what the rows are of.
      rows: with what is true of them.
      predictions: of the same rows.
      names: out of ``METRICS`` of the task's kind.
    """
    kept = (rows.labels, rows.tags, rows.answers)
    true = next((labels for labels in kept if labels is not None), None)
    if true is None or not len(true) == len(predictions.values) == len(rows):
        raise ValueError(f"{len(predictions.values)} predictions for {len(rows)} labelled rows")
    if not len(rows):
        return {name: Metric(None, "there are no examples") for name in names}
    known = METRICS[task.kind]
    return {name: known[name](true, predictions.values, task.classes) for name in names}


def standard_error(share: float, count: int) -> float:
    """Standard deviation of a share of ``count`` independent examples, sqrt(p (1 - p) / n)."""
    return float(np.sqrt(share * (1 - share) / count))


# --- classes, one or several an example -----------------------------------------------------------


def _accuracy(true: np.ndarray, found: np.ndarray, classes: Sequence[str]) -> Metric:
    """Of several labels, the share of the examples that have exactly theirs."""
    return Metric(float(np.mean((true == found).reshape(len(true), -1).all(axis=1))))


def _f1(true: np.ndarray, found: np.ndarray, classes: Sequence[str]) -> Metric:
    if len(classes) != 2:
        return Metric(None, f"F1 is of two classes, and there are {len(classes)}")
    if not (true.any() or found.any()):
        return Metric(None, "no example is of class 1 or predicted to be")
    from sklearn.metrics import f1_score

    return Metric(float(f1_score(true, found)))


def _matthews(true: np.ndarray, found: np.ndarray, classes: Sequence[str]) -> Metric:
    if np.unique(true).size < 2:
        return Metric(None, f"every example is of class {true[0]}")
    from sklearn.metrics import matthews_corrcoef

    # A constant prediction is 0 / 0, and by convention 0: no better than chance.
    return Metric(float(matthews_corrcoef(true, found)))


def _f1_over(average: str) -> Callable[[np.ndarray, np.ndarray, Sequence[str]], Metric]:
    def f1(true: np.ndarray, found: np.ndarray, classes: Sequence[str]) -> Metric:
        if not (true.any() or found.any()):
            return Metric(None, "no example has a label or is predicted to have one")
        # Counted here: scikit-learn takes a single label for two classes, and its micro F1 is then
        # the accuracy. 2 tp / (2 tp + fp + fn), of all labels at once or of each.
        axis = 0 if average == "macro" else None
        right = np.atleast_1d(np.sum((true > 0) & (found > 0), axis=axis))
        named = np.atleast_1d(np.sum(true > 0, axis=axis) + np.sum(found > 0, axis=axis))
        # A class that nobody has and nobody is said to have is 0 / 0: left out of the mean.
        return Metric(float(np.mean(2 * right[named > 0] / named[named > 0])))

    return f1


# --- numbers --------------------------------------------------------------------------------------


def _correlation(name: str) -> Callable[..., Metric]:
    """A correlation by its name in `scipy.stats`, of which training on classes needs nothing."""

    def correlation(true: np.ndarray, found: np.ndarray, classes: Sequence[str]) -> Metric:
        from scipy import stats

        for values, whose in ((true, "label"), (found, "prediction")):
            if np.all(values == values[0]):
                return Metric(None, f"every {whose} is {values[0]:g}")
        numbers = (true.astype(np.float64), found.astype(np.float64))
        return Metric(float(getattr(stats, name)(*numbers).statistic))

    return correlation


_pearson, _spearman = _correlation("pearsonr"), _correlation("spearmanr")


def _both(true: np.ndarray, found: np.ndarray, classes: Sequence[str]) -> Metric:
    """The mean of Pearson's and Spearman's correlation, which GLUE reports (Wang et al. 2019)."""
    linear, ranked = _pearson(true, found, classes), _spearman(true, found, classes)
    if linear.value is None or ranked.value is None:
        return linear
    return Metric((linear.value + ranked.value) / 2)


# --- tags -----------------------------------------------------------------------------------------


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of a sentence in IOB2: type, first and last word.

    As conlleval has it (Tjong Kim Sang and De Meulder 2003), an ``I-`` that continues no entity of
    its type begins one.
    """
    found, kind, first = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and (mark != "I" or name != kind):
            found.add((kind, first, place - 1))
            kind = ""
        if mark != "O" and not kind:
            kind, first = name, place
    return found


def _entity_f1(
    true: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: Sequence[str]
) -> Metric:
    """Entities of the right type and both bounds; a word that was not read is ``O``."""
    right = total = 0
    for mine, theirs in zip(found, true, strict=True):
        a, b = (
            entities([classes[tag] if tag >= 0 else "O" for tag in tags]) for tags in (mine, theirs)
        )
        right += len(a & b)
        total += len(a) + len(b)
    if not total:
        return Metric(None, "no entity is there or predicted")
    return Metric(2 * right / total)


def _tag_accuracy(
    true: Sequence[np.ndarray], found: Sequence[np.ndarray], classes: Sequence[str]
) -> Metric:
    return Metric(float(np.mean(np.concatenate(true) == np.concatenate(found))))


# --- answers --------------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> list[str]:
    """The words of an answer that SQuAD compares: lower case, no punctuation and no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _exact(true: list[str], found: list[str]) -> float:
    return float(true == found)


def _overlap(true: list[str], found: list[str]) -> float:
    """F1 of the words of two answers as bags; without words, whether both have none."""
    if not (true and found):
        return float(true == found)
    common = sum((collections.Counter(true) & collections.Counter(found)).values())
    return 2 * common / (len(true) + len(found))


def _over_answers(compare: Callable[[list[str], list[str]], float]) -> Callable[..., Metric]:
    """The mean over questions of the best agreement with one of the true answers.

    Rajpurkar et al. 2016 and 2018; where there is none, no answer is the true one.
    """

    def metric(true: Sequence[Any], found: Sequence[Any], classes: Sequence[str]) -> Metric:
        best = []
        for answers, answer in zip(true, found, strict=True):
            mine = normalize_answer(answer.text if answer else "")
            theirs = [words for a in answers if (words := normalize_answer(a.text))]
            best.append(max(compare(words, mine) for words in theirs or [[]]))
        return Metric(float(np.mean(best)))

    return metric


METRICS: dict[str, dict[str, Callable[..., Metric]]] = {
    "classification": {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews},
    "multi_label": {
        "f1_micro": _f1_over("micro"),
        "f1_macro": _f1_over("macro"),
        "accuracy": _accuracy,
    },
    "regression": {"pearson_spearman": _both, "pearson": _pearson, "spearman": _spearman},
    "tagging": {"entity_f1": _entity_f1, "accuracy": _tag_accuracy},
    "similarity": {"spearman": _spearman, "pearson": _pearson, "pearson_spearman": _both},
    "spans": {"f1": _over_answers(_overlap), "exact_match": _over_answers(_exact)},
}
