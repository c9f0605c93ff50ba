"""Teachers that can be trusted, and those that a run warns of or refuses."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

from jaxbert.errors import UserError
from jaxbert.evaluation.teacher import SURE, LabelOrder
from jaxbert.interop.huggingface import read_model
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import Run, run

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
    jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
    run(config, root / "run")
    yield root
    jax.config.update("jax_disable_most_optimizations", False)


def edited(place: Path, folder: Path, labels: tuple[str, ...] | None) -> Path:
    """The fine-tuned teacher with other names of its classes; None takes the names away."""
    shutil.copytree(place / "run" / "models" / "teacher", folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"id2label": None, "label2id": None}
    if labels:
        values["id2label"] = {str(i): name for i, name in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def shuffled(folder: Path, order: list[int]) -> Path:
    """The teacher with the outputs of its classifier in another order, as other code trains it."""
    import safetensors.numpy

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


def test_shuffled_names_are_followed(place, tmp_path):
    """Outputs in another order with the names to match: the same teacher."""
    order = [2, 0, 1]
    names = tuple(COLOURS[i] for i in order)
    teacher = shuffled(edited(place, tmp_path / "teacher", names), order)
    assert read_model(teacher).labels == names
    mine, plain = job(place, teacher), job(place, place / "run" / "models" / "teacher")
    assert mine.problems() == []
    assert mine.trust_teacher().facts() == plain.trust_teacher().facts()


@pytest.mark.parametrize("names", [None, COLOURS], ids=["unnamed", "wrongly named"])
def test_an_order_that_no_name_gives_is_found_and_the_fix_works(place, tmp_path, names):
    order = [1, 2, 0]
    teacher = shuffled(edited(place, tmp_path / "teacher", names), order)
    with pytest.raises(UserError) as error:
        job(place, teacher).trust_teacher()
    (line,) = error.value.lines
    for i, colour in enumerate(COLOURS):
        theirs = order.index(i)
        assert f"{(names or ['LABEL_0', 'LABEL_1', 'LABEL_2'])[theirs]!r} is {colour!r}" in line
    assert "name them so under id2label" in line and str(teacher / "config.json") in line
    values = json.loads((teacher / "config.json").read_text())
    values["id2label"] = {str(i): COLOURS[k] for i, k in enumerate(order)}
    (teacher / "config.json").write_text(json.dumps(values))
    assert job(place, teacher).trust_teacher().value > 0.95


def test_an_unnamed_teacher_in_order_is_taken(place, tmp_path):
    assert job(place, edited(place, tmp_path / "teacher", None)).trust_teacher().value > 0.95


def test_an_untrained_teacher_is_warned_of_and_not_taken_for_shuffled(place, tmp_path, capsys):
    shape = commands.TEACHER.replace(num_layers=1, num_labels=3)
    teacher = commands.write_small_teacher(tmp_path / "teacher", shape, COLOURS)
    score = job(place, teacher).trust_teacher()
    said = capsys.readouterr().out
    assert score.order.chance > SURE
    assert ("warning: the teacher's accuracy is no better than" in said) == (not score.learnt)
    assert not score.learnt


# --- the criterion --------------------------------------------------------------------------------


def test_the_order_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(50):
        table = rng.integers(0, 9, (4, 4))
        found = LabelOrder.infer(table)
        best = max(table[range(4), list(p)].sum() for p in itertools.permutations(range(4)))
        assert table[range(4), list(found.order)].sum() == best
        if table.trace() == best:
            assert found.moved == []


@pytest.mark.parametrize("classes", [2, 3, 8, 77])
def test_a_teacher_that_guesses_is_hardly_ever_taken_for_shuffled(classes):
    """Over teachers that say some classes more often than others, without a look at the text."""
    rng, refused = np.random.default_rng(classes), 0
    for _ in range(500 if classes < 77 else 100):
        truth = rng.choice(classes, 277, p=rng.dirichlet(np.ones(classes)))
        said = rng.choice(classes, 277, p=rng.dirichlet(np.ones(classes) / 2))
        table = np.zeros((classes, classes), np.int64)
        np.add.at(table, (truth, said), 1)
        refused += LabelOrder.infer(table).chance <= SURE
    assert not refused


@pytest.mark.parametrize("accuracy", [0.55, 0.65, 0.9])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_reversed_teacher_of_two_classes_is_refused_once_it_is_sure(accuracy, reverse):
    """277 rows, as many as RTE has to develop on."""
    right = round(277 * accuracy)
    table = np.array([[right // 2, 138 - right // 2], [139 - (right - right // 2), 0]])
    table[1, 1] = right - right // 2
    found = LabelOrder.infer(table[:, ::-1] if reverse else table)
    assert (found.chance <= SURE) == (reverse and accuracy > 0.6)


def test_a_teacher_that_says_one_class_alone_is_weak_and_not_shuffled():
    """Nobody could say that the rarer class it always names is meant for the other."""
    table = np.array([[150, 0], [350, 0]])
    found = LabelOrder.infer(table)
    assert found.order == (1, 0) and found.chance > SURE


def test_two_of_many_classes_that_change_places_need_many_rows():
    table = np.diag(np.full(77, 7))
    for rows, sure in ((7, False), (60, True)):
        few = table.copy()
        few[[3, 4]] = 0
        few[3, 4] = few[4, 3] = rows
        found = LabelOrder.infer(few)
        assert found.moved == [3, 4] and (found.chance <= SURE) == sure
