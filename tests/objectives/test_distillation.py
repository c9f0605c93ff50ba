"""Distillation against PyTorch written from the paper, and what must not change it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from small import (
    OBJECTIVES,
    SOFT,
    STUDENT,
    TEACHER,
    assert_same_gradients,
    distillation,
    empty_rows,
    examples,
    frozen,
    loss_and_gradients,
    one_batch,
    trained,
    visible_params,
    without_labels,
)

from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.sharding import make_mesh
from jaxbert.training.step import init_state, make_step

pytestmark = pytest.mark.usefixtures("matmul_highest")
LENGTHS = [9, 3, 12, 5, 7, 2, 4]


def three_steps(objective: Any, params: Any, others: Any, batch: Any) -> tuple[Any, Any, Any]:
    """The first gradients, the losses before, and the parameters after three real steps.

    Rates are 0, 1 and 8/9 of 1e-3. The gradients are read off Adam's first moment, which is a
    tenth of what clipping to a norm of 1 left of them.
    """
    optimizer = make_optimizer(learning_rate=1e-3, steps=10, warmup_ratio=0.1)
    mesh = make_mesh(data=1)
    state = init_state(params, optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
    seen, gradients = [], None
    for _ in range(3):
        state, metrics = step(state, others, batch)
        seen.append(metrics["loss"].mean())
        if gradients is None:
            factor = 10 * max(1.0, float(metrics["gradient_norm"].mean()))
            gradients = jax.tree.map(lambda m, f=factor: np.array(m) * f, state.opt_state[1].mu)
    return gradients, np.array(seen), jax.device_get(state.params)


def check_against_torch(
    objective: Any, student: Any, torch_loss: Any, others: Any, batch: Any, within: Any
) -> None:
    """Losses, every gradient and three steps of training of both."""
    from torch_bert import adamw_steps

    params = student.params()
    params = {g: jax.tree.map(np.float32, params[g]) for g in objective.groups}
    gradients, losses, reached = three_steps(objective, params, others, batch)
    torch_loss().backward()
    expected = {g: student.gradients()[g] for g in objective.groups}
    within(gradients, expected)
    assert_same_gradients(gradients, expected)
    within(losses, np.array(adamw_steps(student, torch_loss, 3, [0, 1, 8 / 9], 1e-3)))
    within(reached, {g: student.params()[g] for g in objective.groups})


@pytest.mark.parametrize("shape", ["per_layer_6_to_4", "shared_3_to_2_of_a_wider_student"])
def test_layer_distillation_is_that_of_pytorch(shape, within):
    pytest.importorskip("torch")
    from torch_bert import TorchBert, layer_loss

    student, teacher, layers = STUDENT.replace(hidden_size=32), TEACHER, (2, 3)
    if shape == "per_layer_6_to_4":
        student = STUDENT.replace(num_layers=4, projection_per_layer=True)
        teacher, layers = TEACHER.replace(num_layers=6), (2, 3, 5, 6)
    objective = distillation(student, teacher, preset="tinybert")
    theirs = visible_params(teacher, 2)
    mine = TorchBert(student, visible_params(student, 1))
    target, some = TorchBert(teacher, theirs), examples(LENGTHS)

    def loss() -> Any:
        return layer_loss(mine, target, some, layers)

    batch = without_labels(one_batch(some, packing=True, row_length=16))
    check_against_torch(objective, mine, loss, {"teachers": (theirs,)}, batch, within)


def test_prediction_distillation_is_that_of_pytorch(within):
    torch = pytest.importorskip("torch")
    from torch_bert import TorchBert, logits_of

    teacher = TEACHER.replace(classifier="tinybert")
    theirs = visible_params(teacher, 2)
    objective = distillation(STUDENT, teacher, prediction=SOFT)
    mine = TorchBert(STUDENT, visible_params(STUDENT, 1))
    some = examples(LENGTHS)
    with torch.no_grad():
        target = (logits_of(TorchBert(teacher, theirs), some) / 2).softmax(-1)

    def loss() -> Any:
        return -(target * (logits_of(mine, some) / 2).log_softmax(-1)).mean()

    batch = one_batch(some, packing=True, row_length=16)
    check_against_torch(objective, mine, loss, {"teachers": (theirs,)}, batch, within)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_packing_padding_and_empty_rows_change_no_loss_and_no_gradient(name, within):
    objective = OBJECTIVES[name]
    assert_packing_changes_nothing(objective, trained(objective), within)


@pytest.mark.parametrize("heads", ["mean", "group"])
def test_packing_changes_no_averaged_attention_at_any_temperature(heads, within):
    """With groups the student's two heads need no averaging, and the teacher's four do."""
    student = STUDENT.replace(num_heads=2)
    term = {"feature": "probabilities", "heads": heads, "layers": "last"}
    terms = {f"at_{t}": term | {"temperature": float(t)} for t in (5, 20)}
    objective = distillation(student, TEACHER, **terms)
    params = visible_params(student, 1)
    params = {group: params[group] for group in objective.groups}
    assert_packing_changes_nothing(objective, params, within)


def assert_packing_changes_nothing(objective: Any, params: Any, within: Any) -> None:
    some = examples(LENGTHS)
    alone = one_batch(some, packing=False, row_length=max(LENGTHS))
    packed = one_batch(some, packing=True, row_length=24)
    assert packed.tokens.shape[0] < len(LENGTHS)
    packed = empty_rows(packed, 2)
    wanted = loss_and_gradients(objective, params, frozen(), alone)
    found = loss_and_gradients(objective, params, frozen(), packed)
    within(found, wanted)
    assert_same_gradients(found[1], wanted[1])
    assert float(wanted[0]) > 0


@functools.cache
def compiled(objective: Any) -> Any:
    return jax.jit(objective)


def terms_of(objective: Any, others: Any = None, seed: int = 0) -> dict[str, Any]:
    batch = one_batch(examples(LENGTHS), packing=True, row_length=16)
    arguments = (trained(objective), others or frozen(), batch, jax.random.key(seed))
    return jax.device_get(compiled(objective)(*arguments))


def test_terms_of_weight_zero_are_left_out():
    every = terms_of(OBJECTIVES["layers"])
    assert (
        set(every) == set(OBJECTIVES["layers"].weights(0)) == {"attention", "hidden", "embedding"}
    )
    off = {"attention": {"weight": 0.0}, "hidden": {"weight": 0.0}}
    one = distillation(STUDENT, TEACHER, **off, embedding={"feature": "embeddings"})
    found = terms_of(one)
    assert set(found) == set(one.weights(0)) == {"embedding"}
    np.testing.assert_allclose(found["embedding"].total, every["embedding"].total, rtol=1e-5)


def test_student_that_equals_its_teacher_has_nothing_to_learn():
    model = STUDENT.replace(projection_size=0)
    same = distillation(model, model, preset="tinybert")
    assert same.groups == ("embeddings", "encoder")
    terms = terms_of(same, {"teachers": (trained(same),)})
    assert {float(term.total) for term in terms.values()} == {0.0}


@pytest.mark.parametrize("name", ["layers", "predictions"])
def test_dropout_reaches_the_student_and_never_the_teacher(name):
    """The teacher's own rates are ignored: its states are targets."""
    rates = {"hidden_dropout": 0.5, "attention_dropout": 0.5}
    plain = OBJECTIVES[name]
    still = dataclasses.replace(plain, teachers=(TEACHER.replace(**rates),))
    jax.tree.map(np.testing.assert_array_equal, terms_of(still, seed=1), terms_of(plain))
    moved = dataclasses.replace(plain, student=STUDENT.replace(**rates))
    term = next(iter(plain.weights(0)))
    totals = {float(terms_of(moved, seed=seed)[term].total) for seed in (0, 0, 1)}
    assert len(totals) == 2
