"""Attention against float64 NumPy, one head at a time."""

from __future__ import annotations

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import attention, dense, random_like, softmax, turn

from jaxbert.models import attention as ours
from jaxbert.models.attention import SelfAttention, fused, fuses, key_bias, segment_bias

pytestmark = pytest.mark.usefixtures("matmul_highest")

B, T, H, D = 2, 6, 3, 12
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 0]], np.int32)


def cuda() -> bool:
    return "cuda" in jax.devices()[0].client.platform_version


def setup(**options):
    module = SelfAttention(H, **options)
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    bias = segment_bias(SEGMENTS)
    init = jax.eval_shape(module.init, jax.random.key(0), x, bias, POSITIONS)
    return module, random_like(init), x, bias


class SelfAttentionTest(chex.TestCase):
    def check(self, rotary: bool) -> None:
        module, variables, x, bias = setup(rotary=rotary)
        out = self.variant(module.apply)(variables, x, bias, POSITIONS)
        params = variables["params"]

        chex.assert_shape(out.output, (B, T, D))
        chex.assert_shape(out.scores, (B, H, T, T))
        chex.assert_shape([out.queries, out.keys, out.values], (B, T, H, D // H))
        chex.assert_type(list(out), jnp.float32)
        for b in range(B):
            x64 = x[b].astype(np.float64)
            allowed = (SEGMENTS[b][:, None] == SEGMENTS[b][None]) & (SEGMENTS[b][None] > 0)
            real = SEGMENTS[b] > 0
            allowed[~real] = True  # a padding query: anything finite will do
            output, probabilities = attention(
                params, x64, allowed, H, POSITIONS[b] if rotary else None
            )
            np.testing.assert_allclose(out.output[b][real], output[real], atol=1e-5)
            have = softmax(np.asarray(out.scores[b], np.float64))
            np.testing.assert_allclose(have[:, real], probabilities[:, real], atol=1e-6)
            for name, value in zip(("query", "key", "value"), out[2:], strict=True):
                flat = np.reshape(value[b], (T, D))
                np.testing.assert_allclose(flat, dense(params[name], x64), atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_output_probabilities_queries_keys_and_values(self):
        self.check(rotary=False)

    @chex.variants(with_jit=True, without_jit=True)
    def test_rotary(self):
        """Queries and keys are returned as they were before the rotation."""
        self.check(rotary=True)


def test_scores_are_scaled_and_masked_and_not_yet_a_softmax(within):
    module, variables, x, bias = setup(rotary=True)
    out = module.apply(variables, x, bias, POSITIONS)
    q, k = (np.asarray(v, np.float64)[0, :, 1] for v in (out.queries, out.keys))
    raw = turn(q, POSITIONS[0]) @ turn(k, POSITIONS[0]).T / np.sqrt(D // H)
    within(np.asarray(out.scores)[0, 1, :3, :3], raw[:3, :3])
    assert np.all(np.asarray(out.scores)[0, 1, :3, 3:] < -1e8)


def test_examples_of_a_row_do_not_see_each_other_nor_padding():
    module, variables, x, bias = setup()
    out = module.apply(variables, x, bias, POSITIONS)
    probabilities = np.asarray(jax.nn.softmax(out.scores))
    assert np.all(probabilities[0, :, :3, 3:] == 0)
    assert np.all(probabilities[0, :, 3:5, [0, 1, 2, 5]] == 0)
    assert np.all(probabilities[1, :, :2, 2:] == 0)
    changed = x.copy()
    changed[0, 3:] += 1.0
    again = module.apply(variables, changed, bias, POSITIONS)
    np.testing.assert_array_equal(out.output[0, :3], again.output[0, :3])
    assert np.all(np.isfinite(again.output))  # padding queries, which see nothing, too


def test_a_gradient_through_a_row_of_padding_is_finite():
    module, variables, x, _ = setup()
    bias = segment_bias(np.zeros((B, T), np.int32))
    grads = jax.grad(lambda v: module.apply(v, x, bias, POSITIONS).output.sum())(variables)
    chex.assert_tree_all_finite(grads)


def test_the_original_mask_hides_keys_alone():
    bias = np.asarray(key_bias(SEGMENTS))
    assert bias.shape == (B, 1, 1, T)
    np.testing.assert_array_equal(bias[:, 0, 0] == -10000, SEGMENTS == 0)
    assert np.all(bias[:, 0, 0][SEGMENTS > 0] == 0)


def test_dropout_acts_on_probabilities_and_needs_its_key():
    module, variables, x, bias = setup(dropout=0.5)
    quiet = module.apply(variables, x, bias, POSITIONS)

    def noisy(seed: int):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, x, bias, POSITIONS, deterministic=False, rngs=rngs)

    np.testing.assert_array_equal(quiet.scores, noisy(0).scores)
    np.testing.assert_array_equal(noisy(0).output, noisy(0).output)
    assert np.any(noisy(0).output != noisy(1).output)
    assert np.any(noisy(0).output != quiet.output)


def test_bfloat16_operands_give_float32_results_nearby():
    module, variables, x, bias = setup()
    exact = module.apply(variables, x, bias, POSITIONS)
    coarse = SelfAttention(H, dtype=jnp.bfloat16).apply(variables, x, bias, POSITIONS)
    chex.assert_type(list(coarse), jnp.float32)
    assert 0 < np.max(np.abs(exact.output - coarse.output)) < 0.1


def on(*capabilities: str, version: str = "PJRT C API\ncuda 13000"):
    """As many devices."""
    client = types.SimpleNamespace(platform_version=version)
    return [types.SimpleNamespace(client=client, compute_capability=c) for c in capabilities]


@pytest.mark.parametrize(
    ("devices", "shape", "dtype", "taken"),
    [
        (on("9.0"), (2, 128, 12, 64), jnp.bfloat16, True),
        (on("8.0"), (2, 16, 12, 32), jnp.bfloat16, True),
        (on("7.5"), (2, 128, 12, 64), jnp.bfloat16, False),
        (on("9.0", "9.0"), (2, 128, 12, 64), jnp.bfloat16, False),
        (on("gfx90a", version="rocm 60200"), (2, 128, 12, 64), jnp.bfloat16, False),
        (on("9.0"), (2, 128, 12, 64), jnp.float32, False),
        (on("9.0"), (2, 128, 12, 26), jnp.bfloat16, False),
        (on("9.0"), (2, 128, 2, 256), jnp.bfloat16, False),
        (on("9.0"), (2, 127, 12, 64), jnp.bfloat16, False),
    ],
)
def test_one_cuda_device_writes_no_scores_in_bfloat16(monkeypatch, devices, shape, dtype, taken):
    monkeypatch.setattr(jax, "devices", lambda: devices)
    rows = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert fuses(rows, rows, dtype) is taken
    assert not fuses(rows, jax.ShapeDtypeStruct((2, 127, *shape[2:]), jnp.float32), dtype)


@pytest.fixture
def somewhere(monkeypatch):
    """Where there is no CUDA device, XLA's implementation of the same function."""
    by_xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    if not cuda():
        monkeypatch.setattr(
            jax.nn, "dot_product_attention", lambda *given, implementation: by_xla(*given)
        )


@pytest.mark.skipif(cuda(), reason="a CUDA device would not compute what a CPU does")
def test_where_nobody_reads_scores_there_need_be_none(monkeypatch, somewhere):
    """The choice alone: a CPU computes what it always does."""
    module, variables, x, bias = setup()
    apply = functools.partial(module.apply, variables, x, bias, POSITIONS)
    whole, same = apply(), apply(scored=False)
    assert same.scores is not None
    monkeypatch.setattr(ours, "fuses", lambda queries, keys, dtype: True)
    assert apply().scores is not None
    out = jax.jit(functools.partial(apply, scored=False))()
    assert out.scores is None
    chex.assert_trees_all_close(out._replace(scores=whole.scores), whole, atol=1e-5)
    rngs, noisy = {"dropout": jax.random.key(0)}, SelfAttention(H, dropout=0.5)
    dropped = noisy.apply(
        variables, x, bias, POSITIONS, deterministic=False, scored=False, rngs=rngs
    )
    assert dropped.scores is not None


@pytest.mark.parametrize("bias", [segment_bias, key_bias])
def test_attention_in_one_kernel_scales_and_masks_as_ours_does(somewhere, bias):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, H, 8)).astype(np.float32) for _ in range(3))
    mixed = np.asarray(fused(q, k, v, bias(SEGMENTS)))
    for b, head in np.ndindex(B, H):
        scores = q[b, :, head].astype(np.float64) @ k[b, :, head].T / np.sqrt(8)
        expected = softmax(scores + np.asarray(bias(SEGMENTS))[b, 0]) @ v[b, :, head]
        real = SEGMENTS[b] > 0
        np.testing.assert_allclose(mixed[b, real, head], expected[real], atol=0.02)


@pytest.mark.skipif(not cuda(), reason="needs a CUDA device")
def test_attention_in_one_kernel_has_the_gradients_of_ours():
    module = SelfAttention(H, dtype=jnp.bfloat16)
    x = np.random.default_rng(0).normal(size=(B, T, 8 * H)).astype(np.float32)
    given = (x, segment_bias(SEGMENTS), POSITIONS)
    variables = random_like(jax.eval_shape(module.init, jax.random.key(0), *given))
    real = (SEGMENTS > 0)[:, :, None]

    def loss(variables, scored):
        out = module.apply(variables, *given, scored=scored)
        assert (out.scores is None) is not scored
        return jnp.sum(jnp.where(real, out.output, 0.0) ** 2)

    mine, theirs = (jax.jit(jax.grad(loss), static_argnums=1)(variables, s) for s in (True, False))
    distance = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(a), mine, theirs)
    assert max(jax.tree.leaves(distance)) < 0.05, distance
