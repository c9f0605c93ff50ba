"""Attention against float64 NumPy, one head at a time."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import attention, dense, random_like, softmax, turn

from jaxbert.models.attention import SelfAttention, key_bias, segment_bias

pytestmark = pytest.mark.usefixtures("matmul_highest")

B, T, H, D = 2, 6, 3, 12
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 0]], np.int32)


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
