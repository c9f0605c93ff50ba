"""What XLA has compiled, kept for the next run."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep_programs(folder: Path) -> None:
    """Keeps compiled programs under a folder, and takes from there what has been compiled before.

    A program holds instructions that another processor may not have: each kind has a folder of its
    own. JAX tells programs of other versions, flags and devices apart by itself, and compiles anew
    what it cannot read. Does nothing where JAX was given a cache, or none on purpose, by its own
    options (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE``).

    Args:
      folder: made when the first program is written; where it cannot be made nothing is kept.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen or not jax.config.values["jax_enable_compilation_cache"]:
        return
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(there, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder / _instructions()))


def _instructions() -> str:
    """A name for what this processor understands."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    known = {line for line in text.splitlines() if line.startswith(("flags", "Features"))}
    said = "\n".join(sorted(known)) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
