"""Trains the phases of a recipe: a file, or the name of one that comes with jaxbert.

Any key of the config is overridden by ``--config.KEY=VALUE``. The same command again continues. A
finished run has a report.html of its records; eval.py and jaxbert report add what they measure.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from jaxbert import launch
from jaxbert.errors import warn
from jaxbert.files import as_path, kept_folder
from jaxbert.recipe import load_recipe, read_overrides, resolve

HELP = "train the phases of a recipe"
USAGE = (
    "--config=RECIPE --workdir=DIR [--config.KEY=VALUE ...] [--dry-run] [--profile] [--no-report] "
    "[--debug]"
)
OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    hint = "a recipe: NAME or PATH.py, and :ARGUMENT"
    parser.add_argument("--config", required=True, metavar="RECIPE", help=hint)
    parser.add_argument(
        "--workdir", required=True, type=as_path, help="where everything is written"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it would be, do nothing")
    hint = "trace a few steps of each phase, and say where their time goes"
    parser.add_argument("--profile", action="store_true", help=hint)
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix.
    """
    flags = "--config, --workdir, --dry-run, --profile, --no-report, --debug"
    overrides = read_overrides(args.overrides, flags)
    config = resolve(load_recipe(args.config), overrides)
    if args.dry_run:
        from jaxbert.doctor.dry_run import dry_run

        dry_run(config, args.workdir)
        return
    group = launch.read_group(args)
    # They import jax: only once the config is known to be good.
    from jaxbert import run as training
    from jaxbert.processes import first, joined
    from jaxbert.programs import keep_programs

    training.quieten()
    keep_programs(kept_folder(args.workdir, config.corpus_cache) / "programs")
    words = ["jaxbert", "train", f"--config={args.config}", f"--workdir={args.workdir}"]
    command = shlex.join([*words, *args.overrides])
    with joined(group):
        training.run(config, args.workdir, profile=args.profile, command=command)
        if first() and not args.no_report:
            leave_report(args.workdir)


def leave_report(workdir: Path) -> None:
    """Writes a finished run's report.html where there is none.

    The records alone are read, so that it takes a second; no run fails for want of the page.
    """
    from jaxbert.report.page import FILE, write_report

    try:
        if not (workdir / FILE).is_file():
            print(write_report(workdir, measured=False))
    except Exception as error:
        warn(f"{FILE} was not written ({error}); jaxbert report {workdir} writes it")
