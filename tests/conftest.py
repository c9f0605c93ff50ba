"""Every test sees eight CPU devices; setup.cfg makes warnings errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Both are read once, when jax starts: nothing above may import it. Subprocesses inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

import commands  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import object_store  # noqa: E402
import pytest  # noqa: E402

# Tests compare arithmetic, and most of their time is compiling: LLVM's optimiser is left out, XLA's
# passes stay. Commands that tests start compile as users' do; what is told of bits or of compiled
# programs asks for `optimised`.
jax.config.update("jax_disable_most_optimizations", True)

# A busy machine is no fault of the code: nothing is held against a clock.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


# Files that take minutes, the longest first.
LONG = ("pages", "quickstart", "notebook", "recipes", "train", "jobs", "teachers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands first: two workers that share files would else end with one long one."""
    first = [commands.ROOT / "tests" / f"test_{name}.py" for name in LONG]

    def place(item: pytest.Item) -> tuple[int, bool]:
        known = first.index(item.path) if item.path in first else len(first)
        return known, item.path.parent != commands.ROOT / "tests"

    items.sort(key=place)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of compiled programs and tokenised text for all tests."""
    return commands.shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def store() -> Iterator[object_store.Store]:
    """An object store, one for the module: what speaks to it asks once in a process where it is."""
    store = object_store.Store()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store
    store.close()


@pytest.fixture
def matmul_highest() -> Iterator[None]:
    """Full float32 products, which accelerators do not give by default; for parity tests."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def optimised() -> Iterator[None]:
    """Compiles as users' processes do, what other tests have compiled, too."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def within() -> Callable[..., None]:
    """``within(a, b)``: |a - b| <= 1e-5 max(1, |b|) for every leaf of two trees."""
    return assert_within


def assert_within(actual: object, expected: object, tolerance: float = 1e-5) -> None:
    """Asserts |actual - expected| <= tolerance * max(1, |expected|), leaf by leaf.

    Raises:
      AssertionError: naming the first leaf that differs, by how much of the allowance.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(expected)
    leaves, actual_tree = jax.tree.flatten(actual)
    assert actual_tree == tree, f"{actual_tree} is not {tree}"
    for (path, want), have in zip(paths, leaves, strict=True):
        name = jax.tree_util.keystr(path) or "the array"
        want, have = np.asarray(want, np.float64), np.asarray(have, np.float64)
        assert have.shape == want.shape, f"{name}: shape {have.shape} is not {want.shape}"
        used = np.abs(have - want) / (tolerance * np.maximum(1.0, np.abs(want)))
        # "not <=" rather than ">": NaN must fail.
        assert np.all(used <= 1), f"{name}: {np.max(used):.3g} times the allowed difference"
