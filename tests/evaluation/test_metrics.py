"""Metrics against values worked out by hand, and where they are undefined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxbert.data import tasks
from jaxbert.data.labels import Answer
from jaxbert.data.rows import Rows
from jaxbert.data.tasks import Task
from jaxbert.evaluation.metrics import (
    METRICS,
    Metric,
    entities,
    normalize_answer,
    score_rows,
    standard_error,
)
from jaxbert.evaluation.predictions import Predictions

ROLES = ("PER", "LOC")


def task_of(kind: str, labels: tuple[str, ...] = ()) -> Task:
    return Task("mine", "tsv:rows.tsv", ("text",), labels, kind=kind)


def classes(true: list, found: list, labels=("no", "yes"), kind="classification") -> dict:
    """Every metric of labels and predictions."""
    task = task_of(kind, labels)
    rows = Rows(["text"] * len(true), None, np.array(true))
    return score_rows(task, rows, Predictions(np.array(found)), tuple(METRICS[kind]))


def test_every_kind_has_the_metrics_that_a_task_may_name():
    assert {kind: set(known) for kind, known in METRICS.items()} == {
        kind: set(known) for kind, known in tasks.METRICS.items()
    }


# --- classes -------------------------------------------------------------------------------------


def test_values_are_those_of_the_definitions():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    found = classes([1, 1, 1, 0, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert found["accuracy"].value == pytest.approx(7 / 10)
    assert found["f1"].value == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    matthews = (3 * 4 - 1 * 2) / np.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert found["matthews"].value == pytest.approx(matthews)
    assert not any(metric.undefined for metric in found.values())


def test_a_matthews_below_zero_is_a_value_and_a_constant_prediction_is_zero():
    for found, value in (([1, 0], -1.0), ([1, 1], 0.0)):
        assert classes([0, 1], found)["matthews"] == (value, "")


@pytest.mark.parametrize(
    ("name", "true", "found", "labels", "reason"),
    [
        ("f1", [0, 0], [0, 0], "ab", "class 1"),
        ("f1", [0, 2], [0, 1], "abc", "there are 3"),
        ("matthews", [1, 1], [0, 1], "ab", "every example is of class 1"),
        ("accuracy", [], [], "ab", "no examples"),
    ],
)
def test_an_undefined_metric_says_why(name, true, found, labels, reason):
    metric = classes(true, found, tuple(labels))[name]
    assert metric.value is None
    assert reason in metric.undefined


def test_predictions_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2 labelled rows"):
        classes([0, 1], [1])


def test_several_labels_an_example():
    # Class 0: 2 right, 1 missed; class 1: 1 right, 1 too many; class 2: nowhere, left out.
    true = [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    guess = [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    found = classes(true, guess, ("a", "b", "c"), "multi_label")
    assert found["f1_micro"].value == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found["f1_macro"].value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["accuracy"].value == pytest.approx(2 / 3)  # all labels of a row
    nothing = classes([[0, 0]], [[0, 0]], ("a", "b"), "multi_label")
    assert nothing["f1_micro"].value is nothing["f1_macro"].value is None
    assert "no example has a label" in nothing["f1_macro"].undefined


def test_f1_of_a_single_label_is_of_those_who_have_it():
    # 2 true positives, 1 false positive, 3 false negatives, 4 true negatives.
    true = np.array([[1], [1], [0], [1], [1], [1], [0], [0], [0], [0]], np.float32)
    guess = np.array([[1], [1], [1], [0], [0], [0], [0], [0], [0], [0]], np.float32)
    found = classes(true, guess, ("a",), "multi_label")
    wanted = pytest.approx(2 * 2 / (2 * 2 + 1 + 3))
    assert found["f1_micro"].value == found["f1_macro"].value == wanted
    assert found["accuracy"].value == pytest.approx(6 / 10)
    # A second label that nobody has and nobody is said to have changes neither F1.
    two = [np.hstack([x, np.zeros_like(x)]) for x in (true, guess)]
    assert classes(*two, ("a", "b"), "multi_label") == found
    none = classes(true, np.zeros_like(true), ("a",), "multi_label")
    assert none["f1_micro"].value == none["f1_macro"].value == 0


def test_standard_error_of_an_accuracy_is_that_of_repeated_draws():
    draws = np.random.default_rng(0).binomial(1031, 0.84, 20_000) / 1031
    assert standard_error(0.84, 1031) == pytest.approx(draws.std(), rel=0.02)


# --- numbers -------------------------------------------------------------------------------------


def numbers(true: list, found: list) -> dict[str, Metric]:
    return classes(true, np.array(found, np.float32), (), "regression")


def test_correlations_are_those_of_the_definitions():
    true, guess = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.0, 1.0, 9.0, 1.5])
    a, b = true - true.mean(), guess - guess.mean()
    linear = (a @ b) / np.sqrt((a @ a) * (b @ b))
    found = numbers(list(true), list(guess))
    assert found["pearson"].value == pytest.approx(linear)
    assert found["spearman"].value == pytest.approx(1.0)  # the same order
    assert found["pearson_spearman"].value == pytest.approx((linear + 1) / 2)
    assert numbers([1, 2, 3], [3, 2, 1])["pearson_spearman"].value == pytest.approx(-1)


def test_correlation_with_a_constant_is_undefined():
    assert numbers([1, 2], [3, 3])["pearson_spearman"] == (None, "every prediction is 3")
    assert numbers([0.5, 0.5], [1, 2])["spearman"] == (None, "every label is 0.5")


# --- tags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", ()),
        ("B-PER I-PER O", (("PER", 0, 1),)),
        ("B-PER B-PER", (("PER", 0, 0), ("PER", 1, 1))),
        ("B-PER I-LOC", (("PER", 0, 0), ("LOC", 1, 1))),
        ("O I-PER I-PER", (("PER", 1, 2),)),
        ("I-PER B-PER I-PER", (("PER", 0, 0), ("PER", 1, 2))),
        ("B-PER O I-PER", (("PER", 0, 0), ("PER", 2, 2))),
        ("O B-LOC", (("LOC", 1, 1),)),
        ("B-a-b I-a-b", (("a-b", 0, 1),)),
        ("", ()),
    ],
)
def test_entities_are_those_of_conlleval(tags, expected):
    assert entities(tags.split()) == set(expected)


def tagged(true: list[str], found: list[str]) -> dict[str, Metric]:
    """The metrics of sentences of tags; ``-`` is a word that was cut off."""
    task = task_of("tagging", ROLES)

    def number(tag: str) -> int:
        return -1 if tag == "-" else task.classes.index(tag)

    true_tags, found_tags = (
        [np.array([number(tag) for tag in sentence.split()], np.int32) for sentence in sentences]
        for sentences in (true, found)
    )
    words = [("word",) * len(tags) for tags in true_tags]
    rows = Rows([" ".join(w) for w in words], None, None, words, true_tags)
    return score_rows(task, rows, Predictions(found_tags), tuple(METRICS["tagging"]))


def test_an_entity_is_right_when_its_type_and_both_bounds_are():
    true = ["B-PER I-PER O B-LOC", "B-LOC O"]
    assert tagged(true, true)["entity_f1"].value == 1
    # One of three found, one too short, one of another type: 1 of 3 and 1 of 3.
    found = tagged(true, ["B-PER O O B-LOC", "B-PER O"])
    assert found["entity_f1"].value == pytest.approx(1 / 3)
    assert found["accuracy"].value == pytest.approx(4 / 6)
    # An entity goes by its bounds, not by how they are marked.
    assert tagged(["B-PER I-PER"], ["I-PER I-PER"])["entity_f1"].value == 1


def test_words_that_were_cut_off_hold_no_entity_and_are_wrong():
    found = tagged(["B-PER O B-LOC"], ["B-PER O -"])
    assert found["entity_f1"].value == pytest.approx(2 / 3)
    assert found["accuracy"].value == pytest.approx(2 / 3)


def test_no_entities_at_all_is_undefined():
    assert tagged(["O O"], ["O O"])["entity_f1"] == (None, "no entity is there or predicted")
    assert tagged(["O O"], ["O B-LOC"])["entity_f1"].value == 0


# --- answers -------------------------------------------------------------------------------------


def answered(true: list[tuple[str, ...]], found: list[str | None]) -> tuple[Any, Any]:
    """Exact match and F1."""
    answers = [tuple(Answer(0, text) for text in texts) for texts in true]
    rows = Rows(["who?"] * len(true), ["context"] * len(true), None, answers=answers)
    values = [None if text is None else Answer(0, text) for text in found]
    found = score_rows(task_of("spans"), rows, Predictions(values), ("exact_match", "f1"))
    return found["exact_match"].value, found["f1"].value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Cat", ["cat"]),
        ("  an   U.S. dollar, ", ["us", "dollar"]),
        ("a", []),
        ("theatre", ["theatre"]),
        ("Rock-and-roll", ["rockandroll"]),
        ("1,000", ["1000"]),
        ("", []),
    ],
)
def test_answers_are_compared_as_squad_compares_them(text, words):
    assert normalize_answer(text) == words


@pytest.mark.parametrize(
    ("true", "found", "exact", "f1"),
    [
        (("the cat",), "Cat!", 1, 1),
        (("black cat",), "cat", 0, 2 / 3),
        (("cat", "the black cat sat"), "black cat", 0, 4 / 5),  # the best of them
        (("cat cat",), "cat", 0, 2 / 3),  # as bags
        (("dog",), "cat", 0, 0),
        ((), None, 1, 1),  # SQuAD 2.0: rightly none
        ((), "cat", 0, 0),
        (("cat",), None, 0, 0),
        (("the", "cat"), "cat", 1, 1),  # an answer of articles alone does not count
        (("the",), None, 1, 1),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(true, found, exact, f1):
    assert answered([true], [found]) == (exact, pytest.approx(f1))


def test_answers_are_averaged_over_questions():
    assert answered([("cat",), ("dog",)], ["cat", "black dog"]) == (0.5, pytest.approx(5 / 6))
