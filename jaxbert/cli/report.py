"""Writes report.html of a run: what it learnt, what came of it, and what it was made with.

Reads what train.py and eval.py have left, and the models; eval.py writes the page, too.
"""

from __future__ import annotations

import argparse

from jaxbert.files import as_path

HELP = "write a run's report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the argument."""
    parser.add_argument("workdir", type=as_path, help="the --workdir of a run, finished or not")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: it is not a run's folder, or it cannot be written there.
    """
    from jaxbert.report.page import write_report  # imports jax

    print(write_report(args.workdir))
