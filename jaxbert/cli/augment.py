"""Writes a task's training rows and copies of them with other words (Jiao et al. 2020)."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from typing import TYPE_CHECKING

from jaxbert.cli.flags import add_section, given_section
from jaxbert.config import AugmentationConfig, TaskConfig
from jaxbert.data.tasks import Task, describe_task
from jaxbert.errors import UserError
from jaxbert.files import as_path, check_seal, local_path, read_object

if TYPE_CHECKING:
    from jaxbert.interop.huggingface import Model

HELP = "copies of labelled rows in which words are replaced"
_TASK = "task."
_FIX = "give the --workdir of a run that has a task"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags: the keys of the config sections ``augmentation`` and ``task``."""
    parser.add_argument(
        "--out", type=local_path, required=True, help="the file to write, JSON Lines"
    )
    parser.add_argument("--workdir", type=as_path, help="a run whose task it is, and whose teacher")
    parser.add_argument("--teacher", default="", help="for relabel and filter: a model reference")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--data_dir", default="", help="where prepared TFDS data lie")
    parser.add_argument("--max_length", type=int, default=128, help="pieces that the teacher reads")
    add_section(parser, AugmentationConfig, "augmentation")
    add_section(parser, TaskConfig, "task", _TASK)


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix.
      SystemExit: with 75, when it was told to stop.
    """
    for flag, least in (("seed", 0), ("max_length", 8)):
        if (value := getattr(args, flag)) < least:
            raise UserError(f"{value}", f"flag --{flag}", f"give at least {least}")
    config = given_section(args, AugmentationConfig, "augmentation")
    if not config:
        raise UserError("there is no masked language model", "flag --model", "give a reference")
    task, data_dir, max_length = _task(args)
    _augment(args, config, task, data_dir, max_length)


def _augment(
    args: argparse.Namespace,
    config: AugmentationConfig,
    task: Task,
    data_dir: str,
    max_length: int,
) -> None:
    """Writes the files, and says how to train on them."""
    # Only now what imports jax: a wrong flag is said at once.
    from jaxbert.augment import augment, check_rows, write_rows
    from jaxbert.data.copies import written
    from jaxbert.data.rows import load_task

    data = load_task(task, data_dir)
    kept = written(data.task)
    # A part of the source, chosen by hash, would be chosen anew among the copies.
    held_out = {
        split: (rows, args.out.with_name(f"{args.out.stem}.{split}.jsonl"))
        for split, rows in (("dev", data.dev), ("test", data.test))
    }
    for rows, path in held_out.values():
        check_rows(kept, rows, path)
    teacher = _teacher(args) if config.relabel or config.filter else None
    state = augment(
        config,
        data.task,
        data.train,
        args.out,
        seed=args.seed,
        teacher=teacher,
        max_length=max_length,
    )
    # Of separator and on_bad_row the file has no need: it holds lists, and rows that are good.
    keys = ["name", "kind", "columns", "label", "labels", "scheme", "bounds", "stride"]
    keys += ["metric", "metrics"]
    flags = {"source": f"jsonl:{args.out}"}
    for split, (rows, path) in held_out.items():
        write_rows(kept, rows, path)
        flags[split] = f"jsonl:{path}"
    for key in keys:
        value = getattr(kept, key)
        flags[key] = ",".join(map(str, value)) if isinstance(value, tuple) else value
    counts = state["counts"]
    print(
        f"augment: {counts['rows']:,} rows and {counts['copies']:,} copies, "
        f"{counts['same']:,} left out as repeated, {counts['filtered']:,} by the teacher "
        f"-> {args.out}"
    )
    words = shlex.join(f"--config.task.{key}={value}" for key, value in flags.items() if value)
    print("train on it with", words)


def _teacher(args: argparse.Namespace) -> Model | None:
    """The teacher that labels: the flag's, or else the run's; None without either."""
    from jaxbert.evaluation.finished import given_teacher
    from jaxbert.interop import hub
    from jaxbert.interop.huggingface import read_model

    if args.teacher or not args.workdir:
        return read_model(hub.resolve(args.teacher)) if args.teacher else None
    config = read_object(args.workdir / "config.json", _FIX)
    if given := given_teacher(args.workdir, config):
        model = read_model(hub.resolve(given))
        if "classifier" in model.params:  # otherwise a phase fine-tunes it
            return model
    return read_model(hub.resolve(f"run:{args.workdir}#teacher"))


def _task(args: argparse.Namespace) -> tuple[Task, str, int]:
    """The task, by flags or by a run; the TFDS folder; the longest example."""
    task = given_section(args, TaskConfig, "task", _TASK)
    if args.workdir is None:
        if not task:
            fix = "give --workdir of a run, or --task.name and so on"
            raise UserError("there is no task", "flag --workdir", fix)
        return describe_task(**dataclasses.asdict(task)), args.data_dir, args.max_length
    if task:
        fix = "give the one or the others"
        raise UserError("a run has a task of its own", "flags --workdir and --task", fix)
    path, fix = args.workdir / "config.json", _FIX
    check_seal(args.workdir, fix)
    config = read_object(path, fix)
    said, data_dir, max_length = (config.get(key) for key in ("task", "data_dir", "max_length"))
    if not isinstance(said, dict) or not (said.get("name") or said.get("source")):
        raise UserError("this run has no labelled task", f"{path}, key task", fix)
    if not isinstance(data_dir, str) or not isinstance(max_length, int):
        raise UserError("not the config of a run", f"{path}, keys data_dir and max_length", fix)
    try:
        return describe_task(**said), args.data_dir or data_dir, max_length
    except (AttributeError, TypeError, ValueError) as error:  # a value of another kind
        raise UserError(f"not understood: {error}", f"{path}, key task", fix) from error
