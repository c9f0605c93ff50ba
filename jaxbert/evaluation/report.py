"""The table that an evaluation ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxbert.data.tasks import SIMILARITY

TITLES = {
    "teacher": "teacher",
    "assistant": "assistant",
    "student": "distilled student",
    "without_distillation": "without distillation",
    "random_without_distillation": "random start, without distillation",
    "tfidf": "TF-IDF, logistic regression",
}
_OF_SIMILARITY = {"tfidf": "TF-IDF, cosine"}


def shown(value: float | None, form: str) -> str:
    """A number as ``format`` writes it, or a dash."""
    return "-" if value is None else format(value, form)


def scaled(value: float | None) -> str:
    """``22.4 B``, ``14.4 M``: three digits and a power of a thousand."""
    if value is None:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def print_table(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the ``models`` of an ``eval.json``, a row each.

    The table is as wide as it has to be, also where there is no terminal: no column is cut.
    """
    metric, titles = results["metric"], TITLES
    if results["kind"] == SIMILARITY:
        titles = TITLES | _OF_SIMILARITY
    table = Table(
        title=f"{escape(results['task'])}, {results['split']}, {results['examples']:,} examples",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model", no_wrap=True)
    for name in (metric, "parameters", "MB", "FLOPs", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, model in results["models"].items():
        table.add_row(
            escape(titles.get(name, name)),
            shown(model[metric], ".4f"),
            scaled(model["parameters"]),
            shown(model["size_mb"], ".1f"),
            scaled(model["flops"]),
            shown(model["milliseconds"], ".2f"),
        )
    console = console or Console()
    unbounded = console.options.update(max_width=10_000)
    console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)
    error = results["standard_error"]
    said = "" if error is None else f"Standard error at most {error:.4f}. "
    tokens = results["latency_tokens"]
    about = f"one text of {tokens} word pieces on one thread (TF-IDF: from the text)"
    console.print(
        f"{said}FLOPs at length {results['flops_length']}; "
        f"ms: {about if tokens else 'not measured'}.",
        highlight=False,
        soft_wrap=True,
    )
    for name, reason in results["left_out"].items():
        line = escape(f"{titles.get(name, name)}: left out, {reason}")
        console.print(line, highlight=False, soft_wrap=True)
