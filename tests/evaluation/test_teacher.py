"""When a teacher's classes are taken to stand in another order, and when not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxbert.evaluation.teacher import SURE, LabelOrder


def test_the_order_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(50):
        table = rng.integers(0, 9, (4, 4))
        found = LabelOrder.infer(table)
        best = max(table[range(4), list(p)].sum() for p in itertools.permutations(range(4)))
        assert table[range(4), list(found.order)].sum() == best
        if table.trace() == best:
            assert found.moved == []


@pytest.mark.parametrize("classes", [2, 3, 8, 77])
def test_a_teacher_that_guesses_is_hardly_ever_taken_for_shuffled(classes):
    """Over teachers that say some classes more often than others, without a look at the text."""
    rng, refused = np.random.default_rng(classes), 0
    for _ in range(500 if classes < 77 else 100):
        truth = rng.choice(classes, 277, p=rng.dirichlet(np.ones(classes)))
        said = rng.choice(classes, 277, p=rng.dirichlet(np.ones(classes) / 2))
        table = np.zeros((classes, classes), np.int64)
        np.add.at(table, (truth, said), 1)
        refused += LabelOrder.infer(table).chance <= SURE
    assert not refused


@pytest.mark.parametrize("accuracy", [0.55, 0.65, 0.9])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_reversed_teacher_of_two_classes_is_refused_once_it_is_sure(accuracy, reverse):
    """277 rows, as many as RTE has to develop on."""
    right = round(277 * accuracy)
    table = np.array([[right // 2, 138 - right // 2], [139 - (right - right // 2), 0]])
    table[1, 1] = right - right // 2
    found = LabelOrder.infer(table[:, ::-1] if reverse else table)
    assert (found.chance <= SURE) == (reverse and accuracy > 0.6)


def test_a_teacher_that_says_one_class_alone_is_weak_and_not_shuffled():
    """Nobody could say that the rarer class it always names is meant for the other."""
    table = np.array([[150, 0], [350, 0]])
    found = LabelOrder.infer(table)
    assert found.order == (1, 0) and found.chance > SURE


def test_two_of_many_classes_that_change_places_need_many_rows():
    table = np.diag(np.full(77, 7))
    for rows, sure in ((7, False), (60, True)):
        few = table.copy()
        few[[3, 4]] = 0
        few[3, 4] = few[4, 3] = rows
        found = LabelOrder.infer(few)
        assert found.moved == [3, 4] and (found.chance <= SURE) == sure
