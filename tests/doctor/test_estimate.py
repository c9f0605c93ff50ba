"""What a step is said to need, against states that are made and programs that are compiled."""

from __future__ import annotations

import jax
import pytest
import small

from jaxbert.doctor.estimate import cost_of, shapes_of
from jaxbert.evaluation.flops import forward_flops
from jaxbert.models.bert import PRESETS, count_parameters
from jaxbert.run import held_frozen
from jaxbert.training import sharding
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state, make_step

ROWS, LENGTH = 16, 32


def batch(rows: int = ROWS):
    return small.one_batch(small.examples([LENGTH] * rows), packing=False, row_length=LENGTH)


def cost(name: str):
    objective = small.OBJECTIVES[name]
    frozen = held_frozen(objective, {}, small.frozen()["teachers"])
    return cost_of(objective, small.trained(objective), frozen, batch(), sharding.make_mesh(1))


@pytest.mark.parametrize("name", small.OBJECTIVES)
def test_the_state_has_the_bytes_that_are_said(name):
    objective = small.OBJECTIVES[name]
    params = small.trained(objective)
    state = init_state(params, make_optimizer(learning_rate=1.0, steps=1), sharding.make_mesh(1))
    made = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
    found = cost(name)
    assert found.parameters == count_parameters(params)
    assert found.state == made


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 8), (1, 4, 1), (2, 2, 2)])
def test_memory_is_that_of_what_one_device_of_the_mesh_holds(shape, dtype):
    """Counted on a device, of arrays that are there."""
    teacher = small.TEACHER.replace(dtype=dtype)
    objective = small.distillation(small.STUDENT, teacher, preset="tinybert")
    mesh, optimizer = sharding.make_mesh(*shape), make_optimizer(learning_rate=1.0, steps=1)
    params, data = small.trained(objective), batch()
    frozen = held_frozen(objective, {}, small.frozen()["teachers"])
    found = cost_of(objective, params, frozen, data, mesh)
    state = init_state(params, optimizer, mesh)
    placed = jax.device_put(frozen, sharding.tree_shardings(mesh, frozen))

    def held(tree) -> int:
        arrays = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
        return sum(array.addressable_shards[0].data.nbytes for array in arrays)

    assert found.held_frozen == held(placed)
    kept = found.activations + found.batch
    gradients = held(state.params)
    assert found.memory(1) - kept == held(state) + gradients + held(placed)
    assert found.memory(2) - kept == held(state) + 2 * gradients + held(placed)
    # A checkpoint has the whole state, wherever it lies.
    assert found.state == 12 * count_parameters(params)


def test_the_published_students_are_counted():
    assert count_parameters(shapes_of(PRESETS["tinybert4"])) == 14_350_248


def test_training_a_classifier_costs_three_times_its_prediction():
    """Hand-counted in the one, traced in the other."""
    found = cost("finetune")
    assert found.trained_flops == 3 * ROWS * small.class_flops(small.STUDENT, LENGTH)
    assert found.frozen == found.frozen_flops == 0


def test_a_teacher_costs_its_prediction_and_has_its_parameters():
    found = cost("predictions")
    assert found.trained_flops == 3 * ROWS * small.class_flops(small.STUDENT, LENGTH)
    assert found.frozen_flops == ROWS * small.class_flops(small.TEACHER, LENGTH)
    assert found.frozen == count_parameters(small.frozen())


def test_of_a_teacher_of_layers_nothing_is_counted_that_is_not_read():
    found, teacher = cost("layers"), small.frozen()["teachers"][0]
    read = count_parameters({g: teacher[g] for g in ("embeddings", "encoder")})
    assert found.frozen == read
    # Neither pooler nor classifier; the mix of values of the last layer is computed all the same.
    head = 2 * (small.TEACHER.hidden_size**2 + small.TEACHER.hidden_size * 3)
    assert found.frozen_flops == ROWS * (forward_flops(small.TEACHER, LENGTH) - head)


def test_learning_layers_costs_three_times_the_student_and_its_projection():
    states = small.STUDENT.num_layers + 1
    by_hand = forward_flops(small.STUDENT, LENGTH, head=False, projected=states)
    assert cost("layers").trained_flops == 3 * ROWS * by_hand


@pytest.mark.usefixtures("optimised")
def test_memory_is_near_that_of_the_compiled_step():
    """Within a third of all that the compiler sets aside; of one layer, to compile quickly."""
    one, other = (config.replace(num_layers=1) for config in (small.STUDENT, small.TEACHER))
    objective = small.distillation(one, other, preset="tinybert")
    params = {g: v for g, v in small.visible_params(one, 1).items() if g in objective.groups}
    frozen = {"teachers": (small.visible_params(other, 2),)}
    optimizer, mesh, data = (
        make_optimizer(learning_rate=1.0, steps=1),
        sharding.make_mesh(1),
        batch(),
    )
    found = cost_of(objective, params, frozen, data, mesh)
    state = init_state(params, optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
    compiled = step.lower(state, frozen, data).compile().memory_analysis()
    taken = compiled.argument_size_in_bytes + compiled.temp_size_in_bytes
    assert found.memory(1) == pytest.approx(taken, rel=1 / 3)
    assert found.activations > 0.4 * taken
