"""The helpers that other tests lean on."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import commands
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


def test_a_test_that_would_begin_after_the_given_second_is_skipped():
    test = f"{__file__}::test_within_rejects_another_tree"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", f"--until={time.time()}", test],
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 skipped" in done.stdout and "not begun" in done.stdout


def test_what_is_told_of_compiled_programs_compiles_as_users_do(optimised):
    """Given the same options, the program is the one of a process without this suite's flags."""
    program = """
import re, jax, jax.numpy as jnp
def mix(x):
    return jax.nn.softmax(jnp.tanh(x) @ x.T, axis=-1) @ x
made = jax.jit(jax.grad(lambda x: mix(mix(x)).sum())).lower(jnp.ones((64, 48))).compile()
found = re.findall(r" ([a-z-]+)\\(", made.as_text()), made.memory_analysis().temp_size_in_bytes
"""
    here: dict = {}
    exec(program, here)
    there = subprocess.run(
        [sys.executable, "-c", f"{program}print(found)"],
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert there.strip() == str(here["found"])
