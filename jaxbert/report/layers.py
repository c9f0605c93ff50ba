"""A run's student and teacher, layer by layer, on rows that neither was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbert.config import TermConfig
from jaxbert.data.encoding import encode_rows
from jaxbert.data.examples import ExampleSource
from jaxbert.data.packing import PackedBatches
from jaxbert.data.prepared import open_corpus
from jaxbert.data.rows import Rows
from jaxbert.data.spans import Spans
from jaxbert.data.tasks import SIMILARITY
from jaxbert.data.tokenizer import Tokenizer, load_tokenizer
from jaxbert.data.vocabulary import read_sample
from jaxbert.errors import UserError
from jaxbert.evaluation.finished import held_against, read_run
from jaxbert.evaluation.likeness import measure
from jaxbert.files import as_path
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.objectives.alignment import ATTENTION, OF_LAYERS, RELATIONS, Pairs, layer_map

# Beside the student, the first of these that is there: what distillation has changed.
_BASELINES = ("without_distillation", "random_without_distillation", "initial_student")
_ROWS = 256  # development rows, or documents
_BATCH = 16  # examples


def compare_layers(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Measures the likeness of a run's student, and of a baseline, to its teacher.

    Args:
      workdir: the run's folder.
      config: what its config.json holds.

    Returns:
      ``models``, by name what `measure` finds; ``rule``, which layers are held against each other;
      ``text``, what both read.

    Raises:
      UserError: there are no such models, or no text to read.
    """
    models = workdir / "models"
    if not (models / "student").is_dir():
        raise UserError("this run has no student")
    given = held_against(workdir, config)
    if not given and not (models / "teacher").is_dir():
        raise UserError("this run has no teacher")
    teacher = read_model(hub.resolve(given) if given else models / "teacher")
    student = read_model(models / "student")
    tokenizer = load_tokenizer(student.folder)
    if load_tokenizer(teacher.folder).fingerprint != tokenizer.fingerprint:
        raise UserError("student and teacher have other vocabularies, so that their tokens differ")
    source, text = _text(workdir, config, tokenizer)
    batches = PackedBatches(
        source,
        batch_size=_BATCH,
        row_length=config["max_length"],
        seed=0,
        shuffle=False,
        epochs=1,
    )
    rule, pairs = _pairs(learnt_rule(config), teacher, student)
    baseline = next((name for name in _BASELINES if (models / name).is_dir()), None)
    students = {"student": student}
    if baseline:
        other = read_model(models / baseline)
        if other.config.num_layers == student.config.num_layers:
            students[baseline] = other
    found = measure(teacher, students, (batches[i] for i in range(len(batches))), pairs)
    return {"models": found, "rule": rule, "text": text}


def _text(
    workdir: Path, config: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[ExampleSource, str]:
    """Development rows; of a run without a task, text of its corpus."""
    length = config["max_length"]
    task = config.get("task") or {}
    if task.get("name") or task.get("source"):
        data = read_run(workdir).load_task()
        rows = data.dev.sample(_ROWS)
        rows = rows.single_texts if data.task.kind == SIMILARITY else rows
        examples = encode_rows(tokenizer, rows, max_length=length, stride=data.task.stride)
        return examples, "rows of the development part"
    corpus, said = config.get("corpus", ""), "text of the corpus, on which the student was trained"
    if corpus.startswith("prepared:"):
        folder = as_path(corpus.removeprefix("prepared:")).expanduser()
        opened = open_corpus(folder)
        opened.check_tokenizer(tokenizer.fingerprint, str(folder))
        return Spans(opened, tokenizer, max_length=length, num_documents=_ROWS), said
    texts = list(read_sample(corpus, _ROWS, config.get("data_dir", "")))[:_ROWS]
    return encode_rows(tokenizer, Rows(texts, None, None), max_length=length), said


def learnt_rule(config: Mapping[str, Any]) -> str:
    """Which teacher layers the student learnt from: by the first term that says it of all layers.

    Args:
      config: what a run's config.json holds.
    """
    known = {field.name for field in dataclasses.fields(TermConfig)}
    for phase in config["phases"]:
        for said in config[phase].get("terms", {}).values():
            # Another version's term may have keys that this one does not know.
            term = TermConfig(**{key: said[key] for key in known & said.keys()})
            layered = term.feature in (*OF_LAYERS, *ATTENTION, *RELATIONS)
            whole = not term.student_layers and term.layers not in ("last", "skip")
            if term and layered and whole:
                return term.layers
    return "uniform"


def _pairs(rule: str, teacher: Model, student: Model) -> tuple[str, Pairs]:
    """Each student layer and the one that it learnt from; by `uniform` where the rule cannot be."""
    n, m = teacher.config.num_layers, student.config.num_layers
    try:
        mapped = layer_map(rule, n, m)
    except UserError:  # of another teacher, or a student that is deeper
        rule, mapped = "uniform", tuple(-(-i * n // m) for i in range(1, m + 1))
    return rule, tuple(enumerate(mapped, 1))
