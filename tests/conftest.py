"""Every test sees eight CPU devices; setup.cfg makes warnings errors."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# All are read once, when jax starts: nothing above may import it. Commands have their own
# (`commands.environment`).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's first emitters, which jaxlib 0.10 still has: their code, in one piece, is there after a
# third of the time, and what is compiled here runs a few times.
_FIRST_EMITTERS = version("jaxlib").startswith("0.10.")
_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_parallel_codegen_split_count=1",
    *["--xla_cpu_use_fusion_emitters=false"] * _FIRST_EMITTERS,
]
_GIVEN = os.environ.get("XLA_FLAGS", "").split()
_NAMED = {flag.partition("=")[0] for flag in _GIVEN}
os.environ["XLA_FLAGS"] = " ".join(
    [*_GIVEN, *(flag for flag in _FLAGS if flag.partition("=")[0] not in _NAMED)]
)

import commands  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import object_store  # noqa: E402
import pytest  # noqa: E402

# Tests compare arithmetic, and most of their time is compiling: LLVM's optimiser is left out, too,
# XLA's passes stay. Commands that tests start compile as users' do; what is told of bits or of
# compiled programs asks for `optimised`.
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


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--until``, for a suite that may not fit into the time that a machine has for it."""
    parser.addoption(
        "--until",
        type=float,
        default=math.inf,
        metavar="EPOCH",
        help="the second (date +%%s) after which no test begins: the rest are skipped and say so",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what would begin too late."""
    if time.time() > item.config.getoption("until"):
        pytest.skip("not begun: the time that --until gave was over")


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
def optimised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles what users' processes do (in one piece), what other tests have compiled, too."""
    if _FIRST_EMITTERS:
        from jax._src import compiler  # jax has no other place for options of all compilations

        options_of = compiler.get_compile_options

        def as_users(*args: Any, **kwargs: Any) -> Any:
            options = options_of(*args, **kwargs)
            users = ("xla_cpu_use_fusion_emitters", True)
            options.env_option_overrides = [*options.env_option_overrides, users]
            return options

        monkeypatch.setattr(compiler, "get_compile_options", as_users)
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


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
