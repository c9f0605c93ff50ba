"""Every kind of task from its file to a trained model, its report and its predictions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest
from rich.console import Console

from jaxbert.cli.main import main
from jaxbert.errors import UserError
from jaxbert.evaluation.evaluate import evaluate_run
from jaxbert.evaluation.report import print_table
from jaxbert.interop.huggingface import read_model
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import run

FINETUNE = "configs/bert_finetune.py"
PREDICTIONS = ("--config.phases=finetune,prediction", "--config.prediction.start=student")
CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna")
PEOPLE = ("Ann", "Bob", "Carl", "Dora")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, and a file of each kind of task."""
    root = tmp_path_factory.mktemp("kinds")
    commands.write_small_teacher(root / "teacher")
    names = [(PEOPLE[i % 4], CITIES[i % 6], i) for i in range(120)]
    sentences = [
        f"{person} B-person\nlives O\nin O\n{city} B-place\n, O\nnumber O\n{i} O\n"
        for person, city, i in names
    ]
    (root / "tags.conll").write_text("\n".join(sentences), encoding="utf-8")
    paragraphs = []
    for person, city, i in names:
        context = f"Number {i}: {person} has lived in {city} since {1900 + i}, as all know."
        answer = {"text": city, "answer_start": context.index(city)}
        qas = [
            {"id": f"{i}a", "question": f"Where is {person}?", "answers": [answer]},
            {"id": f"{i}b", "question": "Who is his wife?", "answers": [], "is_impossible": True},
        ]
        paragraphs.append({"context": context, "qas": qas})
    squad = {"version": "v2.0", "data": [{"title": "mine", "paragraphs": paragraphs}]}
    (root / "spans.json").write_text(json.dumps(squad), encoding="utf-8")
    rows = [
        {
            "text": f"{person} of {city}, {i}",
            "genres": ["person"] * (i % 2) + ["city"] * (i % 3 > 0),
        }
        for person, city, i in names
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    (root / "genres.jsonl").write_text(lines, encoding="utf-8")
    rows = [f"{person} in {city}\t{city}, {i}\t{i % 11 / 2}" for person, city, i in names]
    text = "\n".join(["one\tother\tlikeness", *rows]) + "\n"
    (root / "pairs.tsv").write_text(text, encoding="utf-8")
    return root


def train(place: Path, recipe: str, workdir: Path, *flags: str, **task: str) -> None:
    """Runs a recipe on the teacher and a described task, in this process."""
    described = [f"--config.task.{key}={value}" for key, value in task.items()]
    small = (f"--config.teacher={place / 'teacher'}", *commands.SMALL)
    commands.train_here(recipe, workdir, *small, *described, *flags)


def report(workdir: Path, *, timed: bool) -> str:
    """The table of a run's evaluation."""
    said = io.StringIO()
    print_table(evaluate_run(workdir, timed=timed), Console(file=said, width=100))
    return said.getvalue()


def predict(out: Path, *arguments: str) -> list[dict]:
    """What ``jaxbert predict`` writes, a line a row."""
    main(["predict", *arguments, f"--out={out}"])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


# --- tags: distilled ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tags(place):
    """A teacher, a student of its predictions, their report, and predictions of the same file."""
    workdir, source = place / "tags", f"conll:{place / 'tags.conll'}"
    task = {"name": "mine", "source": source, "labels": "person,place"}
    train(place, f"{commands.TASK}:smoke", workdir, *PREDICTIONS, **task)
    table = report(workdir, timed=False)
    lines = predict(place / "tags.jsonl", f"--workdir={workdir}", f"--source={source}")
    return SimpleNamespace(workdir=workdir, table=table, lines=lines)


def test_a_tagger_is_distilled_and_reported(tags):
    results = commands.read(tags.workdir / "eval.json")
    assert (results["kind"], results["metric"]) == ("tagging", "entity_f1")
    assert list(results["models"]) == ["teacher", "student"]
    for model in results["models"].values():
        assert 0 <= model["accuracy"] <= 1 and 0 <= model["dev_accuracy"] <= 1
        assert model["standard_error"] is None  # words of a sentence do not err one by one
        assert model["milliseconds"] is None
    assert results["latency_tokens"] is None and "ms: not measured" in tags.table
    assert "this task is tagging" in results["left_out"]["tfidf"]
    assert "entity_f1" in tags.table and "distilled student" in tags.table
    teacher = read_model(tags.workdir / "models" / "teacher")
    assert set(teacher.params) == {"embeddings", "encoder", "classifier"}
    assert teacher.labels == ("O", "B-person", "I-person", "B-place", "I-place")
    assert results["models"]["teacher"]["parameters"] == sum(
        leaf.size for leaf in _leaves(teacher.params)
    )
    summary = commands.read(tags.workdir / "summary.json")
    assert summary["task"]["cuts"]["truncated"] == 0
    for phase in summary["phases"].values():
        assert np.isfinite(phase["final"]["loss"]) and phase["compilations"] == 1


def _leaves(tree: dict) -> list:
    return [x for v in tree.values() for x in (_leaves(v) if isinstance(v, dict) else [v])]


def test_every_word_of_a_predicted_sentence_has_a_tag(tags):
    assert len(tags.lines) == 120
    assert tags.lines[1]["words"] == ["Bob", "lives", "in", "London", ",", "number", "1"]
    known = {"O", "B-person", "I-person", "B-place", "I-place"}
    for line in tags.lines:
        assert len(line["tags"]) == len(line["scores"]) == 7
        assert set(line["tags"]) <= known and all(0.2 <= s <= 1 for s in line["scores"])


# --- spans ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spans(place):
    """A fine-tuned teacher alone, its report and predictions."""
    workdir, source = place / "spans", f"squad:{place / 'spans.json'}"
    train(place, f"{FINETUNE}:smoke,task=mine", workdir, source=source)
    report(workdir, timed=True)
    lines = predict(place / "out" / "spans.jsonl", f"--workdir={workdir}", f"--source={source}")
    return SimpleNamespace(workdir=workdir, lines=lines)


@pytest.mark.slow
def test_a_teacher_of_spans_is_reported_alone(spans):
    results = commands.read(spans.workdir / "eval.json")
    assert list(results["models"]) == ["teacher"]
    assert (results["kind"], results["metric"]) == ("spans", "f1")
    teacher = results["models"]["teacher"]
    assert 0 <= teacher["exact_match"] <= teacher["f1"] <= 1
    assert teacher["milliseconds"] > 0 and teacher["standard_error"] is not None
    assert not commands.read(spans.workdir / "summary.json")["task"]["all_answered"]
    config = commands.read(spans.workdir / "models" / "teacher" / "config.json")
    assert config["architectures"] == ["BertForQuestionAnswering"]


@pytest.mark.slow
def test_an_answer_stands_in_its_context_where_it_is_said_to(spans):
    assert len(spans.lines) == 240
    for line in spans.lines:
        assert set(line) == {"question", "context", "answer", "start", "score"}
        if line["answer"] is None:
            assert line["start"] is None and line["score"] < 0
        else:
            there = line["context"][line["start"] :]
            assert there.startswith(line["answer"]) and line["score"] >= 0


# --- several labels, and a number -----------------------------------------------------------------


@pytest.mark.slow
def test_several_labels_a_row_are_learnt_distilled_and_predicted(place):
    source, workdir = f"jsonl:{place / 'genres.jsonl'}", place / "genres"
    task = {"name": "mine", "source": source, "kind": "multi_label"}
    task |= {"columns": "text", "label": "genres", "labels": "person,city"}
    train(place, f"{commands.TASK}:smoke", workdir, *PREDICTIONS, **task)
    phases = commands.read(workdir / "summary.json")["phases"]
    assert {"cross_entropy", "accuracy"} <= set(phases["finetune"]["final"])
    assert {"prediction", "accuracy"} <= set(phases["prediction"]["final"])
    assert phases["prediction"]["teacher_hash"] == phases["finetune"]["parameter_hash"]
    # A model says by itself what it predicts; where the texts stand, the user says.
    model = f"--model=run:{workdir}#student"
    for line in predict(place / "g.jsonl", model, "--columns=text", f"--source={source}"):
        assert set(line["scores"]) == {"person", "city"}
        assert line["labels"] == [name for name, p in line["scores"].items() if p > 0.5]


@pytest.mark.slow
def test_a_number_is_learnt_and_predicted(place):
    source = f"tsv:{place / 'pairs.tsv'}"
    task = {"source": source, "columns": "one,other", "label": "likeness"}
    workdir = place / "pairs"
    given = {"kind": "regression", "bounds": "0,5"} | task
    train(place, f"{FINETUNE}:smoke,task=mine", workdir, **given)
    phase = commands.read(workdir / "summary.json")["phases"]["finetune"]
    assert "squared_error" in phase["final"]
    lines = commands.metrics(workdir)
    assert {line["step"] for line in lines if "dev" in line} == {1, 2}
    found = predict(place / "pairs.jsonl", f"--workdir={workdir}", f"--source={source}")
    assert len(found) == 120 and found[0]["pair"] == "Paris, 0"
    assert all(isinstance(line["score"], float) for line in found)


# --- phases that train no head --------------------------------------------------------------------


def distil(place: Path, workdir: Path, source: str, **overrides: str) -> dict:
    """The record of a phase of layers alone."""
    given = {
        "phases": "intermediate",
        "intermediate.trains": "student",
        "intermediate.teacher": "given_teacher",
        "task.name": "mine",
        "task.source": source,
        "teacher": str(place / "teacher"),
        "max_length": "48",
        "dtype": "float32",
        "mesh.data": "1",
    }
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    run(resolve(load_recipe(f"{commands.TASK}:smoke"), given | overrides), workdir)
    return commands.read(workdir / "models" / "student" / "phase.json")


@pytest.mark.slow
def test_layers_are_probed_without_a_trace_in_what_is_trained(place, tmp_path):
    task = {"columns": "text", "label": "genres", "labels": "person,city", "kind": "multi_label"}
    given = {f"task__{key}": value for key, value in task.items()}
    source = f"jsonl:{place / 'genres.jsonl'}"
    plain = distil(place, tmp_path / "plain", source, intermediate__eval_every="0", **given)
    probed = distil(place, tmp_path / "probed", source, intermediate__eval_every="1", **given)
    assert probed["parameter_hash"] == plain["parameter_hash"]
    dev = {e["step"]: e["dev"] for e in commands.metrics(tmp_path / "probed") if "dev" in e}
    assert set(dev) == {1, 2} and all(0 <= value <= 1 for value in dev.values())
    # Best and last are both told; the last is what the next phase starts from.
    assert probed["selected_step"] == probed["steps"] == 2
    assert probed["last_dev"] == dev[2]
    assert probed["best_dev"] == max(dev.values()) == dev[probed["best_step"]]
    assert [plain[key] for key in ("best_step", "best_dev", "last_dev")] == [None] * 3


@pytest.mark.slow
def test_a_sentence_encoder_is_distilled_measured_and_used(place, tmp_path):
    source, workdir = f"tsv:{place / 'pairs.tsv'}", tmp_path / "likeness"
    task = {"columns": "one,other", "label": "likeness", "kind": "similarity", "bounds": "0,5"}
    given = {f"task__{key}": value for key, value in task.items()}
    # Teacher and student are as wide, so that without a projection embeddings themselves learn.
    given |= {"intermediate__preset": "sentence", "student__projection": "none"}
    phase = distil(place, workdir, source, intermediate__eval_every="1", **given)
    assert {"direction", "embedding"} <= set(phase["final"])
    assert "projection" not in read_model(workdir / "models" / "student").params
    results = evaluate_run(workdir)
    assert (results["kind"], results["metric"]) == ("similarity", "spearman")
    assert list(results["models"]) == ["teacher", "student", "tfidf"]
    student = results["models"]["student"]
    # The best step is written: what is measured is the encoder itself.
    assert student["dev_spearman"] == pytest.approx(phase["best_dev"], abs=1e-3)
    params = read_model(workdir / "models" / "student").params
    encoder = [leaf for group in ("embeddings", "encoder") for leaf in _leaves(params[group])]
    assert student["parameters"] == sum(leaf.size for leaf in encoder)
    assert student["milliseconds"] > 0 and student["standard_error"] is None
    found = predict(tmp_path / "pairs.jsonl", f"--workdir={workdir}", f"--source={source}")
    assert len(found) == 120 and set(found[0]) == {"text", "pair", "score"}
    assert all(-1 <= line["score"] <= 1 for line in found)


# --- what is refused ------------------------------------------------------------------------------


def refusal(place: Path, **overrides: str) -> str:
    """What a distillation of the tagger says before it starts."""
    given = {
        "task.name": "mine",
        "task.source": f"conll:{place / 'tags.conll'}",
        "task.labels": "person,place",
        "teacher": str(place / "teacher"),
        "max_length": "48",
    }
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), given | overrides)
    with pytest.raises(UserError) as error:
        run(config, place / "refused")
    assert not (place / "refused").exists()
    (line,) = error.value.lines
    return line


def test_a_classifier_of_whole_texts_is_not_put_on_words(place):
    line = refusal(place, student__classifier="tinybert")
    assert "TinyBERT's classifier reads whole examples, and mine is tagging" in line


@pytest.mark.slow
def test_a_teacher_of_another_kind_is_refused(place, spans):
    line = refusal(place, teacher=f"run:{spans.workdir}#teacher")
    assert "the teacher is for spans, and mine is tagging" in line
