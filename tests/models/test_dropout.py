"""Dropout against flax's own, and of parts of a batch against the whole."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.models.dropout import Dropout

X = jnp.arange(1.0, 1.0 + 8 * 3 * 5).reshape(8, 3, 5)


def drop(x: jax.Array, rate: float = 0.25, module: type = Dropout) -> jax.Array:
    rngs = {"dropout": jax.random.key(7)}
    return module(rate).apply({}, x, deterministic=False, rngs=rngs)


def test_it_is_flax_dropout():
    np.testing.assert_array_equal(drop(X), drop(X, module=nn.Dropout))
    gradient = jax.grad(lambda x: jnp.sum(drop(x) * x))
    wanted = jax.grad(lambda x: jnp.sum(drop(x, module=nn.Dropout) * x))(X)
    np.testing.assert_array_equal(gradient(X), wanted)
    for same in (drop(X, 0.0), Dropout(0.5).apply({}, X, deterministic=True)):
        assert same is X


@pytest.mark.parametrize("parts", [(2,), (2, 2)])
def test_parts_of_a_batch_get_their_rows_of_its_numbers(parts):
    mapped = lambda x: drop(x) * x  # noqa: E731
    for _ in parts:
        mapped = jax.vmap(mapped)
    gradient = jax.grad(lambda x: jnp.sum(jax.jit(mapped)(x)))
    cut = X.reshape(*parts, -1, *X.shape[1:])
    np.testing.assert_array_equal(mapped(cut).reshape(X.shape), drop(X) * X)
    wanted = jax.grad(lambda x: jnp.sum(drop(x) * x))(X)
    np.testing.assert_array_equal(gradient(cut).reshape(X.shape), wanted)
