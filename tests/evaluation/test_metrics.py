"""Metrics against values worked out by hand, and what is refused or undefined."""

from __future__ import annotations

import numpy as np
import pytest

from jaxbert.errors import UserError
from jaxbert.evaluation.metrics import METRICS, classification_metrics, standard_error


def logits_for(predictions, num_labels=2):
    return np.eye(num_labels, dtype=np.float32)[predictions]


def test_values_are_those_of_the_definitions():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    labels = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    predictions = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    metrics = classification_metrics(labels, logits_for(predictions), list(METRICS))
    assert metrics["accuracy"].value == pytest.approx(7 / 10)
    assert metrics["f1"].value == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    matthews = (3 * 4 - 1 * 2) / np.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert metrics["matthews"].value == pytest.approx(matthews)
    assert not any(metric.undefined for metric in metrics.values())


def test_a_matthews_below_zero_is_a_value_and_a_constant_prediction_is_zero():
    labels = np.array([0, 1])
    for predictions, value in (([1, 0], -1.0), ([1, 1], 0.0)):
        metric = classification_metrics(labels, logits_for(predictions), ["matthews"])["matthews"]
        assert metric == (value, "")


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "num_labels", "reason"),
    [
        ("f1", [0, 0], [0, 0], 2, "class 1"),
        ("f1", [0, 2], [0, 1], 3, "there are 3"),
        ("matthews", [1, 1], [0, 1], 2, "every example is of class 1"),
        ("accuracy", [], [], 2, "no examples"),
    ],
)
def test_an_undefined_metric_says_why(name, labels, predictions, num_labels, reason):
    labels, predictions = np.array(labels, int), np.array(predictions, int)
    metric = classification_metrics(labels, logits_for(predictions, num_labels), [name])[name]
    assert metric.value is None
    assert reason in metric.undefined


@pytest.mark.parametrize(
    ("labels", "logits", "name", "said"),
    [
        ([0, -1], np.eye(2), "accuracy", "label -1 is not in 0 .. 1, example 1 of 2"),
        ([0, 2], np.eye(2), "accuracy", "label 2"),
        ([0, 1], np.array([[0, 1], [np.nan, 0]]), "accuracy", "not finite, first at example 1"),
        ([0, 1], np.eye(2), "acuracy", "unknown metric 'acuracy'"),
    ],
)
def test_what_would_give_a_wrong_number_is_refused(labels, logits, name, said):
    with pytest.raises(UserError, match=said):
        classification_metrics(np.array(labels), logits, [name])


def test_standard_error_of_an_accuracy_is_that_of_repeated_draws():
    draws = np.random.default_rng(0).binomial(1031, 0.84, 20_000) / 1031
    assert standard_error(0.84, 1031) == pytest.approx(draws.std(), rel=0.02)
