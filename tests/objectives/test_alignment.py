"""Layer maps: the paper's, the others, and what cannot be matched."""

from __future__ import annotations

import pytest
from small import STUDENT, TEACHER, distillation

from jaxbert.config import TermConfig
from jaxbert.errors import UserError
from jaxbert.models.bert import PRESETS
from jaxbert.objectives.alignment import layer_map, layer_pairs


def pairs_of(objective, name):
    return next(match.layers for match in objective.matches if match.name == name)


def test_tinybert4_learns_from_the_papers_layers_of_bert_base():
    objective = distillation(
        PRESETS["tinybert4"].replace(projection_size=768), PRESETS["bert-base"], preset="tinybert"
    )
    layers = ((1, 3), (2, 6), (3, 9), (4, 12))
    assert pairs_of(objective, "attention") == pairs_of(objective, "hidden") == (layers,)
    assert pairs_of(objective, "embedding") == (((0, 0),),)


@pytest.mark.parametrize(("teacher", "student"), [(12, 4), (12, 6), (6, 3), (4, 4), (5, 1)])
def test_uniform_map_is_the_papers_wherever_depths_divide(teacher, student):
    step = teacher // student
    wanted = tuple(m * step for m in range(1, student + 1))
    assert layer_map("uniform", teacher, student) == wanted


@pytest.mark.parametrize("teacher", range(1, 14))
def test_uniform_map_climbs_evenly_to_the_last_layer(teacher):
    for student in range(1, teacher + 1):
        layers = layer_map("uniform", teacher, student)
        gaps = {b - a for a, b in zip((0, *layers), layers, strict=False)}
        assert layers[-1] == teacher
        assert gaps <= {teacher // student, -(-teacher // student)}
    assert layer_map("uniform", 6, 4) == (2, 3, 5, 6)


@pytest.mark.parametrize(
    ("term", "wanted"),
    [
        ({"layers": "top"}, ((1, 3), (2, 4), (3, 5), (4, 6))),
        ({"layers": "bottom"}, ((1, 1), (2, 2), (3, 3), (4, 4))),
        ({"layers": "last"}, ((4, 6),)),
        ({"layers": "last", "student_layers": (3,)}, ((3, 6),)),
        ({"layers": "skip"}, ((1, 2), (2, 3), (3, 5))),
        ({"layers": "1, 1,2,6"}, ((1, 1), (2, 1), (3, 2), (4, 6))),
        ({"layers": "(5,)".replace(",", ""), "student_layers": (2,)}, ((2, 5),)),
        ({"student_layers": (2, 4)}, ((2, 3), (4, 6))),
    ],
)
def test_rules_and_numbers_pair_layers(term, wanted):
    assert layer_pairs(TermConfig(**term), 6, 4) == wanted


def test_a_student_may_be_deeper_than_its_teacher_by_explicit_numbers():
    assert layer_pairs(TermConfig(layers="1,1,2,3"), 3, 4) == ((1, 1), (2, 1), (3, 2), (4, 3))


HIDDEN = {"feature": "hidden"}
SCORES = {"feature": "scores"}


@pytest.mark.parametrize(
    ("change", "term", "message"),
    [
        ({"num_layers": 4}, HIDDEN, "4 layers and its teacher 3.*terms.it.layers"),
        ({}, HIDDEN | {"layers": "1"}, "1 teacher layers are named for 2 student layers"),
        ({}, HIDDEN | {"layers": "0,1"}, "teacher layer 0 does not exist"),
        ({}, HIDDEN | {"layers": "upper"}, "'upper' names no layers.*give uniform, top"),
        (
            {},
            HIDDEN | {"student_layers": (3,)},
            "student layer 3 does not exist, config key terms.it.student_layers; give 1 to 2",
        ),
        (
            {},
            HIDDEN | {"layers": "1,4"},
            "teacher layer 4 does not exist, config key terms.it.layers; give 1 to 3",
        ),
        ({"num_layers": 1}, HIDDEN | {"layers": "skip"}, "no layer is left to match"),
        (
            {},
            HIDDEN | {"layers": "skip", "student_layers": (1, 2)},
            "skip leaves out the last student layer, 2, config key terms.it.student_layers",
        ),
        (
            {"hidden_size": 24, "head": "tagging", "num_labels": 2},
            {"feature": "pooled"},
            "head for tagging reads no pooled output.*leave it out",
        ),
        ({"vocab_size": 60}, {"feature": "mlm_logits"}, "60 rows of words, its teacher 64"),
        ({"num_heads": 2}, SCORES, "2 attention heads and its teacher 4.*mean or group.*minilmv2"),
        ({"projection_size": 0}, HIDDEN, "16 wide and its teacher's 24.*shared or layer"),
        ({}, HIDDEN | {"projection": False}, "16 wide and its teacher's 24.*projection true"),
        ({}, {"feature": "pooled"}, "pooled are 16 wide and its teacher's 24"),
        ({}, {"feature": "value_relation", "relation_heads": 5}, "give one of 1, 2, 4, 8"),
        (
            {"num_heads": 2},
            {"feature": "value_relation", "relation_heads": -1},
            "2 attention heads and its teacher 4.*relation_heads 0",
        ),
        ({}, SCORES | {"loss": "cosine"}, "cosine does not compare scores.*give one of mse"),
        ({}, HIDDEN | {"temperature": 2.0}, "mse of hidden does not read temperature.*remove it"),
        ({}, {"feature": "logits", "layers": "top"}, "soft_cross_entropy of logits does not read"),
        (
            {"num_labels": 2},
            {"feature": "logits", "standardize": True},
            "standardized logits of two classes are always",
        ),
        (
            {"head": "spans", "num_labels": 2},
            {"feature": "logits", "loss": "mse"},
            "of which mse knows nothing",
        ),
        ({}, HIDDEN | {"standardize": True}, "mse of hidden does not read standardize"),
        (
            {"head": "regression", "num_labels": 1},
            {"feature": "logits", "loss": "kl"},
            "kl does not compare logits of a regression.*mse, labels",
        ),
        (
            {"head": "spans", "num_labels": 2},
            {"feature": "logits", "loss": "dist"},
            "dist correlates classes, and spans has none",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_remedies(change, term, message):
    with pytest.raises(UserError, match=message):
        distillation(STUDENT.replace(**change), TEACHER, it=term)


def test_the_authors_code_knows_its_own_terms_alone():
    with pytest.raises(UserError, match="the authors' code does not compare"):
        distillation(STUDENT, TEACHER, preset="minilmv2", compat="huawei")


def test_minilm_compares_values_by_the_heads_that_the_models_have():
    large = PRESETS["bert-base"].replace(hidden_size=1024, num_layers=24, num_heads=16)
    student = large.replace(hidden_size=512, num_layers=6)
    assert [match.heads for match in distillation(student, large, preset="minilm").matches] == [
        (16,),
        (16,),
    ]


@pytest.mark.parametrize(("rule", "heads"), [("mean", 1), ("group", 2)])
def test_heads_that_differ_are_averaged(rule, heads):
    fewer = STUDENT.replace(num_heads=2)
    objective = distillation(fewer, TEACHER, it=SCORES | {"heads": rule})
    assert objective.matches[0].heads == (heads,)


def test_relations_are_cut_into_the_most_heads_that_divide_both_widths():
    objective = distillation(
        PRESETS["tinybert4"], PRESETS["minilm-l6"], PRESETS["bert-base"], preset="minilmv2"
    )
    assert {match.heads for match in objective.matches} == {(24, 24)}  # of 312 and 384, and 768
