"""Teachers that can be trusted, and what `jaxbert doctor` says of them and of a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxbert.cli.main import main
from jaxbert.doctor.environment import shortages
from jaxbert.doctor.estimate import StepCost
from jaxbert.doctor.forecast import PhaseForecast
from jaxbert.errors import UserError
from jaxbert.evaluation.teacher import SURE, TeacherScore
from jaxbert.files import SEAL
from jaxbert.interop.huggingface import read_model
from jaxbert.models.bert import count_parameters
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import Run, run
from jaxbert.training.hashing import parameter_hash

PHASES = ("intermediate:", "prediction:", "baseline:")
COLOURS = ("red", "green", "blue")
ONE = {"mesh.data": "1", "student.num_layers": "1", "student.init": "random"}
WORDS = ("the", "film", "was", "a", "long", "house", "of", "water")


def describe(place: Path, **more: str) -> dict[str, str]:
    """The overrides of a run on the colours."""
    task = {
        "name": "colours",
        "source": f"tsv:{place / 'colours.tsv'}",
        "columns": "text",
        "labels": ",".join(COLOURS),
    }
    given = {f"task.{key}": value for key, value in task.items()}
    small = dict(word.removeprefix("--config.").split("=") for word in commands.SMALL)
    more = {key.replace("__", "."): value for key, value in more.items()}
    return {
        "teacher": str(place / "pretrained"),
        **small,
        **given,
        "max_length": "16",
        **ONE,
        **more,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Texts that hold the name of a colour, which is their label, and a teacher that learns it."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    lines = ["text\tlabel"]
    for _ in range(900):
        words, colour = list(rng.choice(WORDS, 4)), rng.choice(COLOURS)
        words.insert(rng.integers(5), colour)
        lines.append(f"{' '.join(words)}\t{colour}")
    (root / "colours.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shape = commands.TEACHER.replace(num_layers=1, initializer_range=0.1)
    commands.write_small_teacher(root / "pretrained", shape)
    steps = {"finetune__steps": "50", "finetune__eval_every": "0"}
    rate = {"finetune__learning_rate": "3e-3"}
    config = resolve(load_recipe(commands.TASK), describe(root, phases="finetune", **steps, **rate))
    run(config, root / "run")
    return root


def edited(place: Path, folder: Path, labels: tuple[str, ...] | None) -> Path:
    """The fine-tuned teacher with other names of its classes; None takes the names away."""
    shutil.copytree(place / "run" / "models" / "teacher", folder)
    (folder / SEAL).unlink()
    values = json.loads((folder / "config.json").read_text())
    values |= {"id2label": None, "label2id": None}
    if labels:
        values["id2label"] = {str(i): name for i, name in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def shuffled(folder: Path, order: list[int]) -> Path:
    """The teacher with the outputs of its classifier in another order, as other code trains it."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = np.ascontiguousarray(tensors[name][order])
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    return folder


def job(place: Path, teacher: Path) -> Run:
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), describe(place, teacher=str(teacher)))
    return Run(config, place / "unused")


# --- what a run says of its teacher ---------------------------------------------------------------


def test_a_good_teacher_is_scored_in_one_line_and_in_the_summary(place, tmp_path, capsys):
    teacher = place / "run" / "models" / "teacher"
    given = describe(place, teacher=str(teacher), phases="finetune")  # which is skipped
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), given)
    found = run(config, tmp_path / "run")["teacher"]["dev"]
    # Independent of the predictions: the text says its class by itself.
    assert found["metric"] == "accuracy" and found["value"] > 0.95
    confusion = np.array(found["confusion"])
    assert confusion.sum() == found["examples"]
    assert confusion.trace() / confusion.sum() == found["value"]
    assert found["most_frequent"] == confusion.sum(axis=1).max() / confusion.sum()
    assert found["order"] == [0, 1, 2]
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("teacher: ")]
    assert line.startswith(f"teacher: accuracy {found['value']:.4f} on {found['examples']}")


def trusted(run: Run) -> TeacherScore:
    """The score of the only teacher of a run."""
    (score,) = run.inspection.trust_teachers().values()
    return score


def test_shuffled_names_are_followed(place, tmp_path):
    """Outputs in another order with the names to match: the same teacher."""
    order = [2, 0, 1]
    names = tuple(COLOURS[i] for i in order)
    teacher = shuffled(edited(place, tmp_path / "teacher", names), order)
    assert read_model(teacher).labels == names
    mine, plain = job(place, teacher), job(place, place / "run" / "models" / "teacher")
    assert mine.inspection.problems() == []
    assert trusted(mine).facts() == trusted(plain).facts()


@pytest.mark.parametrize("names", [None, COLOURS], ids=["unnamed", "wrongly named"])
def test_an_order_that_no_name_gives_is_found_and_the_fix_works(place, tmp_path, names):
    order = [1, 2, 0]
    teacher = shuffled(edited(place, tmp_path / "teacher", names), order)
    with pytest.raises(UserError) as error:
        trusted(job(place, teacher))
    (line,) = error.value.lines
    for i, colour in enumerate(COLOURS):
        theirs = order.index(i)
        assert f"{(names or ['LABEL_0', 'LABEL_1', 'LABEL_2'])[theirs]!r} is {colour!r}" in line
    assert "name them so under id2label" in line and str(teacher / "config.json") in line
    values = json.loads((teacher / "config.json").read_text())
    values["id2label"] = {str(i): COLOURS[k] for i, k in enumerate(order)}
    (teacher / "config.json").write_text(json.dumps(values))
    assert trusted(job(place, teacher)).value > 0.95


def test_an_unnamed_teacher_in_order_is_taken(place, tmp_path):
    assert trusted(job(place, edited(place, tmp_path / "teacher", None))).value > 0.95


def test_an_untrained_teacher_is_warned_of_and_not_taken_for_shuffled(place, tmp_path, capsys):
    shape = commands.TEACHER.replace(num_layers=1, num_labels=3)
    teacher = commands.write_small_teacher(tmp_path / "teacher", shape, COLOURS)
    score = trusted(job(place, teacher))
    said = capsys.readouterr().out
    assert score.order.chance > SURE
    assert not score.learnt
    assert "warning: the teacher's accuracy is not clearly better than" in said


# --- jaxbert doctor -------------------------------------------------------------------------------


def flags(place: Path, **more: str) -> list[str]:
    overrides = describe(place, **more)
    return [f"--config={commands.TASK}:smoke", *(f"--config.{k}={v}" for k, v in overrides.items())]


def doctor(capsys, place: Path, **more: str) -> tuple[int, str, list[str]]:
    """The exit code, what was printed, and the errors of a command, which are numbered from 1."""
    code = 0
    try:
        main(["doctor", *flags(place, **more)])
    except SystemExit as left:
        code = int(str(left.code))
    out, err = capsys.readouterr()
    errors = []
    for count, line in enumerate(err.splitlines(), 1):
        prefix = f"jaxbert: error: {count}. "
        assert line.startswith(prefix), err
        errors.append(line.removeprefix(prefix))
    return code, out, errors


def test_the_command_says_what_the_run_would_be(place):
    """As a user types it, of a teacher that the run fine-tunes itself; nothing is written."""
    before = sorted(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "jaxbert", "doctor", *flags(place), f"--workdir={place / 'new'}"],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(place.rglob("*")) == before
    lines = done.stdout.splitlines()
    values = read_model(place / "pretrained")
    assert "teacher head: none; the phase finetune makes one" in lines
    assert f"teacher hash: {parameter_hash(values.params)}" in lines
    assert "teacher vocabulary: 6,000 pieces, uncased; text is put in lower case, " in done.stdout
    assert "student projection: one, to width 48" in lines
    phases = [line for line in lines if line.startswith("phase ")]
    assert [line.split()[1] for line in phases] == ["finetune:", *PHASES]
    # An encoder and embeddings as they are, and a classifier of three classes.
    count = count_parameters(values.params) + 3 * 48 + 3
    assert f"trains teacher, parameters {count:,}, frozen 0, batch " in phases[0]
    assert lines[-1] == "nothing stands against this run"


def test_a_shuffled_teacher_is_told_with_its_confusion_matrix(place, tmp_path, capsys):
    order = [1, 2, 0]
    teacher = shuffled(edited(place, tmp_path / "teacher", None), order)
    code, out, errors = doctor(capsys, place, teacher=str(teacher))
    assert code == 2 and "classes stand in another order" in errors[0] and len(errors) == 1
    assert "teacher head: classification (bert): LABEL_0, LABEL_1, LABEL_2" in out
    assert "rows of the class red: said LABEL_0 " in out
    assert "label order: the best is LABEL_2 is red, LABEL_0 is green, LABEL_1 is blue" in out


def test_every_problem_is_told_at_once(place, capsys):
    wrong = {"max_length": "65", "student__num_heads": "6", "corpus": "nowhere:x"}
    code, _, errors = doctor(capsys, place, **wrong)
    assert code == 2 and len(errors) == 2
    assert any("max_length = 65 is beyond the 64 positions" in line for line in errors)
    assert any("6 attention heads" in line for line in errors)
    code, _, errors = doctor(capsys, place, mesh__nothing="3", student__num_layer="1")
    assert code == 2 and len(errors) == 2, "keys that there are not are numbered, too"


def test_a_vocabulary_of_other_texts_or_casing_is_doubted(place, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    shutil.copytree(place / "pretrained", teacher)
    (teacher / "tokenizer.json").unlink()
    options = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps(options | {"do_lower_case": False}))
    stop = {"max_length": "65"}  # refused: nothing is timed
    _, out, _ = doctor(capsys, place, teacher=str(teacher), **stop)
    assert "uncased; text is left in its case" in out
    assert "the vocabulary has no capital letters and the tokenizer leaves them" in out
    pieces = (teacher / "vocab.txt").read_text(encoding="utf-8").splitlines()
    foreign = [piece for piece in pieces if piece.startswith("[") or not piece.isascii()]
    (teacher / "vocab.txt").write_text("\n".join(foreign) + "\n", encoding="utf-8")
    _, out, errors = doctor(capsys, place, teacher=str(teacher), **stop)
    doubts = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert any(". the vocabulary does not know the task's texts" in line for line in doubts)
    with pytest.raises(SystemExit):
        main(["doctor", "--json", *flags(place, teacher=str(teacher), **stop)])
    found = json.loads(capsys.readouterr().out)["findings"]
    said = [f"{one['number']}. {one['what']}, {one['where']}; {one['fix']}" for one in found]
    assert said == [f"{count}. {line}" for count, line in enumerate(errors, 1)] + [
        line.removeprefix("warning: ") for line in doubts
    ]


@pytest.mark.slow
def test_a_teacher_with_one_token_type_for_two_texts_is_doubted(place, tmp_path, capsys):
    rows = (place / "colours.tsv").read_text(encoding="utf-8").splitlines()[1:]
    pairs = ["text\tmore\tlabel", *(row.replace(" ", "\t", 1) for row in rows)]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    shape = commands.TEACHER.replace(num_layers=1, type_vocab_size=1)
    teacher = commands.write_small_teacher(tmp_path / "teacher", shape)
    two = {"task__source": f"tsv:{tmp_path / 'pairs.tsv'}", "task__columns": "text,more"}
    stop = {"max_length": "65"}  # refused: nothing is timed
    _, out, _ = doctor(capsys, place, teacher=str(teacher), **two, **stop)
    doubt = "warning: 2. the teacher has one token type, so that both texts of colours get the same"
    assert f"{doubt}, teacher {teacher}; give" in out
    _, out, _ = doctor(capsys, place, **two, **stop)
    assert "token type" not in out


def test_as_json_findings_are_numbered_and_nothing_else_is_printed(place, capsys):
    wrong = {"max_length": "65", "student__num_heads": "6", "corpus": "nowhere:x"}
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--json", *flags(place, **wrong)])
    found = json.loads(capsys.readouterr().out)
    assert left.value.code == 2
    assert [one["number"] for one in found["findings"]] == [1, 2]
    for one in found["findings"]:
        assert one["kind"] == "error" and one["what"] and one["where"] and one["fix"]
    assert found["phases"] == []
    assert found["environment"]["devices"].startswith(f"{jax.device_count()} cpu (")
    assert "free" in found["environment"]["disk"]
    assert any(line.startswith("teacher hash: ") for line in found["lines"])
    with pytest.raises(SystemExit):
        main(["doctor", "--json", *flags(place, mesh__nothing="3")])
    (one,) = json.loads(capsys.readouterr().out)["findings"]
    assert "mesh.nothing" in one["where"] + one["what"]


def test_what_there_is_not_enough_of_is_a_warning(place, tmp_path):
    cost = StepCost(1, 1, 1, 1, 1, 1, 1, 1)
    huge = PhaseForecast("p", "student", cost, 1, 1, 1, 1 << 60, 1, 1.0, 1 << 60)
    disk, memory = shortages(tmp_path / "new", [huge])
    assert "of disk, and" in disk.what and disk.fix and str(tmp_path) in disk.where
    assert "of memory, and" in memory.what and "p.accumulation=2" in memory.fix
    small = dataclasses.replace(huge, memory=1, disk=1)
    assert shortages(tmp_path / "new", [small]) == []
