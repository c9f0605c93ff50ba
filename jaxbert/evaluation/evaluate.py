"""Predictions of a model, and the evaluation of a finished run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbert.data.encoding import encode_rows
from jaxbert.data.packing import PackedBatches
from jaxbert.data.rows import Rows, TaskData, load_task
from jaxbert.data.tasks import describe_task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation import latency, tfidf
from jaxbert.evaluation.flops import forward_flops
from jaxbert.evaluation.metrics import METRICS, classification_metrics, standard_error
from jaxbert.evaluation.predict import SCORED, predict
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.models.bert import count_parameters
from jaxbert.workdir import versions, write_json

MODELS = ("teacher", "student", "without_distillation", "random_without_distillation")
FLOPS_LENGTH = 128  # the paper's


def label_order(model: tuple[str, ...], task: tuple[str, ...], folder: Path) -> list[int]:
    """Which of the model's classes is each of the task's, by name.

    Args:
      model: the model's label names; ``LABEL_0``, ... where nobody named them.
      task: the task's.
      folder: the model's, for the message.

    Raises:
      UserError: the model has no classifier, or the names are not the same set.
    """
    if not model:
        raise UserError(
            "the model has no classifier", f"{folder}", "give one that was fine-tuned on the task"
        )
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(model))
    if len(model) == len(task) and unnamed:
        return list(range(len(task)))
    if sorted(model) != sorted(task):
        raise UserError(
            f"the model's labels {', '.join(model)} are not the task's {', '.join(task)}",
            f"{folder}/config.json, id2label",
            "evaluate a model that was fine-tuned on this task",
        )
    return [model.index(name) for name in task]


def evaluate_run(workdir: Path) -> dict[str, Any]:
    """Scores every model of a finished run on its task and writes ``eval.json``.

    The test split is read for this report alone; what was chosen was chosen on dev, whose scores
    are given too. Everything is computed in float32.

    Args:
      workdir: the folder that ``train.py`` wrote.

    Returns:
      What ``eval.json`` holds: under ``models``, for teacher, student and baselines, the task's
      metrics (and as ``dev_...``), the standard_error of accuracy, parameters,
      parameters_without_embeddings, size_mb (of the float32 parameters, 1 MB = 10^6 bytes), flops
      (of one example of 128 word pieces; null for TF-IDF), texts truncated, and milliseconds (see
      `latency`; TF-IDF's are from the text).

    Raises:
      UserError: not a run, an unfinished one, one without a task, or one whose rows have changed.
    """
    config = _read_config(workdir)
    task = _read_task(workdir, config)
    folders = _folders(workdir, config)
    models = {name: _score(folder, task, config) for name, folder in folders.items()}
    text, pair = _median_text(task.test)
    timed = latency.measure_apart(
        list(folders.values()), text, pair, max_length=config["max_length"]
    )
    for name, milliseconds in zip(folders, timed["milliseconds"], strict=True):
        models[name]["milliseconds"] = milliseconds
    left_out = {}
    try:
        yardstick = tfidf.fit(task.train)
    except ValueError as error:  # no word stands there twice
        left_out["tfidf"] = str(error)
    else:
        one = text if pair is None else f"{text}\n{pair}"
        models["tfidf"] = _score_tfidf(yardstick, task, one)
    device = jax.devices()[0]
    results = {
        "models": models,
        "left_out": left_out,
        "task": task.name,
        "metric": task.metric,
        "split": "test",
        "splits": task.note,
        "examples": len(task.test),
        "dev_examples": len(task.dev),
        "standard_error": max(model["standard_error"] for model in models.values()),
        "flops_length": FLOPS_LENGTH,
        "latency_tokens": timed["tokens"],
        "seed": config.get("seed"),
        "versions": versions(),
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} CPUs",
    }
    write_json(workdir / "eval.json", results)
    return results


def _read_config(workdir: Path) -> dict[str, Any]:
    """The configuration of a finished run that has a task."""
    path = workdir / "config.json"
    if not path.is_file():
        what = "is not a run's folder: it has no config.json" if workdir.exists() else "is missing"
        raise UserError(f"{workdir} {what}", "--workdir", "give the --workdir train.py was given")
    config = _read_object(path)
    task = config.get("task")
    if not isinstance(task, dict) or not (task.get("name") or task.get("source")):
        raise UserError(
            "this run has no labelled task to be evaluated on",
            f"{path}, key task",
            "give the --workdir of a task run, such as one of configs/tinybert_task.py",
        )
    if not (workdir / "summary.json").is_file():
        raise UserError(
            "this run is not finished",
            f"{workdir}/summary.json is missing",
            "run its train.py command again, which continues it",
        )
    return config


def _read_object(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", f"{path}", "restore the file") from error
    if not isinstance(found, dict):
        what = f"a JSON {type(found).__name__} instead of an object"
        raise UserError(what, f"{path}", "restore the file")
    return found


def _read_task(workdir: Path, config: Mapping[str, Any]) -> TaskData:
    """The run's task, with the rows that it was trained and chosen on."""
    try:
        described = describe_task(**config["task"])
    except TypeError as error:
        fix = "evaluate it with the version that trained it"
        raise UserError(f"not understood: {error}", f"{workdir}/config.json", fix) from error
    task = load_task(described, config.get("data_dir") or "")
    summary = _read_object(workdir / "summary.json")
    for reference, rows in summary.get("task", {}).get("rows", {}).items():
        if task.rows.get(reference, {}).get("sha256") != rows["sha256"]:
            fix = "put the old rows back, or train again in another --workdir"
            raise UserError("its rows have changed since the run", reference, fix)
    return task


def _folders(workdir: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """The models of a run that are there, teacher first."""
    folders = {name: workdir / "models" / name for name in MODELS}
    folders = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if "student" not in folders:
        raise UserError(
            "this run left no student", f"{workdir}/models", "run its train.py command again"
        )
    if "teacher" not in folders and config.get("teacher"):
        # Given fine-tuned, it was not trained here and stays where it is.
        folders = {"teacher": hub.resolve(config["teacher"])} | folders
    return folders


def _score(folder: Path, task: TaskData, config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's columns, but for the milliseconds."""
    model = read_model(folder)
    order = label_order(model.labels, task.labels, folder)
    tokenizer = load_tokenizer(folder)

    truncated = 0

    def logits(rows: Rows) -> np.ndarray:
        nonlocal truncated
        examples = encode_rows(tokenizer, rows, max_length=config["max_length"])
        truncated += examples.truncated
        batches = PackedBatches(
            examples,
            batch_size=config.get("eval_batch_size") or 64,
            row_length=config["max_length"],
            seed=0,
            shuffle=False,
            epochs=1,
        )
        with jax.default_matmul_precision("highest"):
            return predict(model.config.replace(dtype="float32"), model.params, batches)[:, order]

    return _quality(task, logits) | _size(model) | {"truncated": truncated}


def _quality(task: TaskData, logits: Callable[[Rows], np.ndarray]) -> dict[str, Any]:
    """The metrics of both splits, the standard error of accuracy, and what is undefined."""
    columns: dict[str, Any] = {}
    undefined = {}
    for prefix, rows in (("", task.test), ("dev_", task.dev)):
        names = list(dict.fromkeys([task.metric, *METRICS]))
        for name, metric in classification_metrics(rows.labels, logits(rows), names).items():
            columns[prefix + name] = metric.value
            if metric.undefined:
                undefined[prefix + name] = metric.undefined
    columns["standard_error"] = standard_error(columns["accuracy"], len(task.test))
    return columns | {"undefined": undefined}


def _size(model: Model) -> dict[str, Any]:
    """Parameters that a prediction reads, their bytes, and what one costs."""
    counts = {group: count_parameters(model.params[group]) for group in SCORED}
    total = sum(counts.values())
    return {
        "parameters": total,
        "parameters_without_embeddings": total - counts["embeddings"],
        "size_mb": 4 * total / 1e6,
        "flops": forward_flops(model.config, FLOPS_LENGTH),
    }


def _score_tfidf(model: tfidf.Pipeline, task: TaskData, text: str) -> dict[str, Any]:
    """The same columns for TF-IDF with logistic regression."""
    count = tfidf.count_parameters(model)
    return _quality(task, lambda rows: tfidf.logits(model, rows, len(task.labels))) | {
        "parameters": count,
        "parameters_without_embeddings": count,
        "size_mb": 4 * count / 1e6,
        "flops": None,
        "truncated": 0,
        "milliseconds": tfidf.milliseconds(model, text),
    }


def _median_text(rows: Rows) -> tuple[str, str | None]:
    """A text (and its pair) of median length in characters."""
    texts = tfidf.texts_of(rows)
    middle = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))[len(texts) // 2]
    return rows.texts[middle], None if rows.pairs is None else rows.pairs[middle]
