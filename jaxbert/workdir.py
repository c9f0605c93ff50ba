"""The folder of a run: whose it is, and files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jaxbert
from jaxbert.config import RunConfig
from jaxbert.errors import UserError, UserErrors
from jaxbert.files import SEAL, hold, holder, read_object, whole

# Keys that may change while a run goes on: what it computes does not depend on them.
FREE = (
    "log_every",
    "tracking",
    "max_bad_steps",
    "spike_factor",
    "eval_batch_size",
    "data_dir",
    "data_workers",
    "corpus_cache",
    "mesh.data",
    "mesh.model",
    "mesh.fsdp",
    "checkpoint_every",
)

# What a finished run is known by.
SEALED = ("config.json", "summary.json")

# What a number may depend on.
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scikit-learn",
    "tokenizers",
)


def decisive(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, as JSON has it, of what a run computes by.

    Args:
      config: as ``RunConfig.to_dict`` gives it, or read from a config.json.
      prefix: of every key.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= decisive(value, f"{key}.")
        elif not key.endswith(FREE):
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def check_claim(workdir: Path, config: RunConfig) -> None:
    """Checks that the run that a workdir holds, if any, is this one.

    Raises:
      UserErrors: naming each key that differs, and both values.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    theirs = read_object(path, "restore the file, or give another --workdir")
    old, new = decisive(theirs), decisive(config.to_dict())
    errors = [
        UserError(
            f"it is {new.get(key)!r} and was {old.get(key)!r} when this run began",
            f"config key {key} ({path})",
            "give the old value, or another --workdir",
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if errors:
        raise UserErrors(errors)


@contextlib.contextmanager
def claim(workdir: Path, config: RunConfig) -> Iterator[None]:
    """Has a workdir for this process alone, and writes config.json there.

    Entered once the run is known to be able to start.

    Raises:
      UserError: it cannot be written, another process trains there, or it holds another run.
    """
    lock, fix = workdir / ".lock", "give another"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(lock))
            check_claim(workdir, config)
            # From here on it is a run that is not finished.
            (workdir / SEAL).unlink(missing_ok=True)
            for name in (*SEALED, "metrics.jsonl", SEAL):
                for partial in workdir.glob(f".{name}.*.partial"):  # of a process that was killed
                    partial.unlink()
            write_json(workdir / "config.json", config.to_dict())
        except BlockingIOError:
            who = f"the process {number}" if (number := holder(lock)) else "another process"
            what = f"{who} trains there"
            fix = "wait for it, or give another --workdir"
            raise UserError(what, str(workdir), fix) from None
        except OSError as error:
            raise UserError(f"cannot write there: {error}", str(workdir), fix) from error
        yield


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute, for a run's records."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    # Of a checkout that is run without being installed no package is known.
    own = {"python": platform.python_version(), "jaxbert": jaxbert.__version__}
    return own | found


def processor() -> str:
    """What Linux calls the processor; elsewhere what Python does."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one piece."""
    with whole(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")
