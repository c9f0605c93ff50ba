"""The folder of a run: whose it is, and files that are there whole or not at all."""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jaxbert
from jaxbert.config import PhaseConfig, RunConfig
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

_CPUINFO = Path("/proc/cpuinfo")  # Linux's

RESTORE = "restore the file, or give another --workdir"

# What a finished run is known by.
SEALED = ("config.json", "summary.json")


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, as JSON has it, of what a run computes by.

    A key that it does not have, as it was written before there was one, has its default. A dtype
    that is left to the devices says nothing: what they chose stands in the config of their run.

    Args:
      config: as ``RunConfig.to_dict`` gives it, or read from a config.json.
    """
    usual = _flat(RunConfig().to_dict())
    for name in set(config.get("phases", ())) & set(config):
        usual |= _flat(dataclasses.asdict(PhaseConfig()), f"{name}.")
    found = usual | _flat(config)
    return {k: v for k, v in found.items() if (k, v) != ("dtype", "")}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{key}.")
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
    theirs = read_object(path, RESTORE)
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
    """The versions of Python and of what jaxbert requires, for a run's records.

    Of what it can do without, those that this process has imported.
    """
    found = {"python": platform.python_version(), "jaxbert": jaxbert.__version__}
    for name, optional in sorted(requirements().items()):
        spelt = {name.replace("-", mark) for mark in ("-", "_", ".")}
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if not optional or spelt & sys.modules.keys():
                found[name] = importlib.metadata.version(name)
    return found


def requirements() -> dict[str, bool]:
    """The distributions that jaxbert requires, by name, and whether it can do without."""
    # A checkout need not be installed, and may have changed since it was.
    checkout = Path(jaxbert.__file__).parents[1] / "setup.cfg"
    if checkout.is_file():
        parser = configparser.RawConfigParser()
        parser.read(checkout, encoding="utf-8")
        extras = dict(parser["options.extras_require"]).values()
        always = parser["options"]["install_requires"].splitlines()
        lines = [f"{line}; extra" for extra in extras for line in extra.splitlines()] + always
    else:
        lines = importlib.metadata.requires("jaxbert") or []
    found: dict[str, bool] = {}
    for line in lines:
        if name := re.match(r"[A-Za-z0-9][\w.-]*", line):
            found[name[0]] = found.get(name[0], True) and "; extra" in line
    return found


def system() -> dict[str, str | int]:
    """What a run runs on beside its devices."""
    return {"platform": platform.platform(), "processor": processor(), "cores": count_cores()}


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """What Linux calls the processor; elsewhere what Python does."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> frozenset[str]:
    """What an x86 processor can beyond the least, by Linux's names; of others nothing is known."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(name: str) -> str:
    """What Linux says of the first processor; empty if nothing."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return ""
    pairs = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one piece."""
    with whole(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")
