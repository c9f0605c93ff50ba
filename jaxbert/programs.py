"""What XLA has compiled, kept for the next run."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxbert.errors import warn

_UNREAD = "Error reading persistent compilation cache entry for "  # JAX's words


def keep_programs(folder: Path) -> None:
    """Keeps compiled programs under a folder, and takes from there what has been compiled before.

    A program holds instructions that another processor may not have: each kind has a folder of its
    own. It is executed, so that the folder has to be this user's. JAX tells programs of other
    versions, flags and devices apart by itself; what it cannot read is compiled anew, and written
    anew. Does nothing where JAX was given a cache, or none on purpose, by its own options
    (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE``).

    Args:
      folder: made if absent; where it cannot be had nothing is kept.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen or not jax.config.values["jax_enable_compilation_cache"]:
        return
    folder = folder.absolute() / _instructions()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        levels = [path.stat() for path in (folder, *folder.parents[:2])]
    except OSError:
        return
    others = any(facts.st_uid != os.geteuid() or facts.st_mode & 0o002 for facts in levels)
    if others or levels[0].st_mode & 0o022:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    warnings.showwarning = functools.partial(_show, folder, warnings.showwarning)


def _show(
    folder: Path, show: Callable[..., None], message: Warning | str, *where: Any, **more: Any
) -> None:
    """Removes programs that cannot be read, so that they are written anew; says so in one line."""
    said = str(message)
    if not said.startswith(_UNREAD):
        show(message, *where, **more)
        return
    name = said.removeprefix(_UNREAD).partition("'")[2].partition("'")[0]
    for path in folder.glob(f"{name}-*-cache"):
        path.unlink(missing_ok=True)
    warn(f"a compiled program cannot be read, and is compiled anew: {name} in {folder}")


def _instructions() -> str:
    """A name for what this processor understands."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    known = {line for line in text.splitlines() if line.startswith(("flags", "Features"))}
    said = "\n".join(sorted(known)) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
