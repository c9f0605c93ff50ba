"""jaxbert sweep: what a sweep file names, what is run and what is not, and the table."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

from jaxbert.cli.main import main
from jaxbert.errors import UserError
from jaxbert.recipe import load_recipe, resolve
from jaxbert.sweep.execute import Sweeper, _Processes
from jaxbert.sweep.plan import Cell, Stage, Sweep, choose, expand, load_sweep
from jaxbert.sweep.results import read_results, write_results
from jaxbert.sweep.table import make_rows, mean_rows, missing, mixed, render
from jaxbert.training.cost import fast_dtype
from jaxbert.workdir import instruction_sets

GENERAL, TASK = f"{commands.GENERAL}:smoke", f"{commands.TASK}:smoke"


def two_stages(**general) -> Sweep:
    """A general distillation and a task that starts from it."""
    task = {"init_from": "{general}", "task.source": "glue:{glue}"}
    stages = [
        Stage("general", GENERAL, general),
        Stage("task", TASK, task, models=["student"]),
    ]
    return Sweep(stages, (0, 1), {"glue": "a folder"})


def keys(sweep: Sweep) -> dict[tuple[str, int], str]:
    return {(cell.name, cell.seed): cell.key for cell in expand(sweep)}


# --- the plan ------------------------------------------------------------------------------------


def test_variants_and_the_grid_are_multiplied_and_each_cell_is_run_once_a_seed():
    grid = {"general.steps": (3, 5), "general.clip": ("none", "global")}
    variants = {"wide": {"student.hidden_size": 96}, "narrow": {"student.hidden_size": 24}}
    cells = expand(Sweep([Stage("g", GENERAL, {"max_length": 48}, variants, grid)], (7, 8)))
    names = [
        f"g/{variant}/general.steps={steps},general.clip={clip}"
        for variant in ("wide", "narrow")
        for steps in (3, 5)
        for clip in ("none", "global")
    ]
    assert [(c.name, c.seed) for c in cells] == [(name, s) for s in (7, 8) for name in names]
    assert len({cell.key for cell in cells}) == 16
    assert cells[6].overrides == {
        "max_length": "48",
        "student.hidden_size": "24",
        "general.steps": "5",
        "general.clip": "none",
        "seed": "7",
    }


def test_a_cell_is_known_by_what_its_result_depends_on_and_by_nothing_else():
    before = keys(two_stages())
    assert len(set(before.values())) == 4
    defaults = {"general.weight_decay": 0.01, "general.terms.hidden.heads": "match"}
    assert keys(two_stages(log_every=7, **defaults)) == before
    for change in (
        {"general.steps": 3},
        {"general.terms.hidden.weight": 2.0},
        {"general.terms.more.feature": "hidden"},  # a term that is all defaults
    ):
        after = keys(two_stages(**change))
        assert not set(after.values()) & set(before.values()), "also of what starts from it"


def test_every_mistake_of_a_sweep_is_found_before_anything_runs():
    stages = [
        Stage("general", GENERAL, {"general.stesp": 3}),
        Stage("general", GENERAL),
        Stage("task", TASK, {"init_from": "{genral}"}, {"a": {}, "b": {"max_length": "long"}}),
        Stage("other", "configs/tinybert_tsk.py"),
        Stage("shown", GENERAL, models=["student"]),
    ]
    with pytest.raises(UserError) as caught:
        expand(Sweep(stages, (0, 1)))
    for line, said in zip(
        caught.value.lines,
        (
            "there is no such key, cell general, config key general.stesp; did you mean steps?",
            "'general' names two, cell general; give each a name of its own",
            "'{genral}' is no earlier cell and no place, cell task/a; did you mean general?",
            "'long' is not a whole number, cell task/b, config key max_length; give a whole number",
            "there is no config file configs/tinybert_tsk.py, cell other, flag --config; did you "
            "mean configs/tinybert_task.py?",
            "a run without a task has no models to show, cell shown; remove them",
        ),
        strict=True,
    ):
        assert line == said


def test_what_the_table_cannot_show_and_seeds_that_are_there_twice_are_mistakes():
    classes = {"task.source": "{rows}", "task.columns": "text", "task.labels": ("a", "b")}
    stages = [
        Stage("task", TASK, models=["studnet", "tfidf", "teacher"], metric="acuracy"),
        Stage("number", f"{TASK},task=stsb", {}, {"a": {}, "b": {}}, {}, ["x"], "accuracy"),
        Stage("unknown", TASK, {"task.name": "mine", **classes}, models=["student"], metric="f1"),
    ]
    with pytest.raises(UserError) as caught:
        expand(Sweep(stages, (0, 1, 0, 1, 0), {"rows": "where rows lie"}))
    assert caught.value.lines == [
        "seeds are named twice: 0, 1, the sweep; give each once",
        "no phase trains 'studnet', cell task, models; did you mean student?",
        "'acuracy' is no metric of the task, cell task, metric; did you mean accuracy?",
        "no phase trains 'x', cell number/a, models; there are teacher, intermediate, student, "
        "without_distillation, tfidf",
        "'accuracy' is no metric of the task, cell number/a, metric; there are pearson_spearman, "
        "pearson, spearman",
    ]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (["0", "1"], "'0' is no whole number"),
        (list(np.arange(2)), f"{np.arange(2)[0]!r} is no whole number"),
        (7, "7 is no list of seeds"),
    ],
)
def test_seeds_that_no_result_could_hold_are_refused(seeds, said):
    """A line with one could not be written, or not be read again, once its run is at its end."""
    with pytest.raises(UserError, match=re.escape(f"{said}, the sweep; give whole numbers")):
        expand(Sweep([Stage("general", GENERAL)], seeds))
    assert len(expand(Sweep([Stage("general", GENERAL)], range(3)))) == 3


def test_cells_are_chosen_by_name_and_by_pattern():
    cells = expand(two_stages())
    assert [c.name for c in choose(cells, ["ta*"])] == ["task", "task"]
    with pytest.raises(UserError, match=r"no cell is named taks, flag --only; did you mean task\?"):
        choose(cells, ["taks", "general"])


def test_the_sweep_that_the_docs_show_has_the_cells_that_they_name(tmp_path):
    page = (commands.ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    block = re.search(r"\n\n(    from jaxbert.*?)\n\n- ", page, re.DOTALL)[1]
    (tmp_path / "shown.py").write_text(textwrap.dedent(block))
    cells = [cell for cell in expand(load_sweep(f"{tmp_path}/shown.py")) if cell.seed == 0]
    assert len(cells) == 6
    assert cells[2].name == re.search(r"`(student/cut/\S+)`", page)[1]
    assert cells[2].needs == ("teacher", "general") and cells[4].needs == ("teacher",)


def test_the_sweeps_that_are_there_can_be_run_and_share_what_they_share():
    main, ablation, recipes, small = (
        keys(load_sweep(f"benchmarks/sweeps/glue.py{argument}"))
        for argument in ("", ":ablation", ":recipes", ":small")
    )
    tasks = ("sst2", "cola", "rte", "stsb")
    rows = [f"{task}/{row}" for task in tasks for row in ("teacher", "student", "labels", "soft")]
    assert list(main) == [(name, seed) for seed in range(3) for name in ("general", *rows)]
    given = {"general", "cola/teacher", "stsb/teacher"}
    for others, shared in (
        (ablation, given),
        (recipes, given | {"cola/student", "stsb/student"}),
        (small, {f"{task}/teacher" for task in tasks}),
    ):
        assert {name for name, _ in main if main[name, 0] == others.get((name, 0))} == shared


# --- the results ---------------------------------------------------------------------------------


def record(cell: Cell, **values: float | None) -> dict:
    """A line of results with a model's metrics."""
    return {
        "sweep": "test",
        "cell": cell.name,
        "seed": cell.seed,
        "key": cell.key,
        "metric": "accuracy",
        "models": {"student": values},
        "phases": {"prediction": {"seconds": 90.0}, "baseline": {"seconds": 30.0}},
    }


def test_a_line_that_its_writer_died_in_is_gone_and_one_that_is_wrong_is_named(tmp_path):
    path, (cell, *_) = tmp_path / "results" / "x.jsonl", expand(two_stages())
    with write_results(path) as results:
        results.add(record(cell, accuracy=0.5))
        with (
            pytest.raises(UserError, match=f"another sweep is at work on these results, {path}; "),
            write_results(path),
        ):
            pass
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert read_results(path).find(cell) == record(cell, accuracy=0.5)
    with write_results(path) as results:
        results.add(record(cell, accuracy=0.75))
    assert path.read_bytes() == whole + whole.replace(b"0.5", b"0.75")
    assert read_results(path).find(cell) == record(cell, accuracy=0.75)
    path.write_bytes(whole + b"<<<<<<< HEAD\n" + whole)
    with pytest.raises(UserError, match=r"not a result: .*x\.jsonl:2; mend or remove the line"):
        read_results(path)


def test_a_last_line_that_only_lost_its_end_is_kept(tmp_path):
    path, (one, two, *_) = tmp_path / "x.jsonl", expand(two_stages())
    with write_results(path) as results:
        results.add(record(one, accuracy=0.5))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert read_results(path).find(one) == record(one, accuracy=0.5)
    with write_results(path) as results:
        assert results.find(one) == record(one, accuracy=0.5)
        assert path.read_bytes() == whole
        results.add(record(two, accuracy=0.75))
    assert path.read_bytes().startswith(whole)
    assert read_results(path).find(two) == record(two, accuracy=0.75)
    path.write_bytes(whole + b"{}")
    with pytest.raises(UserError, match=r"not a result: .*x\.jsonl:2; mend or remove the line"):
        read_results(path)


def test_a_line_is_written_whole_where_the_system_takes_a_part_at_once(tmp_path, monkeypatch):
    path, (cell, *_) = tmp_path / "x.jsonl", expand(two_stages())
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    with write_results(path) as results:
        results.add(record(cell, accuracy=0.5))
    assert json.loads(path.read_bytes()) == record(cell, accuracy=0.5)


@pytest.mark.parametrize(
    ("name", "value"), [("cell", ["x"]), ("seed", {}), ("key", None), ("sweep", [])]
)
def test_a_line_that_names_no_cell_is_no_result(name, value, tmp_path):
    path, (cell, *_) = tmp_path / "x.jsonl", expand(two_stages())
    lines = [record(cell, accuracy=0.5), record(cell, accuracy=0.5) | {name: value}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=rf"not a result: .*{name} is .*x\.jsonl:2; mend or remove"):
        read_results(path)


def test_results_that_are_a_folder_are_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["sweep", "benchmarks/sweeps/glue.py", "--show", f"--results={tmp_path}"])
    (line,) = capsys.readouterr().err.splitlines()
    said = f"cannot be read (Is a directory), {tmp_path}; give another --results"
    assert left.value.code == 2 and line == f"jaxbert: error: {said}"


def test_the_table_has_the_mean_and_the_spread_of_what_is_there(tmp_path):
    stages = [
        Stage(f"{task}/{row}", TASK, {"max_length": 32 + i}, models=["student"])
        for i, task in enumerate(("a", "b"))
        for row in ("full", "less")
    ]
    seeds = (0, 1, 2, 5)
    cells = expand(Sweep(stages, seeds))
    rng = np.random.default_rng(3)
    values = {name: rng.uniform(size=(2, 4)) for name in ("a/full", "a/less", "b/full", "b/less")}
    with write_results(tmp_path / "x.jsonl") as results:
        for cell in cells:
            test, dev = values[cell.name][:, seeds.index(cell.seed)]
            if cell.name == "b/less" and cell.seed == 1:
                continue
            undefined = cell.name == "a/less" and cell.seed == 2
            told = {"accuracy": None if undefined else test, "dev_accuracy": dev}
            results.add(record(cell, **told))
            results.add(record(dataclasses.replace(cell, key="of an earlier config"), **told))
    results = read_results(tmp_path / "x.jsonl")
    rows = make_rows(cells, results)
    rows += mean_rows(rows)
    lines = render(rows, seeds).splitlines()
    assert len({len(line) for line in lines}) == 1
    title = ["metric", "mean", "sd", *(f"seed {s}" for s in seeds), "dev", "minutes"]
    found = {line.split("  ")[0].strip(): line.split()[-8:] for line in lines[1:]}
    assert lines[0].split("  ")[-1] == "minutes" and " ".join(lines[0].split()) == " ".join(title)

    def told(test: np.ndarray, each: list[str], dev: np.ndarray, minutes: str) -> list[str]:
        figures = (np.mean(test), np.std(test, ddof=1), np.mean(dev))
        mean, spread, chosen = (f"{figure:.4f}" for figure in figures)
        return [mean, spread, *each, chosen, minutes]

    test, dev = values["a/full"]
    assert found["a/full"] == told(test, [f"{x:.4f}" for x in test], dev, "2.0")
    test, dev = np.delete(values["b/less"], 1, axis=1)
    each = [f"{x:.4f}" for x in test]
    assert found["b/less"] == told(test, [each[0], "-", *each[1:]], dev, "2.0")
    assert found["a/less"][:2] == ["-", "-"] and found["a/less"][4] == "undefined"
    both = (values["a/full"] + values["b/full"]) / 2
    assert found["full, mean of 2 tasks"] == told(
        both[0], [f"{x:.4f}" for x in both[0]], both[1], "4.0"
    )
    assert missing(cells, results) == ["missing: b/less, seed 1"]
    assert mixed(cells, results) == []
    assert results.outdated("test", cells) == 15 and results.outdated("another", cells) == 0
    table = [
        line.strip("| ").split(" | ") for line in render(rows, seeds, markdown=True).split("\n")
    ]
    assert [line[-8:] for line in table[2:]] == list(found.values())


def test_operands_that_machines_have_chosen_otherwise_are_said(tmp_path):
    cells = expand(two_stages())
    dtypes = ["float32", None, "bfloat16", *["float32"] * (len(cells) - 3)]
    with write_results(tmp_path / "x.jsonl") as results:
        for cell, dtype in zip(cells, dtypes, strict=True):
            results.add(record(cell) | ({"dtype": dtype} if dtype else {}))
    results = read_results(tmp_path / "x.jsonl")
    said = f"operands of several dtypes: bfloat16 in 2, float32 in {len(cells) - 2} results"
    assert mixed(cells, results) == [said]
    assert mixed(cells[:1], results) == mixed(cells[1:3], results) == []


def test_cells_that_leave_their_dtype_to_the_devices_are_none_that_ask_for_one():
    keys = []
    for dtype in ({}, {"dtype": ""}, {"dtype": "bfloat16"}, {"dtype": "float32"}):
        stage = Stage("one", "configs/bert_finetune.py:smoke", dtype)
        keys.append(expand(Sweep([stage], seeds=(0,)))[0].key)
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_what_was_measured_when_bfloat16_was_the_default_is_of_the_sweeps_that_ask_for_it():
    results = read_results(commands.ROOT / "docs/results/glue.jsonl")
    cells = expand(load_sweep(str(commands.ROOT / "benchmarks/sweeps/glue.py")))
    assert missing(cells, results) == []


# --- runs that sweeps share ----------------------------------------------------------------------


def write_finished(folder: Path) -> Path:
    """A run as train.py and eval.py leave it."""
    (folder / "models" / "student").mkdir(parents=True)
    (folder / "models" / "student" / "phase.json").write_text("{}")
    summary = {"phases": {}, "parameter_hash": "0", "versions": {}, "git_revision": ""}
    summary |= {"config": {"dtype": "float32"}, "devices": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "eval.json").write_text("{}")
    return folder / "models"


def sweep_once(cells: list[Cell], tmp_path: Path, results: str) -> list[Cell]:
    """A sweep with results of its own; the cells without one."""
    with write_results(tmp_path / results) as file:
        sweeper = Sweeper(results, cells, f"{tmp_path}/runs", {"glue": "data"}, file)
        return sweeper.run(sweeper.todo(cells))


@pytest.fixture
def shared():
    """The cells of a sweep that needs the first of them, and of one that has this one alone."""
    both = expand(dataclasses.replace(two_stages(), seeds=(0,)))
    return both, both[:1]


def test_a_model_stays_while_another_sweeps_run_reads_it(shared, tmp_path, monkeypatch, capsys):
    both, alone = shared
    models, seen = write_finished(Path(both[0].folder(f"{tmp_path}/runs"))), []

    def call(processes, words, *files) -> int:
        """A run of the cell that needs it, beside which the other sweep comes to its end."""
        if words[0] == "train.py":
            assert sweep_once(alone, tmp_path, "another.jsonl") == []
            write_finished(Path(both[1].folder(f"{tmp_path}/runs")))
        seen.append(models.is_dir())
        return 0

    monkeypatch.setattr("jaxbert.sweep.execute._Processes.call", call)
    assert sweep_once(both, tmp_path, "mine.jsonl") == []
    assert seen == [True, True], "train.py, and then eval.py"
    assert "waits" not in capsys.readouterr().out
    assert len(read_results(tmp_path / "another.jsonl")._records) == 1
    sweep_once(alone, tmp_path, "third.jsonl")
    assert not models.exists(), "nobody reads it any more"


def test_a_run_that_outlives_its_sweep_still_holds_what_it_reads(tmp_path):
    path = tmp_path / "x.log"
    with (tmp_path / "mine.log").open("a") as log, path.open("a") as read:
        fcntl.flock(read, fcntl.LOCK_SH)
        held = f"import os; os.fstat({read.fileno()})"
        assert _Processes(1).call(["-c", held], log, [read]) == 0


def test_a_cell_whose_model_another_sweep_has_removed_is_not_run(
    shared, tmp_path, monkeypatch, capsys
):
    both, alone = shared
    write_finished(Path(both[0].folder(f"{tmp_path}/runs")))
    monkeypatch.setattr("jaxbert.sweep.execute._Processes.call", None)
    with write_results(tmp_path / "mine.jsonl") as file:
        sweeper = Sweeper("mine", both, f"{tmp_path}/runs", {"glue": "data"}, file)
        todo = sweeper.todo([both[1]])
        assert todo == [both[1]], "what it needs is there"
        sweep_once(alone, tmp_path, "another.jsonl")
        assert sweeper.run(todo) == [both[1]]
    said = "FAILED, the models of general were removed meanwhile: run it again"
    assert said in capsys.readouterr().out


def test_a_run_with_another_default_is_no_result(shared, tmp_path, capsys):
    """Its line was removed, as it has to be; its folder is that of the cell as it is now."""
    _, (cell,) = shared
    folder = Path(cell.folder(f"{tmp_path}/runs"))
    write_finished(folder)
    config = resolve(load_recipe(GENERAL), cell.overrides).to_dict()
    path = folder / "summary.json"
    for warmup, lacking in ((0.75, [cell]), (config["general"]["warmup_ratio"], [])):
        config["general"]["warmup_ratio"] = warmup
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
        assert sweep_once([cell], tmp_path, "mine.jsonl") == lacking
    said = f"FAILED, its run has general.warmup_ratio=0.75, no longer the default: remove {folder}"
    assert said in capsys.readouterr().out


# --- the command ---------------------------------------------------------------------------------

FILE = """
from jaxbert.sweep.plan import Stage, Sweep

SMALL = {"dtype": "float32", "max_length": 48}
ROWS = {"task.name": "films", "task.columns": "text", "task.labels": ("bad", "good")}
ROWS |= {f"task.{split}": "tsv:{rows}" for split in ("source", "dev", "test")}


def get_sweep(argument):
    finetune = "configs/bert_finetune.py:smoke"
    given = {**SMALL, **ROWS, "teacher": "{given}"}
    student = {"max_length": 48, "corpus": "text:{rows}", "teacher": "run:{teacher}#teacher"}
    student |= {"student.num_layers": 1}
    return Sweep(
        [
            Stage("teacher", finetune, given, models=["teacher", "tfidf"]),
            Stage("student", "configs/tinybert_general.py:smoke", student),
            Stage("broken", finetune, {**given, "task.source": "tsv:none.tsv"}),
            Stage("after", finetune, {**given, "teacher": "run:{broken}"}),
        ],
        seeds=[3],
        places={"given": "a folder with a model", "rows": "a table"},
    )
"""


@pytest.fixture
def sweep(tmp_path):
    """The words of the command, on a small teacher and a dozen of rows."""
    config = commands.TEACHER.replace(num_layers=1)
    teacher = commands.write_small_teacher(tmp_path / "given", config)
    rows = [f"a {'fine' if i % 2 else 'dull'} film {i}\t{i % 2}\n" for i in range(12)]
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "".join(rows))
    (tmp_path / "small.py").write_text(FILE)
    words = [f"{tmp_path}/small.py", f"--results={tmp_path}/results.jsonl"]
    places = [f"--set=given={teacher}", f"--set=rows={tmp_path}/rows.tsv"]
    return [*words, f"--workdir={tmp_path}/runs", *places]


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_stop_and_a_failure_and_runs_nothing_twice(
    sweep, tmp_path, tmp_path_factory, capsys, monkeypatch
):
    def start(*more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "jaxbert", "sweep", *sweep, *more],
            cwd=commands.ROOT,
            env=commands.environment(cache=commands.shared_cache(tmp_path_factory)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def found() -> dict[str, dict]:
        path = tmp_path / "results.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line["cell"]: line for line in map(json.loads, lines)}

    def log(name: str) -> Path:
        paths = list((tmp_path / "runs" / name).glob("seed3-????????.log"))
        return paths[0] if paths else Path("none")

    stopped = start()
    while stopped.poll() is None and not log("student").exists():
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    said, warned = stopped.communicate(timeout=300)
    assert stopped.returncode == 75, said + warned
    assert warned == "interrupted and saved: run the same command again\n"
    assert list(found()) == ["teacher"]
    before = log("teacher").read_bytes()

    said, warned = (again := start("--jobs=2")).communicate(timeout=300)
    assert again.returncode == 1, said + warned
    assert "] broken, seed 3: FAILED, train.py ended with 2:" in said
    assert "jaxbert: error: no file matches, none.tsv; " in said
    assert "] after, seed 3: left out, it needs broken" in said
    assert list(found()) == ["teacher", "student"] and log("teacher").read_bytes() == before

    teacher, student = (log(name).with_suffix("") for name in ("teacher", "student"))
    line, evaluation = found()["teacher"], commands.read(teacher / "eval.json")
    assert line["models"] == evaluation["models"] and line["metric"] == "accuracy"
    assert line["phases"]["finetune"]["steps"] == 2 and line["overrides"]["seed"] == "3"
    assert "--config.task.source=tsv:{rows}" in line["command"]
    assert not any(str(tmp_path) in str(line) for line in found().values())
    summary = commands.read(student / "summary.json")
    assert found()["student"]["parameter_hash"] == summary["parameter_hash"]
    # The one was told its operands' dtype, the other chose it.
    chosen = fast_dtype(jax.devices()[0], instruction_sets())
    assert [found()[name]["dtype"] for name in ("teacher", "student")] == ["float32", chosen]
    assert summary["config"]["dtype"] == chosen
    # What another cell starts from stays.
    assert (teacher / "models/teacher").is_dir() and not (student / "models").exists()
    assert not (teacher / "checkpoints").exists() and not (student / "checkpoints").exists()

    monkeypatch.chdir(commands.ROOT)
    main(["sweep", *sweep, "--only", "teacher", "student"])  # in this process: nothing is run
    assert list(found()) == ["teacher", "student"] and log("teacher").read_bytes() == before
    _, *rows = capsys.readouterr().out.strip().splitlines()
    for row, name in zip(rows, ("teacher", "tfidf"), strict=False):
        value = f"{line['models'][name]['accuracy']:.4f}"
        assert row.split()[:4] == ["teacher:", name, "accuracy", value]
