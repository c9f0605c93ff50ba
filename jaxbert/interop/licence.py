"""Under which licence a model was given, as far as what lies beside it says so."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re

from jaxbert.errors import UserError
from jaxbert.files import read_object
from jaxbert.interop import hub

_SAID = re.compile(r"^(license(?:_name)?):\s*['\"]?([\w.+-]+)", re.MULTILINE)
_MOST = 1 << 16  # characters of a model card that are read
_RUNS = 16  # that start from one another


def origin(reference: str) -> str:
    """Where a model comes from at last: that of a run comes from the run's teacher.

    Args:
      reference: as `hub.resolve` takes it.

    Returns:
      The reference itself where it names no run, or one that is gone.
    """
    for _ in range(_RUNS):
        with contextlib.suppress(UserError):
            workdir, _ = hub.split_run(reference)
            if hub.is_workdir(workdir):
                teacher = read_object(workdir / "config.json", "").get("teacher")
                if isinstance(teacher, str) and teacher:
                    reference = teacher
                    continue
        break
    return reference


def read_licence(reference: str) -> str:
    """What the card beside a model says, else the metadata of its package; empty if neither does.

    Args:
      reference: of a model that is here, as `hub.resolve` takes it.
    """
    try:
        card = hub.resolve(reference) / "README.md"
        with card.open(encoding="utf-8", errors="replace") as file:
            head = re.match(r"---\n(.*?)\n---\n", file.read(_MOST), re.DOTALL)
    except (UserError, OSError):
        head = None
    said = dict(_SAID.findall(head[1] if head else ""))
    name = said.get("license", "")
    if name == "other":
        name = said.get("license_name", name)
    kind, _, package = reference.partition(":")
    if name or kind != "pkg":
        return name
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        about = importlib.metadata.metadata(package.partition("==")[0])
        named = [about[key] for key in ("License-Expression", "License") if key in about]
        if named and "\n" not in named[0]:  # some have all of its text there
            return f"{named[0]} (of the package)"
    return ""
