"""Runs a finished run again, in another folder, and says whether the same bits came out.

References to files are taken as they were: run it where train.py ran.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from jaxbert.errors import UserError
from jaxbert.files import as_path, check_seal, read_object
from jaxbert.recipe import resolve

HELP = "run a finished run again and compare what comes out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", type=as_path, help="the --workdir of a finished run")
    parser.add_argument("--workdir", type=as_path, help="of the new one; FOLDER-rerun by default")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: there is no finished run, or it cannot be run again.
      SystemExit: with 1, when other parameters came out of any phase.
    """
    before = _summary(args.folder)
    config = resolve(before["config"], {})
    folder = args.folder
    if folder.name in ("", ".."):  # where one stands
        folder = folder.resolve()
    workdir = args.workdir or folder.with_name(f"{folder.name}-rerun")
    if (workdir / "summary.json").is_file():  # whose phases would be found finished
        what = "a finished run is there, which would not be run again"
        raise UserError(what, str(workdir), "give another --workdir")
    from jaxbert.run import quieten
    from jaxbert.run import run as train

    quieten()
    command = shlex.join(["jaxbert", "rerun", str(args.folder), f"--workdir={workdir}"])
    after = train(config, workdir, command=command)
    if _hashes(after) == _hashes(before):
        print(f"{workdir}: the same parameters, {after['parameter_hash']}")
        return
    print(f"{workdir}: other parameters than in {folder}")
    for difference in _differences(before, after):
        print(f"  {difference}")
    sys.exit(1)


def _summary(folder: Path) -> dict[str, Any]:
    path, fix = folder / "summary.json", "give the --workdir of a finished run"
    check_seal(folder, fix)
    found = read_object(path, fix)
    parts = (found.get("config"), found.get("phases"))
    if not all(isinstance(part, dict) for part in parts) or "parameter_hash" not in found:
        raise UserError("no summary of a run with its config", str(path), fix)
    return found


def _hashes(summary: dict[str, Any]) -> dict[str, str | None]:
    """What came out: of the run, and of each phase."""
    phases = summary["phases"].items()
    return {"": summary["parameter_hash"]} | {k: v.get("parameter_hash") for k, v in phases}


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What two runs of one config started from, ran on and came to, where that differs."""
    found = [
        f"{group} {key}: {was} before, {after[group].get(key)} now"
        for group in ("versions", "system", "devices")
        for key, was in before.get(group, {}).items()
        if after[group].get(key) != was
    ]
    was, now = (summary.get("git_revision") for summary in (before, after))
    found += [f"git_revision: {was} before, {now} now"] if was != now else []
    keys = ("start_hash", "teacher_hash", "data_hash", "parameter_hash")
    for name, phase in before["phases"].items():
        again = after["phases"].get(name, {})
        found += [f"phase {name}: another {k}" for k in keys if phase.get(k) != again.get(k)]
    return found
