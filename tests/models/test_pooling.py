"""The mean state of packed examples against NumPy, and against one example a row."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STUDENT, examples, visible_params

from jaxbert.data.packing import PackedBatches
from jaxbert.models.bert import encode
from jaxbert.models.pooling import mean_states

RNG = np.random.default_rng(0)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 3], [0] * 7], np.int32)
HIDDEN = RNG.normal(size=(3, 7, 5)).astype(np.float32)


def by_hand(hidden, segments, slots):
    out = np.zeros((len(hidden), slots, hidden.shape[-1]))
    for row, slot in np.ndindex(*out.shape[:2]):
        mine = segments[row] == slot + 1
        if mine.any():
            out[row, slot] = hidden[row, mine].astype(np.float64).mean(axis=0)
    return out


class PoolingTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_the_mean_over_the_tokens_of_each_example_and_0_of_none(self):
        out = self.variant(mean_states, static_argnums=2)(HIDDEN, SEGMENTS, 4)
        chex.assert_type(out, jnp.float32)
        np.testing.assert_allclose(out, by_hand(HIDDEN, SEGMENTS, 4), atol=1e-6)
        assert not np.any(out[2]) and not np.any(out[0, 2:])


def test_bfloat16_states_are_summed_in_float32():
    rounded = jnp.asarray(HIDDEN, jnp.bfloat16)
    out = mean_states(rounded, SEGMENTS, 3)
    chex.assert_type(out, jnp.float32)
    np.testing.assert_allclose(
        out, by_hand(np.asarray(rounded, np.float32), SEGMENTS, 3), atol=1e-6
    )


def test_each_token_of_an_example_gets_an_equal_part_of_the_gradient_and_padding_none():
    weight = RNG.normal(size=(3, 3, 5)).astype(np.float32)

    def loss(hidden):
        return jnp.sum(weight * mean_states(hidden, SEGMENTS, 3))

    want = np.zeros_like(HIDDEN)
    for row, place in np.ndindex(*SEGMENTS.shape):
        if number := SEGMENTS[row, place]:
            want[row, place] = weight[row, number - 1] / (SEGMENTS[row] == number).sum()
    np.testing.assert_allclose(jax.grad(loss)(HIDDEN), want, atol=1e-6)


@pytest.mark.usefixtures("matmul_highest")
def test_packed_examples_have_the_means_of_one_example_a_row(within):
    lengths = [5, 9, 3, 12, 7, 4, 16, 2]
    some, params = examples(lengths), visible_params(STUDENT, 1)

    @jax.jit
    def pooled(params, batch):
        hidden = encode(STUDENT, params, batch).last_hidden
        return mean_states(hidden, batch.segments, batch.starts.shape[1])

    found = []
    for packing in (True, False):
        stream = PackedBatches(
            some, batch_size=len(some), row_length=16, seed=0, packing=packing, epochs=1
        )
        ids, out = stream.example_ids(0), np.asarray(pooled(params, stream[0]))
        found.append(out[ids >= 0][np.argsort(ids[ids >= 0])])
        assert not np.any(out[ids < 0])
    within(*found)
