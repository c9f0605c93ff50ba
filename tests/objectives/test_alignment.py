"""The layer map: the paper's, the general one, and what cannot be matched."""

from __future__ import annotations

import pytest
from small import STUDENT, TEACHER

from jaxbert.errors import UserError
from jaxbert.models.bert import PRESETS
from jaxbert.objectives.alignment import Alignment, align, layer_map, uniform


def test_tinybert4_learns_from_the_papers_layers_of_bert_base():
    alignment = align(PRESETS["bert-base"], PRESETS["tinybert4"])
    assert alignment == Alignment(hidden=(0, 3, 6, 9, 12), attention=(2, 5, 8, 11))


@pytest.mark.parametrize(("teacher", "student"), [(12, 4), (12, 6), (6, 3), (4, 4), (5, 1)])
def test_uniform_map_is_the_papers_wherever_depths_divide(teacher, student):
    step = teacher // student
    assert uniform(teacher, student) == tuple(m * step for m in range(1, student + 1))


@pytest.mark.parametrize("teacher", range(1, 14))
def test_uniform_map_climbs_evenly_to_the_last_layer(teacher):
    for student in range(1, teacher + 1):
        layers = uniform(teacher, student)
        gaps = {b - a for a, b in zip((0, *layers), layers, strict=False)}
        assert layers[-1] == teacher
        assert gaps <= {teacher // student, -(-teacher // student)}
    assert uniform(6, 4) == (2, 3, 5, 6)


def test_explicit_map_is_taken_as_given_and_may_repeat_layers():
    deeper = STUDENT.replace(num_layers=4)
    assert align(TEACHER, deeper, (1, 1, 2, 3)) == Alignment((0, 1, 1, 2, 3), (0, 0, 1, 2))


@pytest.mark.parametrize(
    ("change", "layer_map", "message"),
    [
        ({"num_layers": 4}, (), "4 layers and its teacher 3"),
        ({}, (1,), "1 teacher layers are named for 2 student layers"),
        ({}, (0, 1), "teacher layer 0 does not exist"),
        ({}, (1, 4), "teacher layer 4 does not exist"),
        ({"num_heads": 2}, (), "2 attention heads and its teacher 4"),
    ],
)
def test_what_cannot_be_matched_is_refused(change, layer_map, message):
    with pytest.raises(UserError, match=message):
        align(TEACHER, STUDENT.replace(**change), layer_map)


def test_heads_may_differ_where_no_scores_are_matched():
    alignment = align(TEACHER, STUDENT.replace(num_heads=2), scores=False)
    assert alignment.hidden == (0, 2, 3)


@pytest.mark.parametrize(
    ("rule", "layers"),
    [
        ("uniform", (2, 3, 5, 6)),
        ("top", (3, 4, 5, 6)),
        ("bottom", (1, 2, 3, 4)),
        ("1, 1,5,6", (1, 1, 5, 6)),
    ],
)
def test_a_rule_names_layers_from_1(rule, layers):
    assert layer_map(rule, 6, 4) == layers


@pytest.mark.parametrize(
    "rule", ["last", "", "1,2,3", "0,1,2,3", "1,2,3,7", "1,2,3,x", "1,2,x,3,4"]
)
def test_a_rule_that_does_not_fit_is_refused_with_one_that_does(rule):
    with pytest.raises(UserError, match="or 4 numbers from 1 to 6, such as 2,3,5,6"):
        layer_map(rule, 6, 4)


def test_a_deeper_student_needs_layers_that_are_named():
    assert layer_map("1,1,2", 2, 3) == (1, 1, 2)
    for rule in ("top", "bottom"):
        with pytest.raises(UserError, match="names no teacher layers for 3"):
            layer_map(rule, 2, 3)
