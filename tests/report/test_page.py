"""report.html: of real runs, of damaged ones, and of rows that would be more than text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import browser
import commands
import html_page
import numpy as np
import pytest

from jaxbert.cli.main import main
from jaxbert.cli.train import leave_report
from jaxbert.data.labels import Answer
from jaxbert.data.rows import Rows
from jaxbert.data.tasks import Task
from jaxbert.evaluation import comparison
from jaxbert.evaluation.predictions import Predictions, read_classes, read_labels, read_numbers
from jaxbert.report import page
from jaxbert.report.charts import Figure
from jaxbert.report.page import render, write_report
from jaxbert.report.records import Records, read_records

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> & \x07 \u202e \"quoted\""
# --- real runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache):
    """A general and a task run of a small teacher, and what eval.py makes of it."""
    root = tmp_path_factory.mktemp("report")
    commands.write_small_teacher(root / "teacher")
    documents = "\n\n".join(f"Film {i} is " + "rather long and " * 9 for i in range(40))
    (root / "texts.txt").write_text(documents, encoding="utf-8")
    rows = [f"a {('dull', 'moving')[i % 2]} <b>film</b>, number {i}\t{i % 2}" for i in range(200)]
    (root / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    given = [f"--config.teacher={root / 'teacher'}", *commands.SMALL]
    corpus = f"--config.corpus=text:{root / 'texts.txt'}"
    general = (f"{commands.GENERAL}:smoke", root / "general", *given, corpus)
    said = commands.call("train.py", *general, cache=cache).stdout
    assert said.splitlines()[-1] == str(root / "general" / "report.html")
    task = [f"--config.task.source=tsv:{root / 'rows.tsv'}", "--config.task.columns=text"]
    task += ["--config.task.name=own", "--config.task.labels=<i>no</i>,yes & more"]
    task.append(f"--config.init_from={root / 'general'}")
    commands.train_here(f"{commands.TASK}:smoke", root / "task", *given, *task)
    said = commands.call("eval.py", "", root / "task", cache=cache).stdout
    assert said.splitlines()[-1] == str(root / "task" / "report.html")
    return root


@pytest.mark.slow
def test_a_task_run_s_page_has_every_part(place):
    text = (place / "task" / "report.html").read_text(encoding="utf-8")
    found = html_page.check(text)
    for part in ("models", "comparison", "layers", "training", "config", "versions"):
        assert part in found.ids
    for title in (
        "intermediate: loss and its terms",
        "prediction: development accuracy",
        "intermediate: development accuracy of a probe",
        "Calibration",
        "Who is right",
        "Confusion of the teacher",
        "Confusion of the distilled student",
        "Attention scores",
        "Hidden states",
        "Likeness of hidden states",
        "Student layers against teacher layers",
        "Time for one text",
        "Size",
    ):
        assert f"<strong>{title}</strong>" in text
    results = commands.read(place / "task" / "eval.json")
    said = " ".join(found.words)
    for model in results["models"].values():
        assert f"{model['accuracy']:.4f}" in said
    assert "<i>no</i>" in said  # a class of that name, and no element
    assert "i" not in found.tags and "b" not in found.tags


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_same_input_gives_the_same_bytes(place):
    before = (place / "task" / "report.html").read_bytes()
    main(["report", str(place / "task")])
    assert (place / "task" / "report.html").read_bytes() == before


@pytest.mark.slow
def test_a_general_run_has_its_curves_and_layers(place, capsys):
    trained = (place / "general" / "report.html").read_text(encoding="utf-8")
    parts = [part for part in html_page.check(trained).ids if part.isalpha()]  # not of figures
    assert parts == ["layers", "training", "config", "versions"]
    assert "<strong>general: loss and its terms</strong>" in trained
    assert "Not measured: eval.py and jaxbert report do that." in trained
    main(["report", str(place / "general")])
    assert capsys.readouterr().out.splitlines()[-1] == str(place / "general" / "report.html")
    text = (place / "general" / "report.html").read_text(encoding="utf-8")
    found = html_page.check(text)
    assert "models" not in found.ids and "warnings" not in found.ids
    assert "on which the student was trained" in text
    for key in ("attention", "embedding", "hidden"):
        assert key in found.words
    assert "student before training" in found.words


@pytest.mark.slow
def test_what_is_damaged_or_gone_is_said_and_the_rest_shown(place, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(place / "task", workdir, ignore=shutil.ignore_patterns("checkpoints"))
    (workdir / "summary.json").unlink()
    (workdir / "eval.json").write_text('{"models": {"student": 3}, "metric": "accuracy"')
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "prediction", "st')
    shutil.rmtree(workdir / "models" / "teacher")
    write_report(workdir)
    text = (workdir / "report.html").read_text(encoding="utf-8")
    html_page.check(text)
    for said in ("summary.json is not there", "eval.json: not a JSON file", "1 lines are damaged"):
        assert said in text
    assert "Not measured: " in text
    assert "<strong>prediction: loss and its terms</strong>" in text


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for folder, said in ((tmp_path, "it has none of"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(SystemExit) as stopped:
            main(["report", str(folder)])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_only_metrics_are_enough(tmp_path):
    lines = [{"phase": "p", "step": s, "loss": 2.0 / s, "spike": 9.0} for s in (1, 2, 3)]
    lines += [{"phase": "p", "step": 4, "loss": float("nan"), "dev": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    html_page.check(text)
    assert "<strong>p: loss and its terms</strong>" in text
    assert "config.json is not there" in text
    assert "the loss of step 2 was a spike, 9.0 times the median" in text


def test_training_leaves_a_page_where_there_is_none_and_fails_for_none(tmp_path, capsys):
    leave_report(write_run(tmp_path))
    path = tmp_path / "report.html"
    assert "<strong>p: loss and its terms</strong>" in path.read_text(encoding="utf-8")
    path.write_text("with layers")
    leave_report(tmp_path)
    assert path.read_text() == "with layers"
    path.unlink()
    path.mkdir()
    capsys.readouterr()
    leave_report(tmp_path)
    said = capsys.readouterr().err
    assert said.startswith("warning: report.html was not written (") and said.count("\n") == 1


# --- every kind of task, and rows that are not only text ------------------------------------------


def evaluation(kind: str) -> dict:
    """What eval.json holds of a task of a kind, its rows made of markup."""
    rng = np.random.default_rng(0)
    n, names = 40, (EVIL, "$b$_1", "中文")
    texts = [f"{i} {EVIL}" for i in range(n)]
    pairs = texts if kind in ("similarity", "spans") else None
    task = Task(EVIL, "tsv:x", ("a", "b") if pairs else ("a",), names, kind=kind, scheme="none")
    both: list[Predictions]
    if kind == "classification":
        rows = Rows(texts, None, rng.integers(0, 3, n).astype(np.int32))
        both = [read_classes(rng.normal(size=(n, 3))) for _ in range(2)]
    elif kind == "multi_label":
        rows = Rows(texts, None, (rng.random((n, 3)) < 0.5).astype(np.float32))
        both = [read_labels(rng.normal(size=(n, 3))) for _ in range(2)]
    elif kind in ("regression", "similarity"):
        rows = Rows(texts, pairs, rng.random(n).astype(np.float32))
        both = [read_numbers(rng.normal(size=(n, 1))) for _ in range(2)]
    elif kind == "tagging":
        tags = [rng.integers(0, 3, 4) for _ in range(n)]
        rows = Rows(texts, None, None, [(EVIL, "b", "c", "d")] * n, tags)
        both = [Predictions([rng.integers(-1, 3, 4) for _ in range(n)], [rng.random(4)] * n)]
        both += [Predictions(tags, [rng.random(4) for _ in range(n)])]
    else:
        rows = Rows(texts, pairs, None, answers=[(Answer(0, EVIL),), ()] * (n // 2))
        both = [
            Predictions([None] * n, np.zeros(n)),
            Predictions([Answer(0, EVIL)] * n, np.zeros(n)),
        ]
    teacher, student = both
    models, compared = {}, {}
    for name, said in (("teacher", teacher), ("student", student)):
        compared[name] = comparison.compare(task, rows, said, teacher)
        column = {"accuracy": 0.5, "dev_accuracy": None, "standard_error": 0.01, "parameters": 9}
        column |= {"size_mb": 1.0, "flops": None, "milliseconds": 2.0, "retained": 1.0}
        column |= {"agreement": compared[name].pop("agreement"), "undefined": {"f1": EVIL}}
        models[name] = column | {"calibration_error": None}
    rows_found = comparison.differing(task, rows, student, teacher)
    found = {"models": models, "comparison": {"models": compared, "rows": rows_found}}
    found |= {"task": EVIL, "kind": kind, "metric": "accuracy", "left_out": {"tfidf": EVIL}}
    found |= {"examples": n, "dev_examples": n, "splits": EVIL, "flops_length": 128}
    return json.loads(json.dumps(found | {"latency_tokens": 9, "device": EVIL}))


@pytest.mark.parametrize(
    "kind", ["classification", "multi_label", "regression", "similarity", "tagging", "spans"]
)
def test_every_kind_of_task_has_a_page_on_which_rows_are_text(kind):
    config = {"phases": [EVIL], EVIL: {"trains": EVIL}, "teacher": EVIL}
    metrics = [{"phase": EVIL, "step": s, EVIL: 1.0 / s, "loss": 3.0} for s in (1, 2, 30)]
    records = Records(EVIL, config, {}, evaluation(kind), metrics, [EVIL])
    text = render(records, {"absent": EVIL})
    found = html_page.check(text)
    assert "img" not in found.tags and "\x07" not in text
    assert "\u202e" not in text  # which would have turned our own figures behind it
    assert EVIL.replace("\x07", "�").replace("\u202e", "�") in "".join(found.words)
    assert "damaged" not in text
    assert "Rows of the development part on which they differ most" in text
    drawn = {
        "classification": ("Calibration", "Who is right", "Confusion of the teacher"),
        "multi_label": ("Calibration", "Who is right", "Classes of the teacher"),
        "regression": ("Predictions of the teacher",),
        "similarity": ("Predictions of the distilled student",),
        "tagging": ("Calibration", "Confusion of the distilled student"),
        "spans": ("Who is right", "Confusion of the teacher"),
    }
    for title in drawn[kind]:
        assert title in text


def test_models_that_were_not_timed_have_no_time():
    found = evaluation("classification") | {"latency_tokens": None}
    timed = render(Records("x", {}, {}, evaluation("classification"), [], []), {})
    for model in found["models"].values():
        model["milliseconds"] = None
    untimed = render(Records("x", {}, {}, found, [], []), {})
    html_page.check(untimed)
    assert "times as fast" in timed and "Time for one text" in timed
    assert "times as fast" not in untimed and "Time for one text" not in untimed
    assert "ms: not measured" in untimed and "damaged" not in untimed


# --- records that are damaged, in every way -------------------------------------------------------


OTHERS = (None, 3, "x", [1], {"a": 1})
PHASE = {"model": "student", "steps": 3, "selected_step": 3, "seconds": 1.0, "real_tokens": 9}
PHASE |= {"fill": 1.0, "epochs": 0.1, "final": {"gradient_norm": 1.0}, "best_dev": 0.5}
SCORE = {"metric": "accuracy", "value": 0.5, "most_frequent": 0.5, "examples": 100}
FILES = {
    "config.json": {
        "phases": ["p"],
        "p": {"trains": "student", "terms": {}},
        "task": {"name": "x"},
    },
    "summary.json": {
        "phases": {"p": PHASE | {"bad_steps": 2}},
        "teacher": {"reference": "there", "dev": SCORE},
        "task": {"overlap": {"test": 1}, "cuts": {"truncated": 2}},
        "versions": {"python": "3"},
    },
}


def write_run(workdir: Path) -> Path:
    """The files of a run without models."""
    files = FILES | {"eval.json": evaluation("classification")}
    for name, content in files.items():
        (workdir / name).write_text(json.dumps(content))
    lines = [{"phase": "p", "step": s, "loss": 2.0 / s, "dev": 0.5} for s in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def test_what_a_run_met_is_said(tmp_path):
    text = write_report(write_run(tmp_path)).read_text(encoding="utf-8")
    html_page.check(text)
    for said in (
        "p: 2 steps were skipped",
        "The teacher there is not clearly better",
        "1 test rows are among the training rows",
        "2 training rows were cut",
        "Not measured: this run has no student",
    ):
        assert said in text
    assert "damaged" not in text
    assert "3, of which 3 is kept" in text


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name in FILES for key in FILES[name]]
    + [("eval.json", key) for key in ("models", "metric", "kind", "comparison", "left_out")],
)
def test_json_of_another_shape_is_no_traceback(tmp_path, monkeypatch, name, key):
    for draw in ("lines", "bars", "matrix", "against"):  # slow, and not what is tried here
        monkeypatch.setattr(page, draw, lambda *given, **more: Figure("", ""))
    content = commands.read(write_run(tmp_path) / name)
    for other in OTHERS:
        (tmp_path / name).write_text(json.dumps(content | {key: other}))
        html_page.check(render(read_records(tmp_path), {}))
    (tmp_path / name).write_text("{")
    assert f"{name}: not a JSON file" in render(read_records(tmp_path), {})


HUGE = 10**400  # JSON may say so; no float is as large


@pytest.mark.parametrize("examples", [0, HUGE], ids=["none", "huge"])
def test_a_score_of_no_or_too_many_examples_is_said_and_the_rest_shown(tmp_path, examples):
    summary = commands.read(write_run(tmp_path) / "summary.json")
    summary["teacher"]["dev"]["examples"] = examples
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = read_records(tmp_path)
    assert any("eval.json is not as it was written" in warning for warning in found.warnings)
    assert found.phases == ["p"]


def test_a_step_that_no_float_holds_is_a_damaged_line_and_such_a_value_is_none(tmp_path):
    lines = [{"phase": "p", "step": HUGE, "loss": 1.0}, {"phase": "p", "step": 4, "loss": HUGE}]
    with (write_run(tmp_path) / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    found = read_records(tmp_path)
    assert "metrics.jsonl: 1 lines are damaged and left out." in found.warnings
    assert found.curve("p", "loss")[0] == [1, 2, 3]
    html_page.check(render(found, {}))


# --- as a browser shows it ------------------------------------------------------------------------


@browser.needed
def test_a_browser_draws_it_and_what_can_be_read_in_light_can_be_in_the_dark(tmp_path):
    page, found = write_report(write_run(tmp_path)), {}
    for dark, back, ink in (
        (False, (0xFF, 0xFF, 0xFF), (0x1B, 0x1F, 0x24)),
        (True, (0x14, 0x17, 0x1B), (0xE6, 0xE9, 0xED)),
    ):
        png = tmp_path / f"{dark}.png"
        browser.screenshot(page, png, width=500, height=3000, dark=dark)
        colors = browser.colors(png)
        assert len(colors) > 50 and back in colors and ink in colors
        assert (0x00, 0x72, 0xB2) in colors and (0xD5, 0x5E, 0x00) in colors  # lines and bars
        found[dark] = browser.contrast(png)[:, :470]  # without what scrolls
    # The words of figures are among them: the two pages are laid out alike.
    light, dark = -found[False], found[True]
    assert (light >= 7).mean() > 0.01 and (dark >= 7).mean() > 0.01
    assert (dark[light >= 7] >= 4.5).all() and (light[dark >= 7] >= 3).all()
    assert (dark >= 0.99).all()  # nothing is darker than a dark page
