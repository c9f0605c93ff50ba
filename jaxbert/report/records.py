"""What a run's folder says of the run, as far as it is there and can be read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxbert.errors import UserError
from jaxbert.files import check_seal, read_object

# What metrics.jsonl says of a log step beside losses, their terms and the training accuracy.
_USED = ("phase", "step", "seconds", "tokens", "real_tokens", "data_wait", "saving", "bad_steps")
_SPEED = ("data_wait_fraction", "flops", "flops_per_second", "mfu")
NO_TERMS = (*_USED, *_SPEED, "gradient_norm", "dev", "spike")


@dataclasses.dataclass
class Records:
    """The files of a run.

    Attributes:
      name: of its folder.
      config, summary, evaluation: config.json, summary.json and eval.json; empty where that is not
        there or no JSON.
      metrics: the objects of metrics.jsonl that name a phase and a step.
      warnings: what of these is missing or damaged, and what the run met, a sentence each.
    """

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    warnings: list[str]

    @property
    def phases(self) -> list[str]:
        """Those of the config, and those that the metrics have beside these."""
        named = self.config.get("phases")
        names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        return list(dict.fromkeys([*names, *(line["phase"] for line in self.metrics)]))

    def curve(self, phase: str, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one entry of the metrics of a phase, where it is a finite number."""
        found = [
            (line["step"], line[key])
            for line in self.metrics
            if line["phase"] == phase and _finite(line.get(key))
        ]
        return [step for step, _ in found], [value for _, value in found]

    def keys(self, phase: str) -> list[str]:
        """What the metrics of a phase hold beside its progress: the loss, its terms, accuracies."""
        lines = (line for line in self.metrics if line["phase"] == phase)
        return [
            key for key in dict.fromkeys(k for line in lines for k in line) if key not in NO_TERMS
        ]


def read_records(workdir: Path) -> Records:
    """Reads what is there.

    Raises:
      UserError: the folder is not a run's.
    """
    warnings: list[str] = []
    names = ("config.json", "summary.json", "eval.json", "metrics.jsonl")
    if not any((workdir / name).is_file() for name in names):
        what = (
            f"it has none of {', '.join(names)}" if workdir.is_dir() else "there is no such folder"
        )
        raise UserError(what, str(workdir), "give the --workdir that train.py was given")
    try:
        check_seal(workdir, "")
    except UserError as error:
        warnings.append(f"{error.line}.")
    remedies = {
        "config.json": "the run's settings are not shown",
        "summary.json": "the run has not come to its end",
        "eval.json": "no model was evaluated: eval.py writes it",
    }
    found: dict[str, dict[str, Any]] = {}
    for name, remedy in remedies.items():
        content: dict[str, Any] = {}
        if (workdir / name).is_file():
            try:
                content = read_object(workdir / name, "")
            except UserError as error:
                warnings.append(f"{name}: {error.what}.")
        elif name != "eval.json" or _has_task(found["config.json"]):
            warnings.append(f"{name} is not there: {remedy}.")
        found[name] = content
    metrics = _read_metrics(workdir / "metrics.jsonl", warnings)
    config, summary, evaluation = found.values()
    name = workdir.resolve().name
    records = Records(name, config, summary, evaluation, metrics, warnings)
    try:
        warnings += _met(records)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        warnings.append(f"summary.json or eval.json is not as it was written: {_say(error)}.")
    return records


def _has_task(config: Mapping[str, Any]) -> bool:
    task = config.get("task")
    return isinstance(task, dict) and bool(task.get("name") or task.get("source"))


def _read_metrics(path: Path, warnings: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        warnings.append("metrics.jsonl is not there: no curve is shown.")
        return []
    lines, bad = [], 0
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line.decode())
                good = isinstance(entry["phase"], str) and _finite(entry["step"])
            except (ValueError, KeyError, TypeError, RecursionError):
                good = False
            if good:
                lines.append(entry)
            else:
                bad += 1
    if bad:
        warnings.append(f"metrics.jsonl: {bad:,} lines are damaged and left out.")
    return lines


def _met(records: Records) -> Iterator[str]:
    """What the run was warned of, or should have been, as its records tell."""
    summary, evaluation = records.summary, records.evaluation
    teacher = summary.get("teacher", {})
    scores = {teacher.get("reference", "the teacher"): teacher.get("dev")}
    for name, score in (scores | summary.get("other_teachers", {})).items():
        if score and not (score["value"] or 0) > score["most_frequent"] + score["examples"] ** -0.5:
            yield (
                f"The teacher {name} is not clearly better than the most frequent answer: "
                f"{score['metric']} {score['value']} against {score['most_frequent']:.4f}."
            )
    task = summary.get("task", {})
    for reference, rows in task.get("rows", {}).items():
        if rows.get("skipped"):
            problems = "; ".join(rows.get("problems", ()))
            yield f"{reference}: {rows['skipped']:,} rows were skipped: {problems}."
    for split, count in task.get("overlap", {}).items():
        if count:
            yield f"{count:,} {split} rows are among the training rows, too."
    if cut := task.get("cuts", {}).get("truncated"):
        yield f"{cut:,} training rows were cut to max_length = {records.config.get('max_length')}."
    for name, phase in summary.get("phases", {}).items():
        if phase.get("bad_steps"):
            yield f"{name}: {phase['bad_steps']:,} steps were skipped, not being finite."
        if phase.get("compilations", 1) > 1:
            yield f"{name} was compiled {phase['compilations']} times."
    for name in records.phases:
        steps, ratios = records.curve(name, "spike")
        for step, ratio in zip(steps, ratios, strict=True):
            yield f"{name}: the loss of step {step:,} was a spike, {ratio:.1f} times the median."
    for name, reason in evaluation.get("left_out", {}).items():
        yield f"{name} was not evaluated: {reason}."
    for name, model in evaluation.get("models", {}).items():
        for metric, reason in model.get("undefined", {}).items():
            yield f"{metric} of {name} is undefined: {reason}."


def _say(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()


def _finite(value: Any) -> bool:
    """Whether it is a number that a float holds; JSON has larger ones."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
