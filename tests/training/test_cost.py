"""FLOPs of steps, by hand and as XLA counts them, and the peaks that devices are held against."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import small

from jaxbert.training import sharding
from jaxbert.training.cost import fast_dtype, peak_rate, products, step_flops
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


@functools.cache
def compiled(feature: str, layer: int, teacher_layers: int, accumulation: int = 1) -> Any:
    """A step of a student of one layer that learns a layer of its teacher, two rows at a time."""
    student = small.STUDENT.replace(num_layers=1)
    teacher = small.TEACHER.replace(num_layers=teacher_layers)
    heads = {"relation_heads": 2} if feature == "value_relation" else {}
    term = {"feature": feature, "layers": str(layer), **heads}
    objective = small.distillation(student, teacher, term=term)
    optimizer, mesh = make_optimizer(learning_rate=1.0, steps=1), sharding.make_mesh(data=1)
    params = small.visible_params(student, 1)
    state = init_state({group: params[group] for group in objective.groups}, optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0, accumulation=accumulation)
    frozen = {"teachers": (small.visible_params(teacher, 2),)}
    examples = small.examples([LENGTH] * 2 * accumulation)
    batch = small.one_batch(examples, packing=False, row_length=LENGTH)
    return step.lower(state, frozen, batch).compile()


def xla_flops(program: Any) -> float:
    """As XLA counts them; of a loop those of one turn."""
    return program.cost_analysis()["flops"]


def products_of(program: Any, shape: str = ".*") -> int:
    """Products of a compiled program, those within a loop once."""
    return len(re.findall(rf"= f32\[{shape}\]\S* dot\(", program.as_text()))


@pytest.mark.usefixtures("optimised")
def test_a_compiled_step_has_no_layer_and_no_scores_of_a_teacher_that_no_term_reads():
    two, six = compiled("scores", 2, 2), compiled("scores", 2, 6)
    assert xla_flops(six) == xla_flops(two)
    assert xla_flops(compiled("scores", 6, 6)) > 2 * xla_flops(two)
    # The student's and those of two layers of the teacher; of the first layer alone. Relations have
    # other heads.
    scores = f"2,{small.TEACHER.num_heads},{LENGTH},{LENGTH}"
    values = compiled("value_relation", 2, 2)
    assert [products_of(program, scores) for program in (two, six, values)] == [3, 3, 1]


@pytest.mark.usefixtures("optimised")
def test_compiled_micro_batches_are_steps_in_a_loop_and_no_model_runs_outside_of_it():
    whole, cut = compiled("scores", 2, 2), compiled("scores", 2, 2, accumulation=2)
    assert products_of(cut) == products_of(whole) > 0
    # What it has beside them adds up gradients.
    assert xla_flops(cut) == pytest.approx(xla_flops(whole), rel=0.05)


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


def cuda(capability: str) -> SimpleNamespace:
    """What a CUDA device says of itself."""
    client = SimpleNamespace(platform_version="PJRT C API cuda 12090")
    return SimpleNamespace(platform="gpu", client=client, compute_capability=capability)


@pytest.mark.parametrize(
    ("device", "sets", "dtype"),
    [
        (SimpleNamespace(platform="cpu"), {"avx2", "fma"}, "float32"),  # many laptops
        (SimpleNamespace(platform="cpu"), {"avx2", "avx512f", "avx512_bf16"}, "bfloat16"),
        (SimpleNamespace(platform="cpu"), {"avx512f", "amx_bf16", "amx_tile"}, "bfloat16"),
        (SimpleNamespace(platform="cpu"), {"avx512f", "avx512_vnni"}, "float32"),
        (SimpleNamespace(platform="cpu"), set(), "float32"),
        (cuda("9.0"), {"avx2"}, "bfloat16"),
        (cuda("8.0"), set(), "bfloat16"),
        (cuda("7.5"), {"avx512_bf16"}, "float32"),
        (
            SimpleNamespace(platform="tpu", client=SimpleNamespace(platform_version="libtpu")),
            set(),
            "bfloat16",
        ),
    ],
)
def test_a_device_s_faster_operands(device, sets, dtype):
    assert fast_dtype(device, sets) == dtype
