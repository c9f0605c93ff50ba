"""How the cost of a stage-1 step grows: tokens a second and peak memory against what one changes.

    python benchmarks/growth.py                  # on whatever device jax has
    python benchmarks/growth.py --quick          # the ends of each line alone
    python benchmarks/growth.py --plot           # draws again what was measured

From one point (a teacher of 6 layers of 384, a student of 4 of 312, rows of 128, 8 of them) one
thing is changed at a time: the length of a row, the rows of a batch, the student's layers, its
width. Each point is a process of its own with two steps to warm up and three that count, of which
the median is kept. Memory is the peak of the device, or that of the process in these three steps
where the device has no count. On a CPU what is drawn is tokens for each second of processor time,
of which a machine that is shared takes nothing away; seconds of the clock stand beside it. Writes
docs/growth/KIND.jsonl and KIND.svg, KIND being the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jaxbert.memory import use_huge_pages

WARM_UP, STEPS = 2, 3
FOLDER = Path(__file__).parents[1] / "docs" / "growth"


@dataclasses.dataclass(frozen=True)
class Point:
    """A stage-1 step.

    Attributes:
      length: T, all of it real tokens.
      batch: rows.
      depth: layers of the student.
      width: of the student.
    """

    length: int = 128
    batch: int = 8
    depth: int = 4
    width: int = 312


LINES = {
    "length": (64, 128, 256, 512),
    "batch": (2, 8, 32),
    "depth": (2, 4, 6),
    "width": (156, 312, 624),
}
AXES = {
    "length": "pieces a row",
    "batch": "rows a batch",
    "depth": "layers of the student",
    "width": "width of the student",
}


def points(quick: bool) -> list[Point]:
    """Every point once, the middle first."""
    ends = {name: (some[0], some[-1]) if quick else some for name, some in LINES.items()}
    changed = [dataclasses.replace(Point(), **{n: v}) for n, some in ends.items() for v in some]
    return list(dict.fromkeys([Point(), *changed]))


def measure(point: Point) -> dict[str, Any]:
    """Makes the steps of a point, in this process."""
    import jax
    import numpy as np
    import works

    from jaxbert import memory, presets
    from jaxbert.config import TermConfig
    from jaxbert.data.examples import Examples
    from jaxbert.data.packing import PackedBatches
    from jaxbert.models.bert import BertConfig, init_params
    from jaxbert.models.linear import hold_operands
    from jaxbert.objectives.alignment import match_terms
    from jaxbert.objectives.distillation import Distillation
    from jaxbert.training import sharding
    from jaxbert.training.cost import peak_rate, step_flops
    from jaxbert.training.loop import place
    from jaxbert.training.optimizer import make_optimizer
    from jaxbert.training.step import init_state, make_step
    from jaxbert.workdir import processor

    same = {"dtype": "bfloat16", "num_heads": 12, "max_position_embeddings": max(LINES["length"])}
    teacher = BertConfig(hidden_size=384, num_layers=6, intermediate_size=1536, **same)
    student = BertConfig(
        hidden_size=point.width,
        num_layers=point.depth,
        intermediate_size=4 * point.width,
        projection_size=teacher.hidden_size,
        **same,
    )
    terms = {name: TermConfig(**term) for name, term in presets.PRESETS["tinybert"].items()}
    objective = Distillation(student, (teacher,), match_terms(terms, student, (teacher,)))
    mesh = sharding.make_mesh(data=1)
    optimizer = make_optimizer(learning_rate=1e-4, steps=1_000)
    state = init_state(init_params(student, jax.random.key(0), objective.groups), optimizer, mesh)
    theirs = init_params(teacher, jax.random.key(1), objective.groups_read(0))
    frozen = jax.device_put({"teachers": (hold_operands(theirs, teacher.dtype),)})
    rng = np.random.default_rng(0)
    pieces = rng.integers(1_000, 30_000, (point.batch, point.length), dtype=np.int32)
    batches = PackedBatches(
        Examples.join(list(pieces)), batch_size=point.batch, row_length=point.length, seed=0
    )
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
    seconds, busy, flops = [], [], 0
    for number in range(WARM_UP + STEPS):
        batch = place(batches[number], sharding.rows(mesh))
        flops = flops or step_flops(step, state, frozen, batch)
        jax.block_until_ready(batch)
        began, used = time.perf_counter(), time.process_time()
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - used)
        if number + 1 == WARM_UP:  # as train.py does once a step has been compiled
            memory.give_back()
            works.forget_peak()
    median, device = statistics.median(seconds[WARM_UP:]), jax.devices()[0]
    stats = device.memory_stats()
    peak = peak_rate(device.device_kind)
    return dataclasses.asdict(point) | {
        "seconds": median,
        "slowest": max(seconds[WARM_UP:]),
        "cpu_seconds": statistics.median(busy[WARM_UP:]),
        "tokens_per_second": point.batch * point.length / median,
        "flops": flops,
        "mfu": peak and flops / median / peak,
        "memory": stats["peak_bytes_in_use"] if stats else works.peak_memory(),
        "compile_seconds": seconds[0],
        "device": processor().replace("(R)", "")
        if device.platform == "cpu"
        else device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def plot(path: Path) -> None:
    """Draws the points of a file beside it."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same figure is the same file
    from matplotlib import pyplot

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    clock, unit = ("seconds", "second")
    if rows[0]["platform"] == "cpu":
        clock, unit = ("cpu_seconds", "core-second")
    figure, axes = pyplot.subplots(2, len(LINES), figsize=(11, 5), sharey="row", layout="tight")
    for column, name in enumerate(LINES):
        middle = dataclasses.asdict(Point())
        mine = [r for r in rows if all(r[k] == v for k, v in middle.items() if k != name)]
        mine.sort(key=lambda row: row[name])
        values = [row[name] for row in mine]
        # Okabe and Ito's blue and vermilion, and a marker of its own: told apart without colour.
        speed = [row["length"] * row["batch"] / row[clock] / 1e3 for row in mine]
        memory = [row["memory"] / 1e9 for row in mine]
        for axis, drawn, colour, marker in (
            (axes[0, column], speed, "#0072B2", "o"),
            (axes[1, column], memory, "#D55E00", "s"),
        ):
            axis.plot(values, drawn, color=colour, marker=marker)
            axis.set_xscale("log", base=2)
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[1, column].set_xlabel(AXES[name])
    for axis, text in zip(axes[:, 0], (f"1,000 tokens a {unit}", "GB at the peak"), strict=True):
        axis.set_ylabel(text)
        axis.set_ylim(bottom=0)  # of the whole row
    figure.suptitle(f"A stage-1 step on {rows[0]['device']}, {rows[0]['date']}", fontsize=11)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [
        "| length | batch | depth | width | ms | tokens/s | TFLOP/s | CPU ms | GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row[field.name]) for field in dataclasses.fields(Point)]
        cells += [f"{1e3 * row['seconds']:,.1f}", f"{row['tokens_per_second']:,.0f}"]
        rate = row["flops"] / row["seconds"] / 1e12
        cells += [f"{rate:.3g}", f"{1e3 * row['cpu_seconds']:,.0f}", f"{row['memory'] / 1e9:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measures, writes, draws and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the ends of each line alone")
    parser.add_argument("--plot", action="store_true", help="draw again, measure nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        use_huge_pages()  # as the commands do
        print(json.dumps(measure(Point(**json.loads(args.point)))))
        return
    if args.plot:
        for path in args.folder.glob("*.jsonl"):
            plot(path)
        return
    rows: list[dict[str, Any]] = []
    for point in points(args.quick):
        given = json.dumps(dataclasses.asdict(point))
        command = [sys.executable, __file__, "--point", given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(table(rows)[-1], flush=True)
        # After each one: what is measured is kept if the next one needs too much memory.
        kind = "cpu" if rows[0]["platform"] == "cpu" else rows[0]["device"]
        path = args.folder / f"{re.sub(r'[^a-z0-9]+', '-', kind.lower())}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plot(path)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
