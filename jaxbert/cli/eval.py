"""Evaluates every model of a finished run on its task's test split.

Prints teacher, student and baselines in one table and writes eval.json and report.html to the
run's folder.
"""

from __future__ import annotations

import argparse

from jaxbert.files import as_path, kept_folder

HELP = "evaluate every model of a finished run"
USAGE = "--workdir=DIR [--no-latency] [--no-report] [--debug]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--workdir", type=as_path, required=True, help="the folder of the run")
    parser.add_argument("--no-latency", action="store_true", help="time no model")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix.
    """
    # After the arguments: a typo is said at once, not when jax has started.
    from jaxbert.evaluation.evaluate import evaluate_run
    from jaxbert.evaluation.report import print_table
    from jaxbert.programs import keep_programs

    if args.workdir.is_dir():  # beside one that is mistyped nothing is made
        keep_programs(kept_folder(args.workdir) / "programs")
    print_table(evaluate_run(args.workdir, timed=not args.no_latency))
    if not args.no_report:
        from jaxbert.report.page import write_report

        print(write_report(args.workdir))
