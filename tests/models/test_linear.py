"""Products and their gradients against float64."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.models.linear import Linear, einsum, hold_operands, int8_product, to_int8

SHAPES = {
    "nd,df->nf": ((5, 3), (3, 4)),
    "nd,nf->df": ((6, 3), (6, 4)),
    "nd,vd->nv": ((5, 3), (6, 3)),
    "bqhk,bthk->bhqt": ((2, 3, 2, 4), (2, 5, 2, 4)),
    "bhqt,bthk->bqhk": ((2, 2, 3, 5), (2, 5, 2, 4)),
}


def bilinear_gradients(spec: str, x: np.ndarray, y: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """The derivative of sum(g * einsum(x, y)) along each basis vector: exact, both being linear."""
    gradients = []
    for operand in (0, 1):
        operands = [x, y]
        gradient = np.zeros(operands[operand].shape)
        for index in np.ndindex(gradient.shape):
            unit = np.zeros(gradient.shape)
            unit[index] = 1
            operands[operand] = unit
            gradient[index] = np.sum(g * np.einsum(spec, *operands))
        gradients.append(gradient)
    return gradients


def rounded(x: np.ndarray, dtype: object) -> np.ndarray:
    return np.asarray(jnp.asarray(x, dtype), np.float64)


@pytest.mark.usefixtures("matmul_highest")
@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spec", SHAPES)
def test_einsum_and_its_gradients_are_those_of_the_rounded_operands(within, spec, dtype, jit):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in SHAPES[spec])
    g = rng.normal(size=np.einsum(spec, x, y).shape).astype(np.float32)

    def run(x, y, g):
        out, transpose = jax.vjp(lambda x, y: einsum(spec, x, y, dtype), x, y)
        return out, transpose(g)

    out, gradients = (jax.jit(run) if jit else run)(x, y, g)

    chex.assert_type([out, *gradients], jnp.float32)
    xr, yr, gr = (rounded(array, dtype) for array in (x, y, g))
    within(out, np.einsum(spec, xr, yr))
    within(list(gradients), bilinear_gradients(spec, xr, yr, gr))


@pytest.mark.parametrize("spec", SHAPES)
def test_gradients_come_back_in_the_dtype_of_their_operand(spec):
    x, y = (jnp.ones(shape) for shape in SHAPES[spec])
    dx, dy = jax.grad(lambda x, y: einsum(spec, x, y, jnp.bfloat16).sum(), (0, 1))(
        x.astype(jnp.bfloat16), y
    )
    assert (dx.dtype, dy.dtype) == (jnp.bfloat16, jnp.float32)
    assert (dx.shape, dy.shape) == SHAPES[spec]


def test_bfloat16_sums_are_kept_in_float32():
    """256 + 1 is 256 in bfloat16: ones would stop adding up there."""
    ones = jnp.ones((1, 4096))
    assert einsum("nd,df->nf", ones, ones.T, jnp.bfloat16)[0, 0] == 4096
    assert einsum("nd,vd->nv", ones, ones, jnp.bfloat16)[0, 0] == 4096


def test_a_rounded_product_is_written_in_bfloat16_by_accelerators_alone():
    """Checked in the program that is lowered for each: there is no accelerator here."""
    x, y = jnp.ones((8, 16)), jnp.ones((16, 4))

    def lowered(rounded: bool, platform: str) -> str:
        run = jax.jit(lambda x, y: einsum("nd,df->nf", x, y, jnp.bfloat16, rounded))
        return run.trace(x, y).lower(lowering_platforms=(platform,)).as_text()

    written = "(tensor<8x16xbf16>, tensor<16x4xbf16>) -> tensor<8x4x"
    for platform in ("cuda", "tpu", "cpu"):
        assert f"{written}f32>" in lowered(False, platform)
        wanted = "f32" if platform == "cpu" else "bf16"
        assert f"{written}{wanted}>" in lowered(True, platform), platform


def test_a_rounded_product_has_the_gradients_of_any_other(within):
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 3), (3, 4)))
    plain, rounded = (
        jax.grad(lambda x, y, r=r: (einsum("nd,df->nf", x, y, jnp.bfloat16, r) ** 2).sum(), (0, 1))
        for r in (False, True)
    )
    within(rounded(x, y), plain(x, y))


def test_linear_maps_any_leading_axes(within):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    params = {
        "kernel": rng.normal(size=(4, 5)).astype(np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
    }
    with jax.default_matmul_precision("highest"):
        out = Linear(5).apply({"params": params}, x)
    within(out, x.astype(np.float64) @ params["kernel"] + params["bias"])


def test_linear_starts_with_the_given_spread_and_no_bias():
    params = Linear(200, initializer_range=0.02).init(jax.random.key(0), jnp.ones((1, 300)))
    chex.assert_shape(params["params"]["kernel"], (300, 200))
    assert np.std(params["params"]["kernel"]) == pytest.approx(0.02, rel=0.02)
    assert not np.any(params["params"]["bias"])


@pytest.mark.usefixtures("optimised")
def test_matrices_held_as_operands_change_no_bit():
    rng = np.random.default_rng(0)
    layer = Linear(5, jnp.bfloat16)
    x = rng.normal(size=(7, 4)).astype(np.float32)
    params = layer.init(jax.random.key(0), x)
    held = hold_operands(params, "bfloat16")
    assert held["params"]["kernel"].dtype == jnp.bfloat16
    assert held["params"]["bias"].dtype == jnp.float32
    np.testing.assert_array_equal(layer.apply(held, x), layer.apply(params, x))


def multiples(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """x rounded to multiples of a scale, and the scales: 127 of them reach the largest."""
    scale = np.abs(x).max(axis, keepdims=True).astype(np.float32) / np.float32(127)
    return np.rint(x / scale).astype(np.int64), scale.astype(np.float64)


def test_a_matrix_held_as_int8_is_multiplied_in_whole_numbers(within):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 40)).astype(np.float32) * rng.uniform(0.1, 9, size=(2, 7, 1))
    params = {
        "kernel": rng.normal(size=(3, 40, 5)).astype(np.float32),  # of three layers
        "bias": rng.normal(size=(3, 5)).astype(np.float32),
    }
    held = hold_operands({"dense": params, "norm": {"scale": np.ones(4)}}, "int8")
    assert {name: leaf.dtype for name, leaf in held["dense"].items()} == {
        "kernel": jnp.int8,
        "scale": jnp.float32,
        "bias": jnp.float32,
    }
    assert held["dense"]["scale"].shape == (3, 5) and held["norm"]["scale"].shape == (4,)
    rows, row_scale = multiples(x.astype(np.float32), -1)
    for layer in range(3):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], held["dense"])
        out = Linear(5, jnp.bfloat16).apply({"params": one}, jnp.asarray(x, jnp.float32))
        columns, column_scale = multiples(params["kernel"][layer], 0)
        np.testing.assert_array_equal(one["kernel"], columns)
        within(out, rows @ columns * row_scale * column_scale + params["bias"][layer])
        exact = x @ params["kernel"][layer].astype(np.float64) + params["bias"][layer]
        # Each operand is off by half a multiple at most, here by less than that 40 times.
        allowed = 40 * (row_scale * np.abs(columns).max() + column_scale * 127 * row_scale) / 2
        assert np.abs(out - exact).max() > 0 and np.all(np.abs(out - exact) < allowed)


def test_rows_and_columns_of_nothing_are_nothing_in_int8():
    kernel, scale = to_int8(jnp.asarray([[0.0, 2.0], [0.0, -4.0]]), 0)
    np.testing.assert_array_equal(kernel, [[0, 64], [0, -127]])
    out = int8_product(jnp.asarray([[0.0, 0.0], [1.0, 0.0]]), kernel, scale[0])
    np.testing.assert_allclose(out, [[0, 0], [0, 64 * 4 / 127]], rtol=1e-6)


def test_what_is_not_a_number_stays_none_in_int8():
    x = jnp.asarray([[1.0, np.nan], [np.inf, 1.0], [1.0, 1.0]])
    kernel, scale = to_int8(jnp.ones((2, 3)), 0)
    out = np.asarray(int8_product(x, kernel, scale[0]))
    assert np.isnan(out[:2]).all() and np.isfinite(out[2]).all()


def test_a_matrix_of_bytes_is_not_multiplied_without_its_scale():
    kernel, _ = to_int8(jnp.ones((2, 3)), 0)
    with pytest.raises(AssertionError):
        einsum("nd,df->nf", jnp.ones((1, 2)), kernel, jnp.bfloat16)


def test_int8_operands_reach_the_product_of_every_device_as_bytes():
    """Checked in the program that is lowered for each."""
    held = hold_operands({"kernel": jnp.ones((16, 4)), "bias": jnp.zeros(4)}, "int8")
    run = jax.jit(lambda x: Linear(4).apply({"params": held}, x))
    for platform in ("cuda", "tpu", "cpu"):
        text = run.trace(jnp.ones((8, 16))).lower(lowering_platforms=(platform,)).as_text()
        assert "(tensor<8x16xi8>, tensor<16x4xi8>) -> tensor<8x4xi32>" in text
