"""``jaxbert COMMAND``: training, and what is done before and after it.

A command is a module of this package with ``HELP``, one line; ``add_arguments(parser)``; and
``run(args)``, which imports what is heavy only then. One with ``OVERRIDES`` takes further words,
``--config.KEY=VALUE``, as ``args.overrides``. One with ``USAGE`` is a script of the checkout, too;
one with ``OWN_SIGNALS`` is not stopped as those that go on when they are run again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import cast

from jaxbert import launch
from jaxbert.cli import (
    augment,
    bench,
    doctor,
    export,
    init,
    predict,
    prepare,
    prune,
    report,
    rerun,
    serve,
    sweep,
    train,
    verify,
)
from jaxbert.cli import eval as evaluate
from jaxbert.errors import exit_on_user_error
from jaxbert.memory import use_huge_pages
from jaxbert.objects import is_remote, reach, said
from jaxbert.stopping import INTERRUPTED, end, resumable

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "eval": evaluate,
    "init": init,
    "doctor": doctor,
    "prepare": prepare,
    "augment": augment,
    "predict": predict,
    "export": export,
    "bench": bench,
    "serve": serve,
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
    if argv is None:
        use_huge_pages()
        if sys.argv[1:2] == ["train"]:
            launch.supervise(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="jaxbert", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        words = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, allow_abbrev=False
        )
        _add_arguments(words, module)
    if not (sys.argv[1:] if argv is None else argv):  # rather than that a COMMAND is wanted
        parser.print_help()
        sys.exit(2)
    args, rest = _parse(parser, argv)
    with _leaving(argv is None):
        _run(COMMANDS[args.command], parser, args, rest)


def run_script(name: str, argv: list[str] | None = None) -> None:
    """Runs a command as the script of its name, ``python NAME.py``.

    Args:
      name: the command's.
      argv: the words behind the script; those of the command line if None.
    """
    if argv is None:
        use_huge_pages()
        if name == "train":
            launch.supervise(sys.argv[1:])
    module = COMMANDS[name]
    usage = f"python {name}.py {module.USAGE}"
    parser = argparse.ArgumentParser(
        prog="jaxbert", usage=usage, description=module.__doc__, allow_abbrev=False
    )
    _add_arguments(parser, module)
    args, rest = _parse(parser, argv)
    with _leaving(argv is None):
        _run(module, parser, args, rest)


def _parse(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """What the words say; a path that cannot be had is said as any other mistake."""
    with exit_on_user_error():
        args, rest = parser.parse_known_args(argv)
        for value in vars(args).values():
            if isinstance(value, os.PathLike) and is_remote(value):
                reach(cast(Path, value))
        return args, rest


@contextlib.contextmanager
def _leaving(process: bool) -> Iterator[None]:
    """Ends the process, if it is ours, at once where a command was stopped and has saved.

    Python would first wait for threads and take apart a runtime that is still at work: that has no
    limit in time, and has crashed.
    """
    try:
        yield
    except KeyboardInterrupt:  # on the threshold of what heeds it
        if not process:
            raise
        end()
    except SystemExit as leaving:
        if not process or leaving.code != INTERRUPTED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _add_arguments(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    module.add_arguments(parser)


def _run(
    module: ModuleType, parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]
) -> None:
    if rest and not hasattr(module, "OVERRIDES"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    signals = contextlib.nullcontext() if hasattr(module, "OWN_SIGNALS") else resumable()
    with exit_on_user_error(debug=args.debug), said(), signals:
        module.run(args)
