"""Trains the phases of a recipe: ``python train.py --config=configs/NAME.py --workdir=DIR``.

Any key of the config is overridden by ``--config.KEY=VALUE``. The same command again continues.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

from jaxbert import launch
from jaxbert.errors import exit_on_user_error
from jaxbert.memory import use_huge_pages
from jaxbert.recipe import load_recipe, read_overrides, resolve
from jaxbert.stopping import resumable


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The flags, and the overrides as dotted key -> text.

    Raises:
      UserErrors: naming every flag that is not one.
    """
    parser = argparse.ArgumentParser(
        prog="jaxbert",
        usage="python train.py --config=RECIPE --workdir=DIR [--config.KEY=VALUE ...] "
        "[--dry-run] [--debug]",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a recipe: PATH.py or PATH.py:ARGUMENT")
    parser.add_argument("--workdir", required=True, type=Path, help="where everything is written")
    parser.add_argument("--dry-run", action="store_true", help="say what it would be, do nothing")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    launch.add_arguments(parser)
    flags, rest = parser.parse_known_args(argv)
    return flags, read_overrides(rest, "--config, --workdir, --dry-run, --debug")


def main(argv: list[str]) -> None:
    """Runs the command."""
    with exit_on_user_error(debug="--debug" in argv), resumable():
        flags, overrides = parse(argv)
        config = resolve(load_recipe(flags.config), overrides)
        if flags.dry_run:
            from jaxbert.doctor.dry_run import dry_run

            dry_run(config, flags.workdir)
            return
        group = launch.read_group(flags)
        # They import jax: only once the config is known to be good.
        from jaxbert.processes import joined
        from jaxbert.run import run

        logging.getLogger("absl").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module="orbax")
        with joined(group):
            run(config, flags.workdir)


if __name__ == "__main__":
    use_huge_pages()
    launch.supervise(sys.argv[1:])
    main(sys.argv[1:])
