"""``report.html``: one file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxbert.errors import UserError
from jaxbert.evaluation.report import TITLES, scaled, shown
from jaxbert.files import whole
from jaxbert.report.charts import Figure, Series, against, bars, lines, matrix, plain
from jaxbert.report.layers import compare_layers
from jaxbert.report.records import Records, read_records

FILE = "report.html"
_MOST_CLASSES = 16  # of a confusion matrix that is drawn
_MODELS = ("teacher", "student")  # that are held against each other in figures
_NAMES = TITLES | {"initial_student": "student before training"}
T = TypeVar("T")

SHARES = ("accuracy", "exact_match")  # the metrics that standard_error is of


def write_report(workdir: Path, *, measured: bool = True) -> Path:
    """Writes what a run's folder tells to its ``report.html``.

    What is missing or damaged is named on the page; so are models and rows that are gone.

    Args:
      workdir: the folder that ``train.py`` wrote.
      measured: whether layers of the models are measured; otherwise records alone are read.

    Returns:
      The file.

    Raises:
      UserError: not a run's folder, or it cannot be written there.
    """
    records = read_records(workdir)
    layers: dict[str, Any] = {}
    if records.config and not measured:
        layers = {"absent": "eval.py and jaxbert report do that"}
    elif records.config:
        try:
            layers = compare_layers(workdir, records.config)
        except UserError as error:
            layers = {"absent": error.line}
        except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            layers = {"absent": f"the run's files are not as they were written ({error!r})"}
    path = workdir / FILE
    page = render(records, layers)
    try:
        with whole(path) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", str(path), "make room") from error
    return path


def render(records: Records, layers: Mapping[str, Any]) -> str:
    """The page, the same for the same records.

    Args:
      records: what the run's folder says.
      layers: what `compare_layers` found, or ``absent``, why there is nothing.
    """
    import jinja2
    from markupsafe import Markup

    parts = _Parts()
    evaluation = records.evaluation
    context = {
        "name": records.name,
        "task": evaluation.get("task"),
        "summary": parts.of("eval.json", _headline, evaluation) or "",
        "table": parts.of("eval.json", _table, evaluation),
        "phases": [
            {"name": name, "facts": parts.of("summary.json", _facts, records, name) or []}
            | {"figures": parts.of("metrics.jsonl", _curves, records, name) or []}
            for name in records.phases
        ],
        "layers": parts.of("the layers", _layers, layers) or [],
        "layers_said": parts.of("the layers", _layers_said, layers) or "",
        "comparison": parts.of("eval.json", _comparison, evaluation) or [],
        "multi": parts.of("eval.json", _multi_label, evaluation) or [],
        "rows": parts.of("eval.json", _rows, evaluation) or [],
        "sizes": parts.of("eval.json", _sizes, evaluation) or [],
        "measured": parts.of("eval.json", _measured, evaluation) or "",
        "config": list(_flat(records.config)),
        "versions": parts.of("summary.json", _versions, records) or [],
        "warnings": records.warnings + parts.problems,
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxbert.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda figure: Markup(figure.svg)
    environment.filters["plain"] = plain
    text = environment.get_template("page.html").render(context)
    return text.encode(errors="replace").decode()  # half of a surrogate pair is no text


class _Parts:
    """Makes parts of the page; what a damaged record has not is said instead."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def of(self, source: str, make: Callable[..., T], *given: Any) -> T | None:
        """What `make` gives, or None."""
        try:
            return make(*given)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            said = f"{source} is damaged: {type(error).__name__} {error}."
            if said not in self.problems:
                self.problems.append(said)
            return None


def _title(name: str, kind: str = "") -> str:
    return "TF-IDF, cosine" if (name, kind) == ("tfidf", "similarity") else _NAMES.get(name, name)


# --- the table ------------------------------------------------------------------------------------


def _headline(evaluation: Mapping[str, Any]) -> str:
    """What distillation came to, in a sentence."""
    if not evaluation:
        return ""
    models, metric = evaluation["models"], evaluation["metric"]
    if not {"teacher", "student"} <= models.keys():
        return ""
    teacher, student = models["teacher"], models["student"]
    smaller = teacher["parameters"] / student["parameters"]
    kept = student["retained"]
    said = f"{metric} {shown(student[metric], '.4f')} against {shown(teacher[metric], '.4f')}"
    headline = f"The student keeps {kept:.1%} of its teacher: {said}. " if kept else f"{said}. "
    headline += f"It has 1/{smaller:.1f} of the parameters"
    if student["milliseconds"] is None:
        return f"{headline}."
    faster = teacher["milliseconds"] / student["milliseconds"]
    return f"{headline} and is {faster:.1f} times as fast."


def _table(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    if not evaluation:
        return None
    metric, kind = evaluation["metric"], evaluation["kind"]
    columns = [
        *("model", metric, f"{metric} (dev)", "retained", "agreement", "calibration error"),
        *("parameters", "MB", "FLOPs", "ms"),
    ]
    rows = []
    for name, model in evaluation["models"].items():
        error = model["standard_error"]
        about = f" ± {error:.4f}" if error is not None and metric in SHARES else ""
        rows.append(
            (
                _title(name, kind),
                shown(model[metric], ".4f") + about,
                shown(model[f"dev_{metric}"], ".4f"),
                shown(model["retained"], ".1%"),
                shown(
                    model["agreement"], ".1%" if kind not in ("regression", "similarity") else ".3f"
                ),
                shown(model["calibration_error"], ".4f"),
                scaled(model["parameters"]),
                shown(model["size_mb"], ".1f"),
                scaled(model["flops"]),
                shown(model["milliseconds"], ".2f"),
            )
        )
    return {"columns": columns, "rows": rows}


def _measured(evaluation: Mapping[str, Any]) -> str:
    if not evaluation:
        return ""
    tokens, device = evaluation["latency_tokens"], evaluation["device"]
    times = f"the median of one text of {tokens} word pieces on one thread, on {device}"
    return (
        f"{evaluation['examples']:,} rows of the test part (splits: {evaluation['splits']}), and "
        f"{evaluation['dev_examples']:,} of the development part. ± is one standard error. FLOPs "
        f"of an example of {evaluation['flops_length']} word pieces; ms: "
        f"{times if tokens else 'not measured'}."
    )


# --- training -------------------------------------------------------------------------------------


def _curves(records: Records, phase: str) -> list[Figure]:
    """Losses, what was right in training, and the development metric of a phase."""
    keys = records.keys(phase)
    right = [key for key in keys if key.endswith("accuracy")]
    losses = [Series(key, *records.curve(phase, key)) for key in keys if key not in right]
    losses = [one for one in losses if one.x]
    if len(losses) == 2 and np.allclose(losses[0].y, losses[1].y, rtol=0.02):
        losses = losses[1:]  # the only term, weighted by 1: one is a mean of steps, one of tokens
    known = records.summary.get("phases", {}).get(phase, {})
    figures = []
    if losses:
        note = "Terms before they are weighted; means over the steps between two points."
        title = f"{phase}: loss and its terms"
        figures.append(lines(title, "step (updates)", "mean loss", losses, note=note))
    shares = [Series(key, *records.curve(phase, key)) for key in right]
    shares = [one for one in shares if one.x]
    if shares:
        title = f"{phase}: accuracy on what is trained on"
        figures.append(lines(title, "step (updates)", "share of right answers", shares))
    steps, values = records.curve(phase, "dev")
    if steps:
        chosen = known.get("selected_step")
        figures.append(
            lines(
                f"{phase}: development {_dev_metric(records, phase)}",
                "step (updates)",
                _dev_metric(records, phase),
                [Series("development part", steps, values)],
                mark=(chosen, "step that is kept") if chosen else None,
                points=len(steps) <= 8,
            )
        )
    return figures


def _dev_metric(records: Records, phase: str) -> str:
    section = records.config.get(phase, {})
    if section.get("objective") == "pretrain":
        return "accuracy at masked pieces"
    metric = records.evaluation.get("metric") or "metric"
    features = {term.get("feature") for term in section.get("terms", {}).values()}
    probed = section.get("objective") == "distill" and "logits" not in features
    similar = records.evaluation.get("kind") == "similarity"
    return f"{metric} of a probe" if probed and not similar else metric


def _facts(records: Records, phase: str) -> list[tuple[str, str]]:
    """What a phase took."""
    known = records.summary.get("phases", {}).get(phase)
    if known is None:
        return []
    facts = [
        ("trains", known["model"]),
        ("steps", f"{known['steps']:,}, of which {known['selected_step']:,} is kept"),
        ("time in the loop", f"{known['seconds'] / 60:.1f} min"),
        ("real tokens", f"{known['real_tokens']:,} ({known['fill']:.1%} of positions)"),
        ("epochs", f"{known['epochs']:.2f}"),
        ("gradient norm at the end", f"{known['final'].get('gradient_norm', float('nan')):.3g}"),
    ]
    if known.get("best_dev") is not None:
        facts.append(("best on the development part", f"{known['best_dev']:.4f}"))
    return facts


# --- layers ---------------------------------------------------------------------------------------


def _layers_said(found: Mapping[str, Any]) -> str:
    if "models" not in found:
        return f"Not measured: {found['absent']}." if found.get("absent") else ""
    first = next(iter(found["models"].values()))
    return (
        f"Measured on {first['tokens']:,} tokens of {found['text']}. Each student layer stands "
        f"against the teacher layer of the rule {found['rule']}: "
        + ", ".join(f"{s} against {t}" for s, t in first["pairs"][1:])
        + "; 0 are the embeddings."
    )


def _layers(found: Mapping[str, Any]) -> list[Figure]:
    models = found.get("models", {})

    def series(key: str, first: int) -> list[Series]:
        some = []
        for name, model in models.items():
            layers = [pair[0] for pair in model["pairs"]][first:]
            kept = [(a, b) for a, b in zip(layers, model[key], strict=True) if b is not None]
            some.append(Series(_title(name), [a for a, _ in kept], [b for _, b in kept]))
        return [one for one in some if one.x]

    panels = (
        ("attention", 1, "Attention scores", "mean squared difference", "Lower is nearer."),
        ("hidden", 0, "Hidden states", "1 − R² of a linear map", "Lower is nearer, 0 the least."),
        ("cka", 0, "Likeness of hidden states", "linear CKA", "Higher is nearer, 1 the most."),
    )
    figures = [
        lines(title, "student layer", label, some, note=note, points=True, least=0.0)
        for key, first, title, label, note in panels
        if (some := series(key, first))
    ]
    if "student" in models:
        model = models["student"]
        table = model["matrix"]
        figures.append(
            matrix(
                "Student layers against teacher layers",
                "teacher layer",
                "student layer",
                [str(i) for i in range(len(table[0]))],
                [str(i) for i in range(len(table))],
                table,
                shades=table,
                form=".2f",
                framed=[tuple(pair) for pair in model["pairs"]],
                note="Linear CKA of hidden states; framed: the pairs of the other figures.",
            )
        )
    return figures


# --- teacher against student ----------------------------------------------------------------------


def _comparison(evaluation: Mapping[str, Any]) -> list[Figure]:
    found = evaluation.get("comparison", {}).get("models", {})
    shown_models = [name for name in _MODELS if name in found] or list(found)[:1]
    figures = []
    curves = [
        Series(
            f"{_title(name)}: {model['error']:.3f}",
            [one["confidence"] for one in model["bins"]],
            [one["accuracy"] for one in model["bins"]],
        )
        for name in shown_models
        if (model := found[name]["calibration"])
    ]
    if curves:
        note = "Below the line: surer than right. In figures: the expected calibration error."
        labels = ("mean confidence in a bin (probability)", "share of right answers")
        ends = (0.0, 1.0)
        figure = against("Calibration", *labels, curves, joined=True, limits=ends, note=note)
        figures.append(figure)
    if outcomes := found.get("student", {}).get("outcomes"):
        names = {"both": "both right", "teacher": "teacher alone", "model": "student alone"}
        names["neither"] = "neither"
        title, label = "Who is right", f"decisions of {sum(outcomes.values()):,}"
        values = [outcomes[key] for key in names]
        figures.append(bars(title, label, list(names.values()), values, form=",.0f"))
    for name in shown_models:
        table, kind = found[name]["confusion"], evaluation["kind"]
        if table and kind != "multi_label" and len(table["classes"]) <= _MOST_CLASSES:
            figures.append(_confusion(_title(name), table))
        if numbers := found[name]["numbers"]:
            some = [Series("rows", numbers["true"], numbers["found"])]
            title = f"Predictions of the {_title(name)}"
            figures.append(against(title, "true label", "predicted", some))
    return figures


def _confusion(whose: str, table: Mapping[str, Any]) -> Figure:
    counts, classes = table["counts"], table["classes"]
    shades = [[n / max(sum(row), 1) for n in row] for row in counts]
    return matrix(
        f"Confusion of the {whose}",
        "said to be",
        "true class",
        classes,
        classes,
        counts,
        shades=shades,
        form=",.0f",
        note="Decisions; shaded by their share of the true class.",
    )


def _multi_label(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of several labels a row, a table for each model: what is said of each class."""
    if evaluation.get("kind") != "multi_label":
        return []
    found = evaluation["comparison"]["models"]
    return [
        {
            "title": f"Classes of the {_title(name)}",
            "rows": list(zip(table["classes"], *zip(*table["counts"], strict=True), strict=True)),
        }
        for name in _MODELS
        if name in found and (table := found[name]["confusion"])
    ]


def _rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = ("row", "text", "pair", "difference", "true", "teacher", "student")
    rows = evaluation.get("comparison", {}).get("rows", [])
    return [
        {key: row[key] for key in keys} | {"difference": f"{row['difference']:.3f}"} for row in rows
    ]


def _sizes(evaluation: Mapping[str, Any]) -> list[Figure]:
    if not evaluation:
        return []
    models, metric, kind = evaluation["models"], evaluation["metric"], evaluation["kind"]

    def bar(
        title: str, key: str, label: str, form: str, note: str = "", **more: Any
    ) -> list[Figure]:
        known = {name: m for name, m in models.items() if m[key] is not None}
        names = [_title(name, kind) for name in known]
        values: Sequence[float] = [m[key] for m in known.values()]
        if key == metric in SHARES and all(m["standard_error"] is not None for m in known.values()):
            more["errors"] = [m["standard_error"] for m in known.values()]
            note = "Lines: one standard error to each side."
        return [bars(title, label, names, values, form=form, note=note, **more)] if known else []

    return [
        *bar(f"{metric} on the test part", metric, metric, ".4f"),
        *bar("Time for one text", "milliseconds", "milliseconds, one thread", ".2f"),
        *bar("Size", "size_mb", "MB of float32 parameters", ".1f"),
    ]


# --- what it was made with ------------------------------------------------------------------------


def _versions(records: Records) -> list[tuple[str, str]]:
    summary, evaluation = records.summary, records.evaluation
    facts = {
        "parameter_hash": summary.get("parameter_hash"),
        "git revision": summary.get("git_revision"),
        "trained on": ", ".join(f"{k} {v}" for k, v in summary.get("devices", {}).items()),
        "evaluated on": evaluation.get("device"),
    }
    facts |= summary.get("versions", {})
    return [(name, str(value)) for name, value in facts.items() if value]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in ("", [], None):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}", text
