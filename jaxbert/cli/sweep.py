"""Runs the cells of a sweep file that have no result yet, and shows the table of those that have.

A finished cell is a line of the results file, and is not run again: the same command goes on with
the rest, after a stop as well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jaxbert.errors import UserError, UserErrors
from jaxbert.files import local_path
from jaxbert.sweep.plan import Sweep

HELP = "a grid of runs over seeds, gone on with where it was stopped, and its table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "file", metavar="FILE.py[:ARGUMENT]", help="a sweep, as in benchmarks/sweeps"
    )
    parser.add_argument("--results", type=local_path, help="JSON Lines; docs/results/FILE.jsonl")
    parser.add_argument(
        "--workdir", type=local_path, default="runs/sweeps", help="the folder of the runs"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CELL", help="names, or patterns such as 'cola/*'"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=PLACE", help="a place of the sweep"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="cells that run at once, on a device with room for them"
    )
    parser.add_argument("--keep", action="store_true", help="all checkpoints and models stay")
    parser.add_argument("--show", action="store_true", help="show the table, run nothing")
    parser.add_argument("--markdown", action="store_true", help="show it as Markdown")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix.
      SystemExit: with 1, when a cell has failed; with 75, when it was told to stop.
    """
    from jaxbert.sweep.execute import Sweeper
    from jaxbert.sweep.plan import choose, expand, load_sweep
    from jaxbert.sweep.results import Results, read_results, write_results
    from jaxbert.sweep.table import make_rows, mean_rows, missing, mixed, render

    file, colon, argument = args.file.partition(":")
    name = Path(file).stem + colon + argument
    path = args.results or Path(f"docs/results/{Path(file).stem}.jsonl")
    sweep = load_sweep(args.file)
    cells = expand(sweep)
    chosen = choose(cells, args.only)

    def show(results: Results) -> None:
        rows = make_rows(chosen, results)
        table = render([*rows, *mean_rows(rows)], list(sweep.seeds), markdown=args.markdown)
        notes = [*missing(chosen, results), *mixed(chosen, results)]
        print("\n".join([table, "", *notes]).rstrip())
        if old := results.outdated(name, cells):
            print(f"left out: {old} results of cells that are gone, or that had another config")

    if args.show or args.markdown:
        show(read_results(path))
        return
    places = _places(args.set, sweep)
    if args.jobs < 1:
        raise UserError(f"{args.jobs} cells cannot run", "flag --jobs", "give 1 or more")
    if not Path("train.py").is_file():
        raise UserError("train.py is not here", f"{Path.cwd()}", "run it in jaxbert's checkout")
    with write_results(path) as results:
        sweeper = Sweeper(
            name, cells, str(args.workdir), places, results, keep=args.keep, jobs=args.jobs
        )
        failed = sweeper.run(sweeper.todo(chosen))
        show(results)
    if failed:
        sys.exit(1)


def _places(given: list[str], sweep: Sweep) -> dict[str, str]:
    """Name -> place."""
    from jaxbert.sweep.plan import near_fix

    places, errors = {}, []
    for word in given:
        name, equals, place = word.partition("=")
        if not (equals and place):
            errors.append(UserError(f"{word!r} is not NAME=PLACE", "flag --set", "give both"))
        elif name not in sweep.places:
            fix = near_fix(name, list(sweep.places))
            errors.append(UserError(f"the sweep has no place {name}", "flag --set", fix))
        places[name] = place
    if errors:
        raise UserErrors(errors)
    return places
