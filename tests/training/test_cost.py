"""FLOPs of steps, against counts by hand, and the peaks that devices are held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import small

from jaxbert.training import sharding
from jaxbert.training.cost import peak_rate, products, step_flops
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state, make_step

ROWS, LENGTH = 16, 32


def test_products_of_scans_and_branches():
    x = jnp.ones((4, 4))

    def turns(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=5)[0]

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    one = 2 * 4**3
    assert products(jax.make_jaxpr(turns)(x).jaxpr) == 5 * one
    assert products(jax.make_jaxpr(either)(x).jaxpr) == 2 * one
    assert products(jax.make_jaxpr(jax.jit(lambda x: x @ x))(x).jaxpr) == one


def test_what_a_function_makes_and_does_not_read_is_not_counted():
    x = jnp.ones((4, 4))

    def careless(x):
        return jax.lax.scan(lambda c, _: (c @ x, c @ c), x, None, length=5)[0], x @ x

    def first(x):
        careless(x)
        return careless(x)[1]

    assert products(jax.make_jaxpr(first)(x).jaxpr) == 2 * 4**3


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["finetune", "predictions"])
def test_a_step_is_counted_as_by_hand_however_its_batch_is_cut(name, accumulation):
    objective = small.OBJECTIVES[name]
    optimizer, mesh = make_optimizer(learning_rate=1.0, steps=1), sharding.make_mesh(data=2)
    state = init_state(small.trained(objective), optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0, accumulation=accumulation)
    examples = small.examples([LENGTH] * ROWS)
    batch = small.one_batch(examples, packing=False, row_length=LENGTH)
    frozen = small.frozen() if name == "predictions" else {}
    by_hand = 3 * ROWS * small.class_flops(small.STUDENT, LENGTH)
    by_hand += ROWS * small.class_flops(small.TEACHER, LENGTH) * bool(frozen)
    assert step_flops(step, state, frozen, batch) == by_hand


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
    ],
)
def test_peaks_are_those_of_the_device_and_of_no_other_one(kind, peak):
    assert peak_rate(kind) == peak
