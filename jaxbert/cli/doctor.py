"""Says what a run would start from, what it would cost, and what is wrong with it.

Takes the flags of train.py, writes nothing, and leaves with 2 where the run would be refused.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from jaxbert.recipe import load_recipe, read_overrides, resolve

HELP = "check a run's teacher, student, problems and cost before it starts"
OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--config", required=True, help="a recipe: PATH.py or PATH.py:ARGUMENT")
    parser.add_argument("--workdir", type=Path, help="the run's, to check that it may go on there")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: everything for which the run would be refused.
    """
    overrides = read_overrides(args.overrides, "--config, --workdir, --debug")
    config = resolve(load_recipe(args.config), overrides)
    from jaxbert.doctor.report import diagnose  # imports jax: only once the config is good

    with tempfile.TemporaryDirectory() as nowhere:
        diagnose(config, args.workdir or Path(nowhere) / "run")
