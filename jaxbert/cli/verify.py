"""Checks every hash that a run's folder, a model, an export or a prepared corpus holds.

Says what is as it was written; names what is not, and leaves with 2.
"""

from __future__ import annotations

import argparse

from jaxbert.errors import UserError
from jaxbert.files import as_path

HELP = "check that a run, a model or a corpus is still what was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the argument."""
    parser.add_argument(
        "folder",
        type=as_path,
        help="a --workdir, a model's folder, an exported one, a prepared one",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserErrors: naming all that is not as it was written.
    """
    if not args.folder.is_dir():
        raise UserError("there is no such folder", str(args.folder), "give one")
    from jaxbert.verify import verify  # imports jax

    verify(args.folder, print)
