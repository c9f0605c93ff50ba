"""Measures models: latency, throughput, size and cost, in each library that runs them.

jaxbert bench runs/task run:runs/task#teacher
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from jaxbert.errors import UserError

HELP = "latency, throughput and size of models in jax, onnxruntime, int8 and torch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model references")
    parser.add_argument("--lengths", default="16,32,64,128,256,512", help="word pieces of a text")
    parser.add_argument("--batch", type=int, default=32, help="texts at a time, for throughput")
    parser.add_argument("--rounds", type=int, default=50, help="timed calls of each, at most")
    parser.add_argument(
        "--backends", default="", help="some of jax,onnxruntime,onnx-int8,torch; all if absent"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix.
    """
    words = args.lengths.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"{args.lengths!r} are no lengths", "flag --lengths", "give 16,128")
    lengths = tuple(map(int, words))
    if args.batch < 1 or args.rounds < 1:
        raise UserError("less than one", "flags --batch and --rounds", "give at least 1")
    from jaxbert.bench import bench

    found = bench(
        args.models,
        lengths=lengths,
        batch=args.batch,
        rounds=args.rounds,
        backends=tuple(filter(None, args.backends.split(","))),
    )
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found, [str(length) for length in lengths])


def _print(found: dict[str, Any], lengths: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, box=box.SIMPLE_HEAD)
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        unbounded = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=unbounded).maximum)
        console.print(table)

    def sizes(one: dict[str, Any]) -> list[str]:
        model = found["models"][one["model"]]
        counts = (model["parameters"], model["parameters_without_embeddings"])
        flops = model["flops"][lengths[-1]]
        return [
            *(one["model"], one["backend"], f"{one['bytes'] / 1e6:.1f}"),
            *(f"{count / 1e6:.2f} M" for count in counts),
            f"{flops / 1e9:.2f} B",
        ]

    def cells(one: dict[str, Any], *keys: str, form: str) -> list[str]:
        def cell(length: str) -> str:
            values = [one[key][length] for key in keys]
            return "-" if None in values else " / ".join(format(value, form) for value in values)

        return [one["model"], one["backend"], *map(cell, lengths)]

    head, measured = ["model", "library"], found["measured"]
    counts = ["parameters", "without embeddings", f"FLOPs at {lengths[-1]}"]
    show("size", [*head, "MB", *counts], [sizes(one) for one in measured])
    latency = [cells(one, "p50_ms", "p90_ms", form=".2f") for one in measured]
    show("one text on one thread, ms, p50 / p90, by word pieces", [*head, *lengths], latency)
    rate = [cells(one, "texts_per_second", form=",.0f") for one in measured]
    title = f"texts a second, {found['batch']} at a time on all threads, by word pieces"
    show(title, [*head, *lengths], rate)
    print(f"{found['machine']}; {', '.join(f'{k} {v}' for k, v in found['versions'].items())}")
    for name, why in found["left_out"].items():
        print(f"left out: {name}, {why}")
