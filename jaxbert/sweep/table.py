"""The table of a sweep: mean, standard deviation and each seed, and what is missing."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from jaxbert.sweep.plan import Cell
from jaxbert.sweep.results import Results, training_seconds


@dataclasses.dataclass(frozen=True)
class Row:
    """A model of a cell, over the seeds that are finished.

    Attributes:
      name: the cell's, with the model's where it shows several.
      metric: which one; empty for a run without a task.
      test: seed -> value; None where it is undefined.
      dev: likewise, on what was chosen on.
      seconds: seed -> wall seconds of training.
    """

    name: str
    metric: str
    test: Mapping[int, float | None]
    dev: Mapping[int, float | None]
    seconds: Mapping[int, float]


def make_rows(cells: Sequence[Cell], results: Results) -> list[Row]:
    """A row for each model that each cell shows, in the order of the cells."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.name, []).append(cell)
    rows = []
    for name, group in groups.items():
        records = {c.seed: record for c in group if (record := results.find(c)) is not None}
        seconds = {seed: training_seconds(record) for seed, record in records.items()}
        told = [group[0].metric, *(record["metric"] for record in records.values())]
        metric = next(filter(None, told), "")
        for model in group[0].models:
            title = f"{name}: {model}" if len(group[0].models) > 1 else name
            test, dev = (
                {
                    seed: record["models"][model][column]
                    for seed, record in records.items()
                    if column in record["models"].get(model, {})
                }
                for column in (metric, f"dev_{metric}")
            )
            rows.append(Row(title, metric, test, dev, seconds))
        if not group[0].models:
            rows.append(Row(name, "", {}, {}, seconds))
    return rows


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over tasks: of ``TASK/NAME``, for each NAME that all tasks have.

    A seed counts where every task has a value.
    """
    tasks: dict[str, dict[str, Row]] = {}
    for row in rows:
        task, slash, name = row.name.partition("/")
        if slash and row.metric:
            tasks.setdefault(task, {})[name] = row
    if len(tasks) < 2:
        return []
    found = []
    for name in next(iter(tasks.values())):
        group = [task[name] for task in tasks.values() if name in task]
        if len(group) == len(tasks):
            test, dev = (_mean([getattr(row, side) for row in group]) for side in ("test", "dev"))
            seconds = {s: sum(row.seconds[s] for row in group) for s in test}
            found.append(Row(f"{name}, mean of {len(tasks)} tasks", "", test, dev, seconds))
    return found


def _mean(sides: Sequence[Mapping[int, float | None]]) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for seed in sides[0]:
        values = [side.get(seed) for side in sides]
        known = [value for value in values if value is not None]
        if len(known) == len(sides):
            found[seed] = statistics.fmean(known)
    return found


def render(rows: Sequence[Row], seeds: Sequence[int], *, markdown: bool = False) -> str:
    """The rows as aligned text, or as Markdown.

    Test values: their mean, their standard deviation (of a sample) and each; then the mean on dev,
    and the mean of the minutes of training. A value that is not there yet is a dash, and so is what
    would have to be computed from one that is undefined.
    """
    heads = ["", "metric", "mean", "sd", *(f"seed {seed}" for seed in seeds), "dev", "minutes"]
    lines = [heads]
    for row in rows:
        each = [_value(row.test[seed]) if seed in row.test else "-" for seed in seeds]
        minutes = _average([seconds / 60 for seconds in row.seconds.values()], ".1f")
        figures = [_average(list(row.test.values())), _spread(list(row.test.values())), *each]
        lines.append(
            [row.name, row.metric or "-", *figures, _average(list(row.dev.values())), minutes]
        )
    if markdown:
        lines.insert(1, ["---"] * 2 + ["---:"] * (len(heads) - 2))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pads = [str.ljust] * 2 + [str.rjust] * (len(heads) - 2)
    return "\n".join(
        "  ".join(pad(word, width) for pad, word, width in zip(pads, line, widths, strict=True))
        for line in lines
    )


def missing(cells: Sequence[Cell], results: Results) -> list[str]:
    """A line for each name of cells without a result, with their seeds."""
    lacking: dict[str, list[str]] = {}
    for cell in cells:
        if results.find(cell) is None:
            lacking.setdefault(cell.name, []).append(str(cell.seed))
    return [f"missing: {name}, seed {', '.join(seeds)}" for name, seeds in lacking.items()]


def mixed(cells: Sequence[Cell], results: Results) -> list[str]:
    """A line if the results were made with operands of several dtypes, which machines choose.

    Those that do not say it are of a time when all were bfloat16.
    """
    found = (record for cell in cells if (record := results.find(cell)) is not None)
    counts = collections.Counter(record.get("dtype", "bfloat16") for record in found)
    told = ", ".join(f"{dtype} in {count}" for dtype, count in sorted(counts.items()))
    return [f"operands of several dtypes: {told} results"] if len(counts) > 1 else []


def _value(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _average(values: Sequence[float | None], form: str = ".4f") -> str:
    known = [value for value in values if value is not None]
    return format(statistics.fmean(known), form) if known and len(known) == len(values) else "-"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.stdev(known):.4f}" if len(values) == len(known) > 1 else "-"
