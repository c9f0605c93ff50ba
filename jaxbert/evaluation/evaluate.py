"""Predictions of a model, and the evaluation of a finished run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxbert.data.rows import Rows, TaskData
from jaxbert.data.tasks import SIMILARITY, Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation import comparison, latency, tfidf
from jaxbert.evaluation.embeddings import ENCODER
from jaxbert.evaluation.finished import read_run
from jaxbert.evaluation.flops import forward_flops
from jaxbert.evaluation.metrics import score_rows, standard_error
from jaxbert.evaluation.predict import RowPredictor, label_order
from jaxbert.evaluation.predictions import Predictions, read_classes
from jaxbert.files import check_writable
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.models.bert import count_parameters, scored_groups
from jaxbert.workdir import versions, write_json

FLOPS_LENGTH = 128  # the paper's


def evaluate_run(workdir: Path, *, timed: bool = True) -> dict[str, Any]:
    """Scores every model of a finished run that answers its task, and writes ``eval.json``.

    The test split is read for this report alone; what was chosen was chosen on dev, whose scores
    are given too. Everything is computed in float32.

    Args:
      workdir: the folder that ``train.py`` wrote.
      timed: whether the models are timed, too; without it ``milliseconds`` are null.

    Returns:
      What ``eval.json`` holds: under ``models``, for every model with the task's head (of
      similarity, for every trained one), the task's metrics (and as ``dev_...``), the
      standard_error of the share of right examples (null where none is measured), parameters,
      parameters_without_embeddings, size_mb (of the float32 parameters, 1 MB = 10^6 bytes), flops
      (of one example of 128 word pieces; null for TF-IDF), rows truncated (of dev and test),
      milliseconds (see `latency`; TF-IDF's are from the text), and, of the test split, retained,
      agreement and calibration_error (see `comparison`); under ``comparison`` what else `compare`
      finds, and the development rows on which student and teacher differ most.

    Raises:
      UserError: not a run, an unfinished one, one without a task, one whose rows have changed, or
        one that cannot be written to.
    """
    finished, path = read_run(workdir), workdir / "eval.json"
    with _writing(path):  # it takes a while
        check_writable(workdir)
    config, task = finished.config, finished.load_task()
    # One at a time: a run may hold more than a memory does.
    folders = {
        name: folder
        for name, folder in finished.folders().items()
        if _answers(read_model(folder), task.task)
    }
    if not folders:
        fix = "evaluate it by a run that trains a head, such as configs/tinybert_task.py"
        raise UserError(f"no model of this run answers {task.name}", f"{workdir}/models", fix)
    text, pair = _median_text(task.test)
    models: dict[str, dict[str, Any]] = {}
    said: dict[str, _Said] = {}
    times: dict[str, Any] = {"milliseconds": [None] * len(folders), "tokens": None}
    embed = task.task.kind == SIMILARITY
    how: dict[str, Any] = {"max_length": config["max_length"], "embed": embed}
    timer = latency.Timing(list(folders.values()), text, pair, **how) if timed else None
    with timer or contextlib.nullcontext():  # it makes itself ready meanwhile
        for name, folder in folders.items():
            models[name], said[name] = _score(read_model(folder), task, config)
        if timer:
            times = timer.measure()
    for name, milliseconds in zip(models, times["milliseconds"], strict=True):
        models[name]["milliseconds"] = milliseconds
    left_out = {}
    try:
        yardstick = tfidf.fit(task.task.kind, task.train)
    except ValueError as error:  # of another kind, or no word stands there twice
        left_out["tfidf"] = str(error)
    else:
        models["tfidf"], said["tfidf"] = _score_tfidf(yardstick, task)
        joint = text if pair is None or embed else f"{text}\n{pair}"
        models["tfidf"]["milliseconds"] = tfidf.milliseconds(yardstick, joint) if timed else None
    compared = _compare(task, models, said)
    errors = [model["standard_error"] for model in models.values()]
    device = jax.devices()[0]
    results = {
        "models": models,
        "left_out": left_out,
        "task": task.name,
        "kind": task.task.kind,
        "metric": task.metric,
        "split": "test",
        "splits": task.note,
        "comparison": compared,
        "examples": len(task.test),
        "dev_examples": len(task.dev),
        "standard_error": max((error for error in errors if error is not None), default=None),
        "flops_length": FLOPS_LENGTH,
        "latency_tokens": times["tokens"],
        "seed": config.get("seed"),
        "versions": versions(),
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} CPUs",
    }
    with _writing(path):
        write_json(path, results)
    return results


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Stands around what writes a file."""
    try:
        yield
    except OSError as error:
        what, fix = f"cannot be written ({error.strerror})", "make room, or let it be written to"
        raise UserError(what, str(path), fix) from error


class _Said(NamedTuple):
    """What a model predicts of the test and of the development rows."""

    test: Predictions
    dev: Predictions


def _answers(model: Model, task: Task) -> bool:
    """Whether a model has the task's head; of similarity none is read."""
    return task.kind == SIMILARITY or (
        "classifier" in model.params and model.config.head == task.kind
    )


def _score(model: Model, task: TaskData, config: Mapping[str, Any]) -> tuple[dict[str, Any], _Said]:
    """A model's columns, but for the milliseconds, and its predictions."""
    order = label_order(model, task.task)
    tokenizer = load_tokenizer(model.folder)
    truncated = 0

    def predict(rows: Rows) -> Predictions:
        nonlocal truncated
        run = RowPredictor.of(
            task,
            rows,
            tokenizer,
            max_length=config["max_length"],
            batch_size=config.get("eval_batch_size") or 64,
        )
        truncated += run.examples.truncated
        with jax.default_matmul_precision("highest"):
            return run(model.config.replace(dtype="float32"), model.params, order)

    said = _Said(predict(task.test), predict(task.dev))
    size = _size(model, head=task.task.kind != SIMILARITY)
    return _quality(task, said) | size | {"truncated": truncated}, said


def _quality(task: TaskData, said: _Said) -> dict[str, Any]:
    """The metrics of both splits, what is undefined, and how far chance may move a share."""
    columns: dict[str, Any] = {}
    undefined = {}
    for prefix, rows, predictions in (("", task.test, said.test), ("dev_", task.dev, said.dev)):
        found = score_rows(task.task, rows, predictions, task.task.reported)
        for name, metric in found.items():
            columns[prefix + name] = metric.value
            if metric.undefined:
                undefined[prefix + name] = metric.undefined
    # The words of a sentence do not err one by one.
    share = columns.get("exact_match" if task.task.kind == "spans" else "accuracy")
    columns["standard_error"] = (
        None
        if share is None or task.task.kind == "tagging"
        else standard_error(share, len(task.test))
    )
    return columns | {"undefined": undefined}


def _compare(
    task: TaskData, models: Mapping[str, dict[str, Any]], said: Mapping[str, _Said]
) -> dict[str, Any]:
    """Holds every model against the teacher, and adds what that says in a number to its columns."""
    teacher = said.get("teacher")
    best = models["teacher"][task.metric] if teacher else None
    compared = {}
    for name, predictions in said.items():
        found = comparison.compare(
            task.task, task.test, predictions.test, teacher.test if teacher else None
        )
        mine = models[name][task.metric]
        models[name] |= {
            "retained": mine / best if mine is not None and best and best > 0 else None,
            "agreement": found.pop("agreement"),
            "calibration_error": found["calibration"] and found["calibration"]["error"],
        }
        compared[name] = found
    rows = []
    if teacher and "student" in said:
        rows = comparison.differing(task.task, task.dev, said["student"].dev, teacher.dev)
    return {"models": compared, "rows": rows}


def _size(model: Model, *, head: bool) -> dict[str, Any]:
    """Parameters that a prediction (or an embedding) reads, their bytes, and what one costs."""
    groups = scored_groups(model.config) if head else ENCODER
    counts = {group: count_parameters(model.params[group]) for group in groups}
    total = sum(counts.values())
    return {
        "parameters": total,
        "parameters_without_embeddings": total - counts["embeddings"],
        "size_mb": 4 * total / 1e6,
        "flops": forward_flops(model.config, FLOPS_LENGTH, head=head),
    }


def _score_tfidf(model: tfidf.Pipeline, task: TaskData) -> tuple[dict[str, Any], _Said]:
    """The same for TF-IDF, with logistic regression or with cosines."""
    count = tfidf.count_parameters(model)

    def predict(rows: Rows) -> Predictions:
        if task.task.kind == SIMILARITY:
            return Predictions(tfidf.cosines(model, rows))
        return read_classes(tfidf.logits(model, rows, len(task.labels)))

    said = _Said(predict(task.test), predict(task.dev))
    return _quality(task, said) | {
        "parameters": count,
        "parameters_without_embeddings": count,
        "size_mb": 4 * count / 1e6,
        "flops": None,
        "truncated": 0,
    }, said


def _median_text(rows: Rows) -> tuple[str, str | None]:
    """A text (and its pair) of median length in characters."""
    texts = tfidf.texts_of(rows)
    middle = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))[len(texts) // 2]
    return rows.texts[middle], None if rows.pairs is None else rows.pairs[middle]
