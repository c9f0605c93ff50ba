"""Says what a run would start from, what it would cost, and what is wrong with it.

Takes the flags of train.py, writes nothing, and leaves with 2 where the run would be refused.
Findings are numbered. With --json it prints one object: these, the environment and what each phase
will need.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from jaxbert.config import RunConfig
from jaxbert.doctor.findings import number
from jaxbert.errors import UserError, UserErrors
from jaxbert.files import as_path
from jaxbert.recipe import load_recipe, read_overrides, resolve

HELP = "check a run's teacher, student, problems and cost before it starts"
OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--config", required=True, help="a recipe: PATH.py or PATH.py:ARGUMENT")
    parser.add_argument(
        "--workdir", type=as_path, help="the run's, to check that it may go on there"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: everything for which the run would be refused.
      SystemExit: the same with --json, with 2, once the object is printed.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        workdir = args.workdir or Path(nowhere) / "run"
        if args.json:
            _print_json(args, workdir)
            return
        try:
            config = _config(args)
            from jaxbert.doctor.report import diagnose  # imports jax: only once the config is good

            diagnose(config, workdir)
        except UserError as error:
            raise UserErrors([one.numbered for one in number([error])]) from error


def _config(args: argparse.Namespace) -> RunConfig:
    overrides = read_overrides(args.overrides, "--config, --workdir, --json, --debug")
    return resolve(load_recipe(args.config), overrides)


def _print_json(args: argparse.Namespace, workdir: Path) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # what else is said on the way
        try:
            config = _config(args)
            from jaxbert.doctor.report import findings  # imports jax, likewise

            found = findings(config, workdir)
        except UserError as error:
            found = {"findings": [dataclasses.asdict(one) for one in number([error])]}
    print(json.dumps(found, indent=2))
    if any(finding["kind"] == "error" for finding in found["findings"]):
        sys.exit(2)
