"""The one step: the same numbers however the batch is cut and wherever it runs."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any

import chex
import jax
import numpy as np
import pytest
from small import (
    OBJECTIVES,
    STUDENT,
    TEACHER,
    assert_same_gradients,
    empty_rows,
    examples,
    frozen,
    one_batch,
    trained,
)

from jaxbert.batch import Batch
from jaxbert.data.packing import PackedBatches
from jaxbert.objectives.losses import Term
from jaxbert.training import sharding
from jaxbert.training.loop import place
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state, make_step


def build(objective: Any, params: Any, mesh: Any = None, **options: Any) -> tuple[Any, Any]:
    """The state before the first step, and the step; the rate is constant from the first on."""
    mesh = mesh or sharding.make_mesh(data=1)
    optimizer = make_optimizer(learning_rate=1e-3, steps=100, warmup_ratio=0.0, schedule="constant")
    state = init_state(params, optimizer, mesh)
    return state, make_step(objective, optimizer, mesh, state, **{"seed": 0, "phase": 0} | options)


@pytest.mark.usefixtures("matmul_highest")
@pytest.mark.parametrize("name", ["layers", "finetune"])
def test_micro_batches_of_unequal_padding_are_one_batch(name, within):
    """Eight rows of 1 to 16 real tokens, one of them empty."""
    objective = OBJECTIVES[name]
    some = examples([16, 1, 2, 9, 4, 16, 1])
    batch = empty_rows(one_batch(some, packing=False, row_length=16), 1)
    results = {}
    for accumulation in (1, 2, 4) if name == "layers" else (1, 4):
        state, step = build(objective, trained(objective), accumulation=accumulation)
        state, metrics = step(state, frozen(), batch)
        results[accumulation] = jax.device_get((state, metrics))
    (wanted, wanted_metrics) = results.pop(1)
    for state, metrics in results.values():
        within(metrics, wanted_metrics)
        within(state.params, wanted.params)
        within(state.opt_state, wanted.opt_state)
        assert_same_gradients(state.opt_state[1].mu, wanted.opt_state[1].mu)


@pytest.mark.usefixtures("matmul_highest")
@pytest.mark.parametrize(("name", "shape"), [("layers", (2, 2, 2)), ("finetune", (4, 1, 1))])
def test_micro_batches_of_several_devices_are_those_of_one(name, shape, within):
    """With dropout, whose numbers are those of a row wherever it lies."""
    objective = OBJECTIVES[name]
    field = "student" if name == "layers" else "model"
    model = getattr(objective, field).replace(hidden_dropout=0.1, attention_dropout=0.1)
    objective = dataclasses.replace(objective, **{field: model})
    batch = one_batch(
        examples([16, 1, 2, 9, 4, 16, 1, 3]), packing=False, row_length=16, multiple=8
    )
    results = []
    for mesh in (sharding.make_mesh(1), sharding.make_mesh(*shape)):
        state, step = build(objective, trained(objective), mesh, accumulation=2)
        others = jax.device_put(frozen(), sharding.tree_shardings(mesh, frozen()))
        state, metrics = step(state, others, place(batch, sharding.rows(mesh)))
        results.append(jax.device_get((state.params, metrics, state.opt_state[1].mu)))
    (wanted, wanted_metrics, moments), (params, metrics, found) = results
    within(metrics, wanted_metrics)
    within(params, wanted)
    assert_same_gradients(found, moments)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([(2, 2, 2)], id="all"),
        pytest.param(
            [shape for n in (2, 4, 8) for shape in ((n, 1), (1, n), (1, 1, n))],
            id="each",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_more_devices_change_no_loss_and_nothing_is_compiled_twice(shapes, within):
    """Devices along data, model and fsdp, against one."""
    objective, steps = OBJECTIVES["layers"], 30
    batches = PackedBatches(
        examples([9, 3, 12, 5, 7, 2, 4, 16] * 4), batch_size=16, row_length=16, seed=1, multiple=8
    )
    losses = {}
    for shape in ((1, 1), *shapes):
        mesh = sharding.make_mesh(*shape)
        with jax.default_matmul_precision("highest"):
            state, step = build(objective, trained(objective), mesh)
            others = frozen()
            others = jax.device_put(others, sharding.tree_shardings(mesh, others))
            seen = []
            for s in range(steps):
                batch = place(batches[s], sharding.rows(mesh))
                state, metrics = step(state, others, batch)
                seen.append(float(metrics["loss"].mean()))
            assert step._cache_size() == 1
        query = state.params["encoder"]["layers"]["attention"]["query"]["kernel"]
        fsdp = shape[2] if len(shape) == 3 else 1
        assert query.sharding.shard_shape(query.shape)[1:] == (16 // fsdp, 16 // shape[1])
        teacher = others["teachers"][0]["encoder"]["layers"]["output"]["kernel"]
        assert teacher.sharding.shard_shape(teacher.shape)[2] == teacher.shape[2] // fsdp
        losses[shape] = np.array(seen)
    wanted = losses.pop((1, 1))
    assert wanted[-1] < 0.9 * wanted[0]
    for found in losses.values():
        within(found, wanted)


COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def collectives(text: str) -> list[tuple[str, bool, int]]:
    """Of a compiled program: each one's kind, whether it is made once a call, and its scalars."""
    found = []
    for computation in text.split("\n}\n"):
        once = "\nENTRY " in computation
        for shapes, kind in re.findall(rf"= (.*) ({COLLECTIVES})(?:-start)?\(", computation):
            sizes = [dims.split(",") for dims in re.findall(r"f32\[([\d,]*)\]", shapes)]
            size = sum(math.prod(map(int, filter(None, dims))) for dims in sizes)
            found.append((kind, once, size))
    return found


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("dtype", "accumulation"), [("float32", 1), ("bfloat16", 1), ("float32", 2), ("bfloat16", 4)]
)
def test_along_data_gradients_alone_are_exchanged_and_once_a_step(dtype, accumulation):
    """Of a compiled step on 8 devices: what its collectives move, in scalars."""
    objective = OBJECTIVES["layers"]
    models = (model.replace(dtype=dtype) for model in (objective.student, *objective.teachers))
    student, *teachers = models
    objective = dataclasses.replace(objective, student=student, teachers=tuple(teachers))
    moved = {}
    for count in (2, 8) if accumulation == 1 else (8,):
        mesh = sharding.make_mesh(count)
        state, step = build(objective, trained(objective), mesh, accumulation=accumulation)
        others = jax.device_put(frozen(), sharding.tree_shardings(mesh, frozen()))
        batch = PackedBatches(
            examples([9, 3, 12, 5] * 8), batch_size=16, row_length=16, seed=1, multiple=32
        )[0]
        text = step.lower(state, others, place(batch, sharding.rows(mesh))).compile().as_text()
        kinds, once, sizes = zip(*collectives(text), strict=True)
        assert set(kinds) == {"all-reduce"}
        assert all(once), "none is within a loop"
        moved[count] = sum(sizes)
    gradients = sum(x.size for x in jax.tree.leaves(state.params))
    # Beside gradients there are a few sums of losses and masks.
    least, most = gradients, gradients + 16
    if accumulation == 1:
        # The shared projection's is exchanged for each of the three states that it projects, before
        # these are added.
        shared = 2 * sum(x.size for x in jax.tree.leaves(state.params["projection"]))
        least, most = least + shared, most + shared
        if dtype == "bfloat16":  # on a CPU a matrix's gradient is the sum of two products
            most += gradients + shared
    assert least <= moved[8] <= most
    assert len(set(moved.values())) == 1, "whatever the number of devices"


@pytest.mark.usefixtures("optimised")
def test_along_fsdp_matrices_are_gathered_and_no_products_summed():
    """XLA would sum what each device has of a product, of all positions: 30 times as much."""
    objective, mesh = OBJECTIVES["layers"], sharding.make_mesh(1, 1, 8)
    state, step = build(objective, trained(objective), mesh)
    others = jax.device_put(frozen(), sharding.tree_shardings(mesh, frozen()))
    batch = PackedBatches(
        examples([9, 3, 12, 5] * 8), batch_size=16, row_length=16, seed=1, multiple=32
    )[0]
    text = step.lower(state, others, place(batch, sharding.rows(mesh))).compile().as_text()
    moved = collections.Counter[str]()
    for kind, _, size in collectives(text):
        moved[kind] += size
    gradients, teacher = (sum(x.size for x in jax.tree.leaves(t)) for t in (state.params, others))
    assert moved["all-reduce"] <= 1.5 * gradients, moved
    assert 0 < moved["all-gather"] <= 2 * gradients + teacher, moved


@dataclasses.dataclass(frozen=True)
class Noise:
    """An objective in five lines: a weight times a random number."""

    groups = ("w",)

    def weights(self, step: Any) -> dict[str, float]:
        return {"noise": 2.0}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> dict[str, Term]:
        number = jax.random.normal(key) + 0.0 * batch.tokens.sum()
        return {"noise": Term(params["w"] * number, np.float32(1.0))}


def test_random_numbers_are_a_function_of_seed_phase_and_step():
    batch = one_batch(examples([4, 4]), packing=False, row_length=4)
    for seed, phase in ((0, 0), (0, 1), (7, 0)):
        state, step = build(Noise(), {"w": np.float32(1.0)}, seed=seed, phase=phase)
        for s in range(3):
            weight = float(state.params["w"])
            state, metrics = step(state, {}, batch)
            key = jax.random.key(seed)
            for number in (phase, s):
                key = jax.random.fold_in(key, number)
            expected = float(jax.random.normal(key))
            np.testing.assert_allclose(metrics["loss"].mean(), 2 * weight * expected, rtol=1e-6)
            np.testing.assert_allclose(
                metrics["gradient_norm"].mean(), 2 * abs(expected), rtol=1e-6
            )
        assert int(state.step) == 3
        assert step._cache_size() == 1


@dataclasses.dataclass(frozen=True)
class Growing:
    """The mean token times a number, whose weight is 1 at the first step and one more at each."""

    groups = ("w",)

    def weights(self, step: Any) -> dict[str, Any]:
        return {"mean": 1.0 + step}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> dict[str, Term]:
        real = (batch.segments > 0).astype(np.float32)
        return {"mean": Term(params["w"] * (batch.tokens * real).sum(), real.sum())}


@pytest.mark.parametrize("accumulation", [1, 4])
def test_each_step_has_the_weights_of_its_own_number(accumulation):
    batch = one_batch(examples([4, 1, 3, 2]), packing=False, row_length=4)
    mean = batch.tokens[batch.segments > 0].mean()
    state, step = build(Growing(), {"w": np.float32(1.0)}, accumulation=accumulation)
    for s in range(3):
        before = float(state.params["w"])
        state, metrics = step(state, {}, batch)
        np.testing.assert_allclose(metrics["loss"].mean(), (1 + s) * before * mean, rtol=1e-6)
        np.testing.assert_allclose(metrics["gradient_norm"].mean(), (1 + s) * mean, rtol=1e-6)


def test_state_holds_what_is_trained_and_leaves_all_else_alone():
    """The teacher and the caller's own arrays survive; the state before is given away."""
    objective = OBJECTIVES["predictions"]
    given = jax.tree.map(jax.numpy.asarray, trained(objective))
    teacher = jax.tree.map(jax.numpy.asarray, frozen())
    copies = jax.tree.map(np.array, (given, teacher))
    state, step = build(objective, given)
    assert set(state.params) == {"embeddings", "encoder", "pooler", "classifier"}
    assert set(state.opt_state[1].mu) == set(state.opt_state[1].nu) == set(state.params)
    batch = one_batch(examples([9, 3, 12]), packing=True, row_length=16)
    after, _ = step(state, teacher, batch)
    jax.tree.map(np.testing.assert_array_equal, (given, teacher), copies)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after.params, copies[0])
    assert all(jax.tree.leaves(moved))


def test_layer_distillation_trains_no_head():
    """Pooler and classifier get no gradient from it, and would decay if they were there."""
    state, _ = build(OBJECTIVES["layers"], trained(OBJECTIVES["layers"]))
    assert set(state.params) == {"embeddings", "encoder", "projection"}
    assert STUDENT.num_labels
    assert TEACHER.num_labels


def test_an_objective_is_traced_once_however_many_steps_are_made():
    class Counted(Noise):
        @chex.assert_max_traces(n=1)
        def __call__(self, params, frozen, batch, key):
            return super().__call__(params, frozen, batch, key)

    chex.clear_trace_counter()
    state, step = build(Counted(), {"w": np.float32(1.0)})
    batch = one_batch(examples([4, 2]), packing=False, row_length=4)
    for _ in range(4):
        state, _ = step(state, {}, batch)
    assert int(state.step) == 4


def test_the_update_reads_gradients_once_and_takes_no_norm_again():
    objective = OBJECTIVES["predictions"]
    state, step = build(objective, trained(objective))
    batch = one_batch(examples([9, 3]), packing=True, row_length=16)
    (whole,) = jax.make_jaxpr(step)(state, frozen(), batch).eqns
    outputs = len(jax.tree.leaves((state.params, state.opt_state)))
    updates = [
        [eqn.primitive.name for eqn in branch.eqns]
        for cond in whole.params["jaxpr"].eqns
        if cond.primitive.name == "cond" and len(cond.outvars) == outputs
        for branch in cond.params["branches"]
    ]
    assert any("sqrt" in names for names in updates)  # Adam's
    assert all("reduce_sum" not in names for names in updates)
