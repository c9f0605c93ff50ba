"""What students and teachers say of rows, against scikit-learn and a few lines of NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from jaxbert.data.labels import Answer
from jaxbert.data.rows import Rows
from jaxbert.data.tasks import Task
from jaxbert.evaluation.comparison import calibration, compare, confusion, differing
from jaxbert.evaluation.predictions import Predictions, read_classes, read_labels, read_numbers

N, CLASSES = 400, ("red", "green", "blue")
TEXTS = [f"row {i}" for i in range(N)]


def task_of(kind: str, labels: tuple[str, ...] = (), columns: tuple[str, ...] = ("text",)) -> Task:
    return Task("mine", "tsv:there.tsv", columns, labels, kind=kind)


@pytest.fixture(scope="module")
def classes():
    """Labels of three classes, a good teacher and a student near it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N).astype(np.int32)
    teacher = rng.normal(size=(N, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[labels]
    student = teacher + rng.normal(size=(N, 3)).astype(np.float32)
    return Rows(TEXTS, None, labels), read_classes(teacher), read_classes(student)


def expected_error(sure: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, equation 5, bin by bin as it is written there."""
    error = 0.0
    for m in range(1, bins + 1):
        inside = (sure > (m - 1) / bins) & (sure <= m / bins)
        if inside.any():
            error += inside.sum() / len(sure) * abs(right[inside].mean() - sure[inside].mean())
    return error


def test_classes_are_compared(classes):
    rows, teacher, student = classes
    found = compare(task_of("classification", CLASSES), rows, student, teacher)
    same = student.values == teacher.values
    assert found["agreement"] == same.mean()
    right, known = student.values == rows.labels, teacher.values == rows.labels
    table = sk.confusion_matrix(known, right)
    counts = [found["outcomes"][name] for name in ("neither", "model", "teacher", "both")]
    assert counts == table.ravel().tolist()
    assert found["confusion"]["classes"] == list(CLASSES)
    assert found["confusion"]["counts"] == sk.confusion_matrix(rows.labels, student.values).tolist()
    sure = special.softmax(np.log(student.scores.astype(np.float64)), axis=1).max(axis=1)
    error = expected_error(sure, right)
    assert found["calibration"]["error"] == pytest.approx(error, abs=1e-6)
    assert 0.02 < error < 0.3
    assert sum(bin["count"] for bin in found["calibration"]["bins"]) == N
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_a_teacher_nothing_is_compared_with_it(classes):
    rows, _, student = classes
    found = compare(task_of("classification", CLASSES), rows, student, None)
    assert found["agreement"] is None and found["outcomes"] is None
    assert found["calibration"] and found["confusion"]


def test_a_class_that_no_row_has_stands_in_the_confusion_matrix(classes):
    rows, _, student = classes
    task = task_of("classification", (*CLASSES, "grey"))
    assert np.array(confusion(task, rows, student)["counts"]).shape == (4, 4)
    many = task_of("classification", tuple(map(str, range(51))))
    assert confusion(many, rows, student) is None


def test_a_confidence_of_a_bin_s_upper_end_is_in_it():
    rows = Rows(TEXTS[:3], None, np.array([0, 1, 1], np.int32))
    scores = np.array([[0.6, 0.4], [0.4, 0.6], [0.0, 1.0]])
    found = calibration(
        task_of("classification", ("no", "yes")), rows, Predictions(scores.argmax(1), scores)
    )
    assert [(bin["high"], bin["count"]) for bin in found["bins"]] == [(0.6, 2), (1.0, 1)]
    assert found["error"] == pytest.approx(2 / 3 * 0.4)


def test_the_most_different_rows_come_first(classes):
    rows, teacher, student = classes
    found = differing(task_of("classification", CLASSES), rows, student, teacher, count=5)
    distance = np.abs(student.scores.astype(np.float64) - teacher.scores).sum(axis=1) / 2
    assert [row["row"] for row in found] == np.argsort(-distance)[:5].tolist()
    first = found[0]
    assert first["difference"] == pytest.approx(distance.max())
    assert first["text"] == TEXTS[first["row"]] and first["pair"] is None
    assert first["true"] == CLASSES[rows.labels[first["row"]]]
    assert first["student"].startswith(CLASSES[student.values[first["row"]]] + " (0.")
    assert differing(task_of("classification", CLASSES), rows, teacher, teacher) == []


def test_one_label_alone_has_its_row_of_the_table():
    labels = np.array([[1], [1], [0], [0], [0]], np.float32)
    said = read_labels(np.array([[1], [-1], [1], [-1], [-1]], np.float32))
    rows = Rows(TEXTS[:5], None, labels)
    found = confusion(task_of("multi_label", ("spam",)), rows, said)
    assert found == {"classes": ["spam"], "counts": [[1, 1, 1, 2]]}


def test_several_labels_are_compared_row_by_row():
    rng = np.random.default_rng(1)
    labels = (rng.random((N, 3)) < 0.4).astype(np.float32)
    teacher = read_labels(rng.normal(size=(N, 3)) + 2 * labels - 1)
    student = read_labels(rng.normal(size=(N, 3)) + 2 * labels - 1)
    rows, task = Rows(TEXTS, None, labels), task_of("multi_label", CLASSES)
    found = compare(task, rows, student, teacher)
    assert found["agreement"] == (student.values == teacher.values).all(axis=1).mean()
    right = sk.accuracy_score(labels, student.values, normalize=False)
    assert found["outcomes"]["both"] + found["outcomes"]["model"] == right
    for counts, table in zip(
        found["confusion"]["counts"],
        sk.multilabel_confusion_matrix(labels, student.values),
        strict=True,
    ):
        assert counts == table.ravel()[[3, 1, 2, 0]].tolist()
    sure = np.maximum(student.scores, 1 - student.scores).ravel()
    error = expected_error(sure, (student.values == labels).ravel())
    assert found["calibration"]["error"] == pytest.approx(error)
    row = differing(task, rows, student, teacher, count=1)[0]
    assert row["difference"] == pytest.approx(np.abs(student.scores - teacher.scores).mean(1).max())
    assert set(row["true"].split(", ")) <= {*CLASSES, "none"}


@pytest.mark.parametrize("kind", ["regression", "similarity"])
def test_numbers_agree_as_they_correlate(kind):
    rng = np.random.default_rng(2)
    true = rng.random(N).astype(np.float32)
    teacher, student = (
        read_numbers(true[:, None] + s * rng.normal(size=(N, 1))) for s in (0.1, 0.3)
    )
    rows, task = Rows(TEXTS, TEXTS, true), task_of(kind, (), ("a", "b"))
    found = compare(task, rows, student, teacher)
    assert found["agreement"] == pytest.approx(np.corrcoef(student.values, teacher.values)[0, 1])
    assert found["outcomes"] is found["calibration"] is found["confusion"] is None
    np.testing.assert_allclose(found["numbers"]["found"], student.values, atol=1e-5)
    gap = np.abs(student.values - teacher.values)
    assert differing(task, rows, student, teacher, 1)[0]["difference"] == pytest.approx(gap.max())
    flat = Predictions(np.zeros(N))
    assert compare(task, rows, flat, teacher)["agreement"] is None


def test_words_that_were_cut_off_are_no_decisions():
    task = Task("mine", "conll:there", ("words",), ("x",), kind="tagging", scheme="IOB2")
    tags = [np.array([0, 1, 2]), np.array([0, 0])]
    rows = Rows(["a b c", "d e"], None, None, [("a", "b", "c"), ("d", "e")], tags)
    teacher = Predictions(tags, [np.full(3, 0.9), np.full(2, 0.8)])
    student = Predictions(
        [np.array([0, 0, -1]), np.array([0, 1])], [np.array([0.7, 0.6, 0.0]), np.array([0.9, 0.4])]
    )
    found = compare(task, rows, student, teacher)
    assert found["agreement"] == 0.5
    assert found["outcomes"] == {"both": 2, "teacher": 2, "model": 0, "neither": 0}
    assert found["confusion"]["counts"] == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]
    sure, right = np.array([0.7, 0.6, 0.9, 0.4]), np.array([1, 0, 1, 0])
    assert found["calibration"]["error"] == pytest.approx(expected_error(sure, right))
    first, second = differing(task, rows, student, teacher)
    assert (first["row"], first["difference"]) == (0, pytest.approx(2 / 3))
    assert first["student"] == "b: O, c: not read" and first["teacher"] == "b: B-x, c: I-x"
    assert second["true"] == "e: O"


def test_answers_agree_as_squad_compares_them():
    task = Task("mine", "squad:there", ("question", "context"), (), kind="spans")
    answers = [(Answer(0, "The Seine"),), (Answer(4, "Rome"),), (), ()]
    rows = Rows(["q"] * 4, ["c"] * 4, None, answers=answers)
    teacher = Predictions(
        [Answer(4, "Seine"), Answer(0, "Paris"), None, Answer(0, "x")], np.zeros(4)
    )
    student = Predictions([Answer(0, "the Seine"), Answer(4, "Rome"), None, None], np.zeros(4))
    found = compare(task, rows, student, teacher)
    assert found["agreement"] == 0.5
    assert found["outcomes"] == {"both": 2, "teacher": 0, "model": 2, "neither": 0}
    assert found["confusion"] == {"classes": ["no answer", "an answer"], "counts": [[2, 0], [0, 2]]}
    assert found["calibration"] is None
    rows_found = differing(task, rows, student, teacher)
    assert [(row["row"], row["student"]) for row in rows_found] == [(1, "Rome"), (3, "no answer")]


def test_long_texts_are_cut_and_no_rows_are_no_comparison():
    rows = Rows(["x" * 1_000, "y"], None, np.array([0.0, 1.0], np.float32))
    task = task_of("regression")
    first, second = Predictions(np.array([0.0, 1.0])), Predictions(np.array([3.0, 2.0]))
    found = differing(task, rows, first, second)
    assert [len(row["text"]) for row in found] == [400, 1]
    none = Rows([], None, np.zeros(0, np.int32))
    empty = Predictions(np.zeros(0, int), np.zeros((0, 3)))
    found = compare(task_of("classification", CLASSES), none, empty, empty)
    assert found["agreement"] is found["calibration"] is found["confusion"] is None
