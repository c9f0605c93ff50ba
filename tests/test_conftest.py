"""The helpers that other tests lean on."""

from __future__ import annotations

import os
import re
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


def test_a_test_that_would_begin_after_the_given_second_is_skipped_and_named():
    test = f"{__file__}::test_within_rejects_another_tree"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rs",
            "--no-fold-skipped",
            f"--until={time.time()}",
            test,
        ],
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^SKIPPED tests/.*::test_within_rejects_another_tree - .*not begun", done.stdout, re.M
    )


PROGRAM = r"""
import re, jax, jax.numpy as jnp
def mix(x):
    return jax.nn.softmax(jnp.tanh(x) @ x.T, axis=-1) @ x
made = jax.jit(jax.grad(lambda x: mix(mix(x)).sum())).lower(jnp.ones((64, 48))).compile()
found = re.findall(r" ([a-z-]+)\(", made.as_text()), made.memory_analysis().temp_size_in_bytes
"""


def compiled_here() -> str:
    names: dict = {}
    exec(PROGRAM, names)
    return str(names["found"])


def test_what_is_told_of_compiled_programs_compiles_as_users_do(request):
    otherwise = compiled_here()
    request.getfixturevalue("optimised")
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}print(found)"],
        env=commands.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert compiled_here() == done.stdout.strip()
    if "fusion_emitters=false" in os.environ["XLA_FLAGS"]:
        assert otherwise != done.stdout.strip()
