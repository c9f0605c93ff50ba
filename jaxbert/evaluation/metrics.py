"""Classification metrics, computed by scikit-learn, with the reason where one is undefined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn import metrics as sk

from jaxbert.errors import UserError


class Metric(NamedTuple):
    """A metric's value, or why it has none.

    Attributes:
      value: None where the metric is undefined.
      undefined: the reason, empty where there is a value.
    """

    value: float | None
    undefined: str = ""


def _accuracy(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> Metric:
    return Metric(float(sk.accuracy_score(labels, predictions)))


def _f1(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> Metric:
    if num_labels != 2:
        return Metric(None, f"F1 is of two classes, and there are {num_labels}")
    if not (labels.any() or predictions.any()):
        return Metric(None, "no example is of class 1 or predicted to be")
    return Metric(float(sk.f1_score(labels, predictions)))


def _matthews(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> Metric:
    if np.unique(labels).size < 2:
        return Metric(None, f"every example is of class {labels[0]}")
    # A constant prediction is 0 / 0, and by convention 0: no better than chance.
    return Metric(float(sk.matthews_corrcoef(labels, predictions)))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, int], Metric]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
}


def classification_metrics(
    labels: np.ndarray, logits: np.ndarray, names: Sequence[str]
) -> dict[str, Metric]:
    """The named metrics of the most probable classes.

    Args:
      labels: int [N], each 0 .. C-1.
      logits: float [N, C].
      names: out of ``METRICS``.

    Raises:
      UserError: an unknown name, a label out of range, or a logit that is not finite.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"labels {labels.shape} and logits {logits.shape} do not match")
    for name in names:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}", "", f"give one of {', '.join(METRICS)}")
    if not labels.size:
        return {name: Metric(None, "there are no examples") for name in names}
    wrong = np.flatnonzero((labels < 0) | (labels >= logits.shape[1]))
    if wrong.size:
        raise UserError(
            f"label {labels[wrong[0]]} is not in 0 .. {logits.shape[1] - 1}",
            f"example {wrong[0]} of {labels.size}",
            "evaluate on data with the model's labels (some test splits hide theirs as -1)",
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise UserError(
            f"the predictions for {bad.size} of {labels.size} examples are not finite",
            f"first at example {bad[0]}",
            "train again with a lower learning rate",
        )
    predictions = logits.argmax(axis=1)
    return {name: METRICS[name](labels, predictions, logits.shape[1]) for name in names}


def standard_error(share: float, count: int) -> float:
    """Standard deviation of a share of ``count`` independent examples, sqrt(p (1 - p) / n)."""
    return float(np.sqrt(share * (1 - share) / count))
