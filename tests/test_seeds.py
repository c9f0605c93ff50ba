"""jaxbert export --seeds: real runs that differ in their seed, and others that do not."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import commands
import pytest

from jaxbert.cli.main import main
from jaxbert.errors import UserError
from jaxbert.evaluation.evaluate import evaluate_run
from jaxbert.evaluation.seeds import other_circumstances, read_seeds
from jaxbert.files import seal
from jaxbert.interop.licence import origin, read_licence
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import run
from jaxbert.workdir import SEALED, write_json

pytestmark = pytest.mark.slow
TABLE = r"\| (\w+) \| accuracy \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| \S+ \| \S+ \|"


def write_rows(folder: Path) -> None:
    """A table of films, most of them named after what is thought of them."""
    rows = [f"a {'fine' if i % 2 else 'dull'} film {i}\t{i % 2}\n" for i in range(12)]
    (folder / "rows.tsv").write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")


def altered(source: Path, folder: Path, **config: object) -> Path:
    """The same run in another folder, as if it had had another config; models left out."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("models", "checkpoints"))
    write_json(folder / "config.json", commands.read(folder / "config.json") | config)
    seal(folder, SEALED)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache) -> Path:
    """A folder with an evaluated run of a teacher with a card, and one with another seed."""
    place = tmp_path_factory.mktemp("seeds")
    commands.write_small_teacher(place / "given", commands.TEACHER.replace(num_layers=1))
    card = "---\nlanguage: en\nlicense: other\nlicense_name: mine-1.0\n---\n# A model\n"
    (place / "given" / "README.md").write_text(card, encoding="utf-8")
    write_rows(place)
    told = {"teacher": f"{place}/given", "dtype": "float32", "max_length": "48"}
    told |= {"corpus_cache": str(cache), "task.name": "films", "task.columns": "text"}
    told |= {"task.labels": "bad,good"}
    told |= {f"task.{split}": f"tsv:{place}/rows.tsv" for split in ("source", "dev", "test")}
    config = resolve(load_recipe("configs/bert_finetune.py:smoke"), told)
    run(config, place / "run-0", command="jaxbert train --config.seed=0")
    found = evaluate_run(place / "run-0")
    other = altered(place / "run-0", place / "run-1", seed=1)
    summary = commands.read(other / "summary.json")
    write_json(other / "summary.json", summary | {"parameter_hash": "other", "versions": {}})
    seal(other, SEALED)
    found["models"]["teacher"]["accuracy"] += 0.125
    write_json(other / "eval.json", found)
    return place


def test_the_card_has_the_mean_the_spread_and_each_seed(place, tmp_path):
    runs = [place / f"run-{seed}" for seed in (0, 1, 0)]  # one may be named by a pattern, too
    main(["export", f"run:{runs[0]}#teacher", f"--to={tmp_path}/to", "--seeds", *map(str, runs)])
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(TABLE, card)
    assert [row[0] for row in rows] == ["teacher", "tfidf"]
    for name, *figures in rows:
        each = [
            commands.read(place / f"run-{seed}" / "eval.json")["models"][name]["accuracy"]
            for seed in (0, 1)
        ]
        wanted = [statistics.fmean(each), statistics.stdev(each), *each]
        assert figures == [f"{value:.4f}" for value in wanted]
    assert "| metric | mean | sd | seed 0 | seed 1 | dev | minutes |" in card
    for said in (
        "2 runs that differ in their seed alone",
        "The model here is that of seed 0. Compared with seed 0: seed 1: other versions.",
        "The scores are of the runs above",
        f"- teacher: {place}/given; licence: mine-1.0\n",
        "- command: `jaxbert train --config.seed=0`\n",
        "- data: tsv:",
        "- revision of jaxbert: ",
        "- versions: python ",
        "## Limits",
    ):
        assert said in card, said


def test_runs_of_other_recipes_are_refused_in_a_line(place, tmp_path, capsys):
    first, other = place / "run-0", place / "run-1"
    finetune = commands.read(other / "config.json")["finetune"]
    longer = altered(other, tmp_path / "longer", finetune=finetune | {"steps": 7, "clip": "none"})
    unread = altered(other, tmp_path / "unread")
    (unread / "eval.json").unlink()
    elsewhere = altered(other, tmp_path / "elsewhere")
    scores = commands.read(other / "eval.json") | {"examples": 13}
    (elsewhere / "eval.json").write_text(json.dumps(scores), encoding="utf-8")
    twice = altered(other, tmp_path / "twice", seed=0)
    unfinished = altered(other, tmp_path / "unfinished")
    for name in ("summary.json", "jaxbert.sha256"):
        (unfinished / name).unlink()
    fix = "give runs of one recipe that differ in their seed alone, from where train.py ran"
    for folder, said in (
        (
            longer,
            f"not the same recipe as {first}: finetune.steps is 2 there and 7 here, and 1 more, "
            f"{longer}; {fix}",
        ),
        (
            elsewhere,
            f"not the same recipe as {first}: examples of eval.json is 12 there and 13 here, "
            f"{elsewhere}; {fix}",
        ),
        (
            unread,
            f"the run is not evaluated, {unread}/eval.json is missing; "
            f"python eval.py --workdir={unread}",
        ),
        (
            twice,
            f"it has the seed 0 of {first}, and other parameters, {twice}; give one run a seed",
        ),
        (unfinished, f"this run is not finished, {unfinished}/summary.json is missing; run its "),
        (tmp_path / "none", f"there is no run, {tmp_path}/none, flag --seeds; give the workdirs"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["export", f"run:{first}#teacher", f"--to={tmp_path}/to", f"--seeds={folder}"])
        (line,) = capsys.readouterr().err.splitlines()
        assert left.value.code == 2 and line.startswith(f"jaxbert: error: {said}"), line
    with pytest.raises(SystemExit):
        main(["export", f"{place}/given", f"--to={tmp_path}/to", f"--seeds={other}"])
    said = capsys.readouterr().err
    assert "it is not known which run made it" in said and not (tmp_path / "to").exists()


def test_a_dtype_that_devices_chose_otherwise_is_said(place, tmp_path):
    first, other = place / "run-0", altered(place / "run-1", tmp_path / "other", dtype="bfloat16")
    said = ["seed 1: other versions, dtype"]
    assert other_circumstances(read_seeds([first, other])) == said


def test_what_runs_start_from_may_differ_in_its_seed_alone(place, tmp_path):
    first, other = place / "run-0", place / "run-1"
    given = altered(first, tmp_path / "given")
    longer = altered(other, tmp_path / "longer", max_length=50)

    def started(name: str, seed: int, teacher: str) -> Path:
        source = (first, other)[seed]
        return altered(source, tmp_path / name, init_from=teacher, teacher=teacher, seed=seed)

    good = [started("a", 0, f"run:{given}#teacher"), started("b", 1, f"run:{other}#teacher")]
    assert [one.seed for one in read_seeds(good)] == [0, 1]
    assert origin(f"run:{good[1]}") == f"{place}/given"
    assert read_licence(origin(str(good[0]))) == "mine-1.0"
    for name, teacher in (
        ("c", f"run:{other}#student"),  # another model
        ("d", f"run:{longer}#teacher"),
        ("e", str(place / "given")),
        ("f", f"run:{tmp_path}/gone#teacher"),
    ):
        with pytest.raises(UserError, match=r"not the same recipe as .*/a: teacher is 'run:"):
            read_seeds([good[0], started(name, 1, teacher)])


SWEEP = """
from jaxbert.sweep.plan import Stage, Sweep

SMALL = {"dtype": "float32", "max_length": 48}
ROWS = {"task.name": "films", "task.columns": "text", "task.labels": ("bad", "good")}
ROWS |= {f"task.{split}": "tsv:{rows}" for split in ("source", "dev", "test")}


def get_sweep(argument):
    teacher = {**SMALL, **ROWS, "teacher": "{given}"}
    student = {**SMALL, **ROWS, "teacher": "run:{teacher}#teacher", "student.num_layers": 1}
    student |= {"phases": "prediction", "prediction.teacher": "given_teacher"}
    student |= {"prediction.start": "student"}
    return Sweep(
        [
            Stage("teacher", "configs/bert_finetune.py:smoke", teacher),
            Stage("student", "configs/tinybert_task.py:smoke", student, models=["student"]),
        ],
        seeds=[0, 1],
        places={"given": "a folder with a model", "rows": "a table"},
    )
"""


def test_a_cell_of_a_sweep_is_exported_with_its_seeds(place, tmp_path, cache):
    """As docs/sweeps.md has it: each seed's student has a teacher of the same seed."""
    (tmp_path / "small.py").write_text(SWEEP, encoding="utf-8")
    root = tmp_path / "runs"

    def jaxbert(words: str) -> None:
        done = subprocess.run(
            f"{sys.executable} -m jaxbert {words}",
            shell=True,
            cwd=commands.ROOT,
            env=commands.environment(cache=cache),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    jaxbert(
        f"sweep {tmp_path}/small.py --results={tmp_path}/results.jsonl --workdir={root} --jobs=2 "
        f"--keep --set=given={place}/given --set=rows={place}/rows.tsv"
    )
    jaxbert(f"export {root}/student/seed0-*/ --to={tmp_path}/to --seeds {root}/student/seed*/")
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    assert [row[0] for row in re.findall(TABLE, card)] == ["teacher", "student", "tfidf"]
    found = commands.read(next((root / "student").glob("seed1-*/eval.json")))
    assert f"{found['models']['student']['accuracy']:.4f} |" in card
    assert f"#teacher, made from {place}/given; licence: mine-1.0" in card
    assert "- command: `jaxbert train --config=configs/tinybert_task.py:smoke --workdir=" in card
