"""``jaxbert COMMAND``: what is done before and after training.

A command is a module of this package with ``HELP``, one line; ``add_arguments(parser)``; and
``run(args)``, which imports what is heavy only then. One with ``OVERRIDES`` takes further words,
``--config.KEY=VALUE``, as ``args.overrides``.
"""

from __future__ import annotations

import argparse
from types import ModuleType

from jaxbert.cli import augment, doctor, init, predict, prepare, prune, report, rerun, sweep, verify
from jaxbert.errors import exit_on_user_error
from jaxbert.stopping import resumable

COMMANDS: dict[str, ModuleType] = {
    "init": init,
    "doctor": doctor,
    "prepare": prepare,
    "augment": augment,
    "predict": predict,
    "prune": prune,
    "report": report,
    "rerun": rerun,
    "sweep": sweep,
    "verify": verify,
}


def main(argv: list[str] | None = None) -> None:
    """Runs a command.

    Args:
      argv: the words behind ``jaxbert``; those of the command line if None.
    """
    parser = argparse.ArgumentParser(prog="jaxbert", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        words = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        words.add_argument("--debug", action="store_true", help="show where an error was raised")
        module.add_arguments(words)
    args, rest = parser.parse_known_args(argv)
    if rest and not hasattr(COMMANDS[args.command], "OVERRIDES"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    with exit_on_user_error(debug=args.debug), resumable():
        COMMANDS[args.command].run(args)
