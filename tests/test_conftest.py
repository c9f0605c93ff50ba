"""The helpers that other tests lean on."""

from __future__ import annotations

import jax
import numpy as np
import pytest


def test_eight_cpu_devices_are_visible():
    if jax.default_backend() != "cpu":
        pytest.skip("an accelerator is in use")
    assert jax.device_count() == 8


def test_within_allows_the_difference_relative_above_one_and_absolute_below(within):
    within({"a": np.array([1000.009, 1e-5])}, {"a": np.array([1000.0, 0.0])})


@pytest.mark.parametrize(
    "wrong",
    [np.array([1.00002, 0.0]), np.array([np.nan, 0.0]), np.array([1.0]), np.array([1.0, 2e-5])],
)
def test_within_rejects_what_differs(within, wrong):
    with pytest.raises(AssertionError):
        within([wrong], [np.array([1.0, 0.0])])


def test_within_rejects_another_tree(within):
    with pytest.raises(AssertionError):
        within({"a": 1.0}, {"b": 1.0})
