"""A student cut out of its teacher: the same numbers where nothing is cut away."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import numpy as np
import pytest
from small import (
    STUDENT,
    TEACHER,
    examples,
    one_batch,
    visible_params,
)

from jaxbert.config import RunConfig, StudentConfig
from jaxbert.errors import UserError
from jaxbert.models.bert import Bert, BertConfig, init_params
from jaxbert.models.encoder import Collect
from jaxbert.models.reduction import init_from_teacher
from jaxbert.shapes import Shapes

KEY = jax.random.key(0)
PARAMS = visible_params(TEACHER, 5)
LAYERS = (1, 2)
NARROW = STUDENT.replace(intermediate_size=20, max_position_embeddings=20)


@functools.cache
def narrow_params() -> Any:
    return init_from_teacher(NARROW, TEACHER, PARAMS, LAYERS, KEY)


def forward(config: BertConfig, params: Any) -> Any:
    batch = one_batch(examples([9, 3, 12, 5]), packing=True, row_length=16)
    layers = range(config.num_layers)
    collect = Collect(hidden=(0, *(i + 1 for i in layers)), scores=tuple(layers))
    return jax.jit(lambda p: Bert(config).apply({"params": p}, batch, collect=collect))(params)


def test_student_of_the_teachers_own_shape_is_the_teacher():
    twin = TEACHER.replace(projection_size=TEACHER.hidden_size)
    params = init_from_teacher(twin, TEACHER, PARAMS, (0, 1, 2), KEY)
    mine, theirs = forward(twin, params), forward(TEACHER, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    for group in ("embeddings", "encoder", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, params[group], PARAMS[group])
    np.testing.assert_array_equal(params["projection"]["kernel"], np.eye(TEACHER.hidden_size))
    assert not params["projection"]["bias"].any()


def test_student_that_a_run_cuts_out_computes_as_its_teacher_does():
    """Activation and epsilon are no parameters: the shape of a run has to bring them."""
    teacher = TEACHER.replace(activation="relu", layer_norm_eps=1e-3)
    sizes = {"hidden_size": 24, "num_layers": 3, "num_heads": 4, "intermediate_size": 40}

    def shape(init: str) -> BertConfig:
        student = StudentConfig(preset="tinybert4", projection="none", init=init, **sizes)
        config = RunConfig(teacher="models/bert", student=student)
        return Shapes(config, teacher, teacher.vocab_size, lambda _: teacher).of("initial_student")

    twin, fresh = shape("teacher"), shape("random")
    assert (fresh.activation, fresh.layer_norm_eps) == ("gelu", 1e-12)
    params = init_from_teacher(twin, teacher, PARAMS, (0, 1, 2), KEY)
    mine, theirs = forward(twin, params), forward(teacher, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


@pytest.mark.parametrize("layers", [(0, 2), (0, 0, 1, 2)])
def test_shallower_or_deeper_student_is_the_chosen_layers(layers):
    other = TEACHER.replace(num_layers=len(layers))
    params = init_from_teacher(other, TEACHER, PARAMS, layers, KEY)
    picked = jax.tree.map(lambda x: x[np.array(layers)], PARAMS["encoder"])
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], picked)


@pytest.mark.parametrize("per_layer", [False, True])
def test_narrow_student_has_the_shapes_of_a_fresh_one(per_layer):
    config = NARROW.replace(projection_per_layer=per_layer)
    params = init_from_teacher(config, TEACHER, PARAMS, LAYERS, KEY)
    fresh = jax.eval_shape(lambda: init_params(config, KEY))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, fresh)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_kept_coordinates_are_the_same_everywhere():
    """Read off the projection, they explain every other parameter."""
    params = narrow_params()
    back = params["projection"]["kernel"]  # [D, D']
    assert set(np.unique(back)) == {0, 1}
    rows, kept = np.nonzero(back)
    np.testing.assert_array_equal(rows, np.arange(NARROW.hidden_size))
    assert len(set(kept)) == NARROW.hidden_size

    mine, theirs = params["embeddings"], PARAMS["embeddings"]
    np.testing.assert_array_equal(mine["word"], theirs["word"][:, kept])
    np.testing.assert_array_equal(mine["token_type"], theirs["token_type"][:, kept])
    np.testing.assert_array_equal(
        mine["position"]["embedding"], theirs["position"]["embedding"][:20, kept]
    )
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(mine["norm"][name], theirs["norm"][name][kept])
    pooler = PARAMS["pooler"]["dense"]["kernel"]
    np.testing.assert_array_equal(params["pooler"]["dense"]["kernel"], pooler[kept][:, kept])

    stack, teacher = params["encoder"]["layers"], PARAMS["encoder"]["layers"]
    for i, j in enumerate(LAYERS):
        for norm in ("attention_norm", "output_norm"):
            for name in ("scale", "bias"):
                np.testing.assert_array_equal(stack[norm][name][i], teacher[norm][name][j][kept])
        inner = strongest(
            teacher["intermediate"]["kernel"][j], teacher["output"]["kernel"][j].T, 20
        )
        first, second = stack["intermediate"], stack["output"]
        expected = teacher["intermediate"]["kernel"][j][kept][:, inner]
        np.testing.assert_array_equal(first["kernel"][i], expected)
        np.testing.assert_array_equal(first["bias"][i], teacher["intermediate"]["bias"][j][inner])
        expected = teacher["output"]["kernel"][j][inner][:, kept]
        np.testing.assert_array_equal(second["kernel"][i], expected)
        np.testing.assert_array_equal(second["bias"][i], teacher["output"]["bias"][j][kept])


@pytest.mark.parametrize("per_layer", [False, True])
def test_projection_of_low_rank_is_the_best_of_that_rank_for_states_of_their_size(per_layer):
    """Against NumPy's singular values: scaled by their sizes, no map of rank 5 is nearer."""
    config = NARROW.replace(projection_rank=5, projection_per_layer=per_layer)
    low = init_from_teacher(config, TEACHER, PARAMS, LAYERS, KEY)
    fresh = jax.eval_shape(lambda: init_params(config, KEY))
    chex.assert_trees_all_equal_shapes_and_dtypes(low, fresh)
    back = narrow_params()["projection"]["kernel"].astype(float)
    norms = [low["embeddings"]["norm"]]
    stack = low["encoder"]["layers"]["output_norm"]
    norms += [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(config.num_layers)]
    power = np.stack([n["scale"].astype(float) ** 2 + n["bias"] ** 2 for n in norms])
    down, up = low["projection"]["down_kernel"], low["projection"]["up_kernel"]
    for size, product in zip(
        np.sqrt(power if per_layer else power.sum(0, keepdims=True)),
        down @ up if per_layer else (down @ up)[None],
        strict=True,
    ):
        values = np.linalg.svd(size[:, None] * back, compute_uv=False)
        error = np.linalg.norm(size[:, None] * (product - back))
        np.testing.assert_allclose(error, np.sqrt(np.sum(values[5:] ** 2)), rtol=1e-6)


def strongest(into: np.ndarray, out: np.ndarray, count: int) -> list[int]:
    """Columns j with the largest |into_j| |out_j|, in order."""
    weight = [np.linalg.norm(a) * np.linalg.norm(b) for a, b in zip(into.T, out.T, strict=True)]
    return sorted(sorted(range(len(weight)), key=lambda j: -weight[j])[:count])


def test_heads_keep_matching_queries_and_keys_and_the_size_of_their_scores():
    params = narrow_params()
    _, kept = np.nonzero(params["projection"]["kernel"])
    wide, narrow = TEACHER.head_size, NARROW.head_size
    stack = params["encoder"]["layers"]["attention"]
    for i, j in enumerate(LAYERS):
        kernels = {n: x["kernel"][j] for n, x in PARAMS["encoder"]["layers"]["attention"].items()}
        for head in range(TEACHER.num_heads):
            columns = slice(head * wide, (head + 1) * wide)
            mine = slice(head * narrow, (head + 1) * narrow)
            query, key, value = (kernels[n][:, columns] for n in ("query", "key", "value"))
            output = kernels["output"][columns]
            matched = strongest(query, key, narrow)
            mixed = strongest(value, output.T, narrow)
            # q . k / sqrt(K) of what is kept is what it was with the teacher's K.
            scaled = stack["query"]["kernel"][i][:, mine] / np.sqrt(narrow)
            np.testing.assert_allclose(scaled, query[kept][:, matched] / np.sqrt(wide), rtol=1e-5)
            np.testing.assert_array_equal(stack["key"]["kernel"][i][:, mine], key[kept][:, matched])
            np.testing.assert_array_equal(
                stack["value"]["kernel"][i][:, mine], value[kept][:, mixed]
            )
            np.testing.assert_array_equal(
                stack["output"]["kernel"][i][mine], output[mixed][:, kept]
            )


def test_dead_coordinates_are_the_ones_cut_away():
    """Coordinates that nothing reads or writes go first; projected back, nothing is lost."""
    params = jax.tree.map(np.copy, PARAMS)
    layers, dead = params["encoder"]["layers"], np.arange(0, 24, 3)
    for name in ("query", "key", "value"):
        layers["attention"][name]["kernel"][:, dead] = 0
    layers["intermediate"]["kernel"][:, dead] = 0
    cut = init_from_teacher(STUDENT, TEACHER, params, LAYERS, KEY)
    _, kept = np.nonzero(cut["projection"]["kernel"])
    np.testing.assert_array_equal(kept, np.setdiff1d(np.arange(24), dead))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 48}, "hidden_size = 48 cannot be cut out of a teacher with 24"),
        ({"intermediate_size": 41}, "intermediate_size = 41"),
        ({"max_position_embeddings": 64}, "max_position_embeddings = 64"),
        ({"vocab_size": 63}, "vocab_size = 63"),
        ({"type_vocab_size": 3}, "type_vocab_size = 3"),
        ({"num_heads": 2}, "2 heads cannot be cut out of a teacher with 4"),
    ],
)
def test_student_that_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        init_from_teacher(STUDENT.replace(**change), TEACHER, PARAMS, LAYERS, KEY)


@pytest.mark.parametrize(("position", "name"), [("rotary", "head"), ("sinusoidal", "hidden")])
def test_positions_that_are_computed_hold_what_they_turn_together(position, name):
    student, teacher = (config.replace(position=position) for config in (STUDENT, TEACHER))
    with pytest.raises(UserError, match=f"{position} positions and {name}_size"):
        init_from_teacher(student, teacher, PARAMS, LAYERS, KEY)
