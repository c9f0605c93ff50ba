"""The pictures of docs/tutorial.md, from the runs that its commands leave.

python docs/pictures/draw.py --general=runs/general --task=runs/task

Colours are Okabe and Ito's (2008), which colour-blind readers tell apart. The ground is white, so
that the same file reads on a light page and on a dark one. The same runs give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from jaxbert.data.encoding import encode_rows
from jaxbert.data.packing import PackedBatches
from jaxbert.data.rows import Rows, load_task
from jaxbert.data.tasks import describe_task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.models.bert import count_parameters, encode
from jaxbert.models.encoder import Collect
from jaxbert.objectives.alignment import layer_map
from jaxbert.report.charts import COLORS
from jaxbert.serving import load

OUT = Path(__file__).parent
BLUE, RED, GREEN, PURPLE, ORANGE = COLORS[:5]
INK = "#24292f"
NAMES = {
    "teacher": ("teacher", BLUE),
    "student": ("distilled student", RED),
    "without_distillation": ("without distillation", GREEN),
    "tfidf": ("TF-IDF", PURPLE),
}
STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "jaxbert",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}


def canvas(width: float, height: float) -> Figure:
    """An empty picture, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def save(figure: Figure, name: str) -> None:
    """Writes a picture beside this file."""
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    path = OUT / f"{name}.svg"
    figure.savefig(path, metadata=nothing)
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    print(path)


def draw_idea(teacher: Model, student: Model) -> None:
    """Two stacks of layers, and what the small one learns from the large one."""
    figure = canvas(7.2, 4.3)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(-0.35, 7.6)
    rule = layer_map("uniform", teacher.config.num_layers, student.config.num_layers)
    tops = {}
    for model, x, width, color, name in (
        (teacher, 0.2, 3.0, BLUE, "teacher"),
        (student, 7.2, 2.4, RED, "student"),
    ):
        config, count = model.config, count_parameters(model.params)
        for layer in range(config.num_layers + 2):
            last = layer == config.num_layers + 1
            label = "embeddings" if layer == 0 else "predictions" if last else f"layer {layer}"
            box = FancyBboxPatch(
                *((x, layer * 0.85), width, 0.6),
                boxstyle="round,pad=0.02,rounding_size=0.08",
                facecolor=color,
                edgecolor=color,
                alpha=0.5 if layer in (0, config.num_layers + 1) else 0.28,
            )
            axes.add_patch(box)
            place = (x + width / 2, layer * 0.85 + 0.3)
            axes.text(*place, label, ha="center", va="center")
        tops[name] = config.num_layers + 1
        said = f"{name}: {count / 1e6:.1f} million numbers, width {config.hidden_size}"
        axes.text(x + width / 2, tops[name] * 0.85 + 0.8, said, ha="center", fontsize=8.5)
    links = [(0, 0), *zip(rule, range(1, len(rule) + 1), strict=True), tuple(tops.values())]
    for theirs, mine in links:
        arrow = FancyArrowPatch(
            (3.3, theirs * 0.85 + 0.3),
            (7.1, mine * 0.85 + 0.3),
            arrowstyle="-|>",
            mutation_scale=12,
            color=INK,
            linewidth=1.1,
            linestyle="--" if (theirs, mine) == links[-1] else "-",
        )
        axes.add_patch(arrow)
    axes.text(5.2, -0.28, "solid: attention and hidden states", ha="center", fontsize=8.5)
    axes.text(5.2, 6.35, "dashed: predictions", ha="center", fontsize=8.5)
    save(figure, "idea")


def draw_soft_labels(
    texts: Sequence[str], labels: Sequence[int], said: dict[str, np.ndarray]
) -> None:
    """Sentences, their labels, and how sure each model is."""
    figure = canvas(7.2, 3.4)
    axes = figure.add_subplot()
    places = np.arange(len(texts))
    axes.scatter(labels, places, marker="|", s=220, color=INK, linewidths=2.2, label="the label")
    for (name, values), marker in zip(said.items(), "os^", strict=True):
        shown, color = NAMES[name]
        around = {"s": 110, "facecolors": "none", "edgecolors": color, "linewidths": 1.8}
        form = around if name == "teacher" else {"s": 34, "color": color, "alpha": 0.9}
        axes.scatter(values, places, marker=marker, label=shown, **form)
    axes.set_yticks(places, labels=[shorten(text) for text in texts], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("probability of “positive”")
    axes.grid(axis="y", alpha=0.25)
    axes.axvline(0.5, color=INK, linewidth=0.7, linestyle=":")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8.5)
    save(figure, "soft-labels")


def shorten(text: str, most: int = 46) -> str:
    """A text, cut at a word."""
    return text if len(text) <= most else text[:most].rpartition(" ")[0] + " …"


def draw_curves(metrics: Sequence[dict[str, Any]]) -> None:
    """The terms of general distillation, step by step."""
    figure = canvas(7.2, 2.9)
    for place, (name, color) in enumerate(zip(TERMS, (BLUE, RED, GREEN), strict=True), start=1):
        axes = figure.add_subplot(1, 3, place)
        steps, values = zip(*((m["step"], m[name]) for m in metrics if name in m), strict=True)
        axes.plot(steps, values, color=color, linewidth=1.8)
        axes.set_ylim(0, 1.12 * max(values))
        axes.set_title(TERMS[name], fontsize=9.5)
        axes.set_xlabel("step")
        below = (-2, -13) if values[1] > values[0] else (6, 2)
        axes.annotate(f"{values[0]:.3g}", (steps[0], values[0]), xytext=below, **OFFSET)
        axes.annotate(f"{values[-1]:.3g}", (steps[-1], values[-1]), xytext=(-18, 6), **OFFSET)
        axes.grid(alpha=0.2)
    figure.supylabel("distance to the teacher", fontsize=9)
    save(figure, "curves")


TERMS = {"attention": "attention scores", "hidden": "hidden states", "embedding": "embeddings"}
OFFSET: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}


def draw_attention(text: str, models: dict[str, Model]) -> None:
    """Which words the last layer of each model looks at."""
    figure = canvas(7.2, 3.3)
    found = {name: attention(model, text) for name, model in models.items()}
    most = max(float(map_.max()) for _, map_ in found.values())
    for place, (name, (pieces, map_)) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), place)
        axes.imshow(map_, cmap="Blues", vmin=0, vmax=most)
        gap = np.abs(map_ - found["teacher"][1]).sum(axis=1).mean() / 2
        said = "" if name == "teacher" else f"\n{gap:.0%} of it elsewhere"
        axes.set_title(
            f"{NAMES[name][0]}, layer {models[name].config.num_layers}{said}", fontsize=9
        )
        axes.set_xticks(range(len(pieces)), labels=pieces, rotation=90, fontsize=8)
        axes.set_yticks(range(len(pieces)), labels=pieces if place == 1 else [], fontsize=8)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
    save(figure, "attention")


def attention(model: Model, text: str) -> tuple[list[str], np.ndarray]:
    """A text's pieces, and the attention [T, T] of the last layer, mean over its heads."""
    tokenizer = load_tokenizer(model.folder)
    examples = encode_rows(tokenizer, Rows([text], None, None), max_length=32)
    length = int(examples.lengths[0])
    batches = PackedBatches(
        examples, batch_size=1, row_length=length, seed=0, packing=False, shuffle=False, epochs=1
    )
    last = model.config.num_layers - 1
    config = model.config.replace(dtype="float32")
    params = {group: model.params[group] for group in ("embeddings", "encoder")}
    out = encode(config, params, batches[0], collect=Collect(scores=(last,), last=False))
    weights = jax.nn.softmax(out.scores[last], axis=-1)  # [1, H, T, T]
    inverse = {number: piece for piece, number in vocabulary(model).items()}
    pieces = [inverse[int(token)] for token in np.asarray(batches[0].tokens[0])]
    return pieces, np.asarray(weights[0].mean(axis=0))


def vocabulary(model: Model) -> dict[str, int]:
    """Piece -> number."""
    lines = (model.folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return {piece: number for number, piece in enumerate(lines)}


def draw_result(models: dict[str, dict[str, Any]]) -> None:
    """The table of the run: how often right, how large, how fast."""
    figure = canvas(7.2, 2.2)
    columns = {
        "accuracy": ("accuracy", "{:.3f}"),
        "size_mb": ("size, MB", "{:.3g}"),
        "milliseconds": ("one text, ms", "{:.1f}"),
    }
    names = [name for name in NAMES if name in models]
    for place, (key, (title, form)) in enumerate(columns.items(), start=1):
        axes = figure.add_subplot(1, 3, place)
        values = [models[name][key] or 0.0 for name in names]
        axes.barh(range(len(names)), values, color=[NAMES[name][1] for name in names], height=0.62)
        for row, value in enumerate(values):
            axes.annotate(form.format(value), (value, row), xytext=(3, 0), va="center", **OFFSET)
        labels = [NAMES[name][0] for name in names] if place == 1 else []
        axes.set_yticks(range(len(names)), labels=labels)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9.5)
        axes.margins(x=0.24)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
    save(figure, "result")


def choose(said: np.ndarray, count: int = 8) -> list[int]:
    """The rows that come nearest to probabilities spread evenly from 0 to 1, each once."""
    near = (int(np.argmin(np.abs(said - goal))) for goal in np.linspace(0.02, 0.98, count))
    return list(dict.fromkeys(near))


def main() -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--general", type=Path, required=True, help="of general distillation")
    parser.add_argument("--task", type=Path, required=True, help="the run on the task")
    args = parser.parse_args()
    folders = {name: args.task / "models" / name for name in list(NAMES)[:3]}
    models = {name: read_model(folder) for name, folder in folders.items()}
    config = json.loads((args.task / "config.json").read_text(encoding="utf-8"))
    results = json.loads((args.task / "eval.json").read_text(encoding="utf-8"))
    lines = (args.general / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    task = describe_task(**config["task"])
    rows = load_task(task).dev
    short = [i for i, text in enumerate(rows.texts) if 20 <= len(text) <= 46]
    texts = [rows.texts[i] for i in short]
    positive = "positive"
    said = {
        name: np.array([found["scores"][positive] for found in load(folder).predict(texts)])
        for name, folder in folders.items()
    }
    chosen = choose(said["teacher"])
    with matplotlib.style.context(["default", STYLE]):
        draw_idea(models["teacher"], models["student"])
        draw_soft_labels(
            [texts[i] for i in chosen],
            [int(rows.labels[short[i]]) for i in chosen],
            {name: values[chosen] for name, values in said.items()},
        )
        draw_curves([json.loads(line) for line in lines])
        draw_attention("a film that is neither funny nor sad", models)
        draw_result(results["models"])


if __name__ == "__main__":
    main()
