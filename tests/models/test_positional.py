"""Positional encodings against the papers' formulas in float64."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest
from reference import sinusoids, turn

from jaxbert.models.positional import LearnedPositions, rotate, sinusoidal_table


@pytest.mark.parametrize(("length", "features"), [(512, 32), (5, 7), (1, 1)])
def test_the_sinusoidal_table_is_the_paper_s(within, length, features):
    table = sinusoidal_table(length, features)
    assert table.dtype == np.float32
    within(table, sinusoids(length, features), 1e-6)


class RotaryTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_rotation_is_multiplication_by_a_complex_unit(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
        positions = rng.integers(0, 512, (2, 5)).astype(np.int32)
        turned = self.variant(rotate)(x, positions)
        chex.assert_shape(turned, x.shape)
        chex.assert_type(turned, np.float32)
        want = np.stack(
            [
                np.stack([turn(x[b, :, h].astype(float), positions[b]) for h in range(3)], axis=1)
                for b in range(2)
            ]
        )
        # float32 angles of up to 511 radians are known to 2^-16.
        np.testing.assert_allclose(turned, want, atol=2e-4)

    @chex.variants(with_jit=True, without_jit=True)
    def test_products_depend_on_the_distance_alone(self):
        rng = np.random.default_rng(1)
        q, k = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
        shifts = np.arange(20, dtype=np.int32)
        fn = self.variant(rotate)

        def products(distance: int) -> np.ndarray:
            a = fn(np.repeat(q, 20, axis=1), shifts[None])
            b = fn(np.repeat(k, 20, axis=1), shifts[None] + distance)
            return np.sum(np.asarray(a) * np.asarray(b), axis=-1).ravel()

        near, far = products(3), products(7)
        np.testing.assert_allclose(near, near[0], atol=1e-4)
        np.testing.assert_allclose(far, far[0], atol=1e-4)
        assert abs(near[0] - far[0]) > 1e-2

    @chex.variants(with_jit=True, without_jit=True)
    def test_position_zero_changes_nothing_and_no_position_changes_the_length(self):
        x = np.random.default_rng(2).normal(size=(1, 4, 2, 6)).astype(np.float32)
        fn = self.variant(rotate)
        np.testing.assert_array_equal(fn(x, np.zeros((1, 4), np.int32)), x)
        turned = fn(x, np.array([[0, 1, 50, 500]], np.int32))
        np.testing.assert_allclose(
            np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
        )


def test_learned_positions_are_rows_of_their_table():
    module = LearnedPositions(9, 4)
    positions = np.array([[0, 8, 3], [1, 1, 0]], np.int32)
    params = module.init(jax.random.key(0), positions)
    out = module.apply(params, positions)
    np.testing.assert_array_equal(out, params["params"]["embedding"][positions])
    chex.assert_shape(params["params"]["embedding"], (9, 4))
