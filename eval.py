"""Evaluates a finished run: `python eval.py --workdir=runs/task`.

Prints teacher, student, baselines in one table and writes eval.json and report.html to the run's
folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxbert.errors import exit_on_user_error
from jaxbert.memory import use_huge_pages
from jaxbert.stopping import resumable


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="jaxbert",
        usage="python eval.py --workdir=DIR [--no-report] [--debug]",
        description="Evaluates every model of a finished run on its task's test split.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="the folder train.py wrote")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    args = parser.parse_args()
    with exit_on_user_error(debug=args.debug), resumable():
        # After the arguments: a typo is said at once, not when jax has started.
        from jaxbert.evaluation.evaluate import evaluate_run
        from jaxbert.evaluation.report import print_table

        print_table(evaluate_run(args.workdir))
        if not args.no_report:
            from jaxbert.report.page import write_report

            print(write_report(args.workdir))


if __name__ == "__main__":
    use_huge_pages()
    main()
