"""What a run would run on: devices, versions, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from jaxbert.doctor.forecast import PhaseForecast
from jaxbert.errors import UserError
from jaxbert.files import free_bytes, is_remote, size_text
from jaxbert.workdir import count_cores, versions


def describe_environment(workdir: Path, dtype: str) -> list[tuple[str, str]]:
    """Name and value of what a run would run on.

    Args:
      workdir: the run's folder; need not be there.
      dtype: of its products' operands.
    """
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    packages = (f"{name} {version}" for name, version in versions().items())
    available = _available()
    return [
        ("devices", f"{len(devices)} {devices[0].platform} ({', '.join(kinds)})"),
        ("operands", dtype),
        ("cores", f"{count_cores()}"),
        ("versions", ", ".join(packages)),
        ("memory", "unknown" if available is None else f"{size_text(available)} free"),
        ("disk", "unknown" if (free := _free(workdir)) is None else f"{size_text(free)} free"),
    ]


def shortages(workdir: Path, phases: Sequence[PhaseForecast]) -> list[UserError]:
    """What there may not be enough of.

    Args:
      workdir: the run's folder; need not be there.
      phases: what they need.
    """
    found = []
    need, free = sum(phase.disk for phase in phases), _free(workdir)
    if free is not None and need > free:
        what = f"the run may need {size_text(need)} of disk, and {size_text(free)} are free"
        found.append(UserError(what, str(workdir), "make room, or give another --workdir"))
    available = _available() if jax.default_backend() == "cpu" else None
    peak = max(phases, key=lambda phase: phase.memory, default=None)
    if peak is not None and available is not None and peak.memory > available:
        what = f"a step may need {size_text(peak.memory)} of memory, and {size_text(available)} "
        fix = f"give a smaller {peak.name}.batch_size, or --config.{peak.name}.accumulation=2"
        found.append(UserError(what + "are free", f"phase {peak.name}", fix))
    return found


def _free(folder: Path) -> int | None:
    """Bytes that are free where a folder is, or is to be; None where nothing says how many."""
    if is_remote(folder):
        return None
    folder = folder.resolve()
    return free_bytes(next(one for one in (folder, *folder.parents) if one.is_dir()))


def _available() -> int | None:
    """Bytes of memory that programs may have, as Linux tells; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
