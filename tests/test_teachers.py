"""Runs that ask their teacher before a phase, or have one with a vocabulary of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest

from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.library import Library
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import Run, run
from jaxbert.training.hashing import parameter_hash

LABELS = ("dull", "moving")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Rows, a fine-tuned teacher, and in a run's folder one with fewer pieces."""
    root = tmp_path_factory.mktemp("teachers")
    rows = [f"a {LABELS[i % 2]} film, number {i}\t{LABELS[i % 2]}" for i in range(150)]
    text = "\n".join(["text\tlabel", *rows]) + "\n"
    (root / "reviews.tsv").write_text(text, encoding="utf-8")
    shape = commands.TEACHER.replace(num_labels=2)
    teacher = commands.write_small_teacher(root / "teacher", shape, LABELS)
    fewer = shape.replace(vocab_size=5_500)
    commands.write_small_teacher(root / "run" / "models" / "other", fewer, LABELS)
    given = {
        "teacher": str(teacher),
        "task.source": f"tsv:{root / 'reviews.tsv'}",
        "task.name": "mine",
        "task.columns": "text",
        "task.label": "label",
        "task.labels": ",".join(LABELS),
        "phases": "intermediate,prediction",
        "intermediate.teacher": "given_teacher",
        "prediction.teacher": "given_teacher",
        "dtype": "float32",
        "max_length": "48",
    }
    return SimpleNamespace(root=root, given=given, other=f"run:{root / 'run'}#other")


def refusal(place, **overrides: str) -> str:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    keys["student.init"] = "random"  # is not made to be checked
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), place.given | keys)
    with pytest.raises(UserError) as error:
        run(config, place.root / "refused")
    assert not (place.root / "refused").exists()
    (line,) = error.value.lines
    return line


def test_teachers_that_cannot_teach_are_refused_before_anything_is_written(place):
    line = refusal(place, intermediate__teacher=place.other)
    assert "has another vocabulary than the student, and layers are compared" in line
    assert "config key intermediate.terms; learn from its predictions alone" in line
    line = refusal(place, prediction__teacher=place.other, prediction__teacher_cache="none")
    assert "so that it cannot read the student's batches" in line
    line = refusal(place, prediction__teacher=place.other.replace("other", "none"))
    assert "no model 'none' among other" in line


def problems(place, phases: str, given: dict[str, str]) -> list[str]:
    """What is wrong with a run of other phases."""
    kept = {k: v for k, v in place.given.items() if k.partition(".")[0] in phases.split(",")}
    kept |= {k: v for k, v in place.given.items() if k.partition(".")[0] in ("teacher", "task")}
    flags = kept | {"phases": phases, "student.init": "random", "max_length": "48"} | given
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), flags)
    return [e.line for e in Run(config, place.root / "nowhere").inspection.problems(make=False)]


def test_a_teacher_has_the_heads_that_earlier_phases_gave_it(place):
    chain = {
        "prediction.start": "intermediate",
        "again.objective": "distill",
        "again.preset": "logits",
        "again.start": "initial_student",
        "again.trains": "second",
        "again.teacher": "student",  # which comes of the phase's own start, and that of a student
        "again.steps": "2",
    }
    assert problems(place, "intermediate,prediction,again", chain) == []
    # Its phase is the one that gives the student a classifier.
    alone = {"prediction.start": "student", "prediction.teacher": "student"}
    (line,) = problems(place, "prediction", alone)
    assert line.startswith("'student' has no classifier, so that it predicts nothing")


def test_a_student_that_comes_with_a_classifier_can_teach(place):
    again = {
        "init_from": str(place.root / "teacher"),
        "student.num_layers": str(commands.TEACHER.num_layers),
        "student.hidden_size": str(commands.TEACHER.hidden_size),
        "student.num_heads": str(commands.TEACHER.num_heads),
        "student.intermediate_size": str(commands.TEACHER.intermediate_size),
        "prediction.start": "random_student",
        "prediction.trains": "again",
        "prediction.teacher": "student",
    }
    assert problems(place, "prediction", again) == []


def test_a_model_of_random_weights_has_the_pieces_of_its_run(place):
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), place.given)
    library = Library(config, place.root / "nowhere")
    assert library.foreign(library.get("random_student")) is None
    assert library.foreign(library.get(place.other)) is not None


@pytest.mark.parametrize("together", [False, True])
def test_a_model_folder_teaches_as_any_other_reference_does(place, together):
    folder = str(place.root / "teacher")
    given = "given_teacher + " * together + folder
    flags = {"intermediate.teacher": given, "prediction.teacher": given}
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), place.given | flags)
    assert config.references == (folder,)
    job = Run(config, place.root / "nowhere")
    assert not job.inspection.problems(make=False)
    assert job.library.get(folder).folder == place.root / "teacher"
    assert job.library.shapes.of(folder).num_layers == commands.TEACHER.num_layers
    flags["prediction.teacher"] = folder + "x"
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), place.given | flags)
    (error,) = Run(config, place.root / "nowhere").inspection.problems(make=False)
    assert error.line.startswith(f"no such model folder, reference '{folder}x'")


def test_a_given_teacher_with_a_classifier_labels_copies_and_one_without_does_not(place):
    flags = {"phases": "prediction", "prediction.start": "student", "student.init": "random"}
    flags |= {"prediction.data": "augmentation", "augmentation.model": "m"}
    for key in ("relabel", "filter"):
        given = {k: v for k, v in place.given.items() if not k.startswith("intermediate")}
        given |= flags | {f"augmentation.{key}": "true"}
        config = resolve(load_recipe(f"{commands.TASK}:smoke"), given)
        library = Library(config, place.root / "nowhere")
        assert not library.check()
        assert library.get("teacher") is library.given
        params = {k: v for k, v in library.given.params.items() if k != "classifier"}
        library.given = dataclasses.replace(library.given, params=params)
        (error,) = library.check()
        assert error.line == (
            "the teacher that labels copies has no classifier, and no earlier phase fine-tunes it, "
            f"config key augmentation.{key}; give false, or fine-tune it first"
        )


def test_copies_that_no_teacher_can_label_are_refused_before_one_is_trained(place):
    flags = place.given | {"phases": "finetune,prediction", "prediction.start": "student"}
    flags |= {"student.init": "random", "prediction.data": "augmentation"}
    flags = {k: v for k, v in flags.items() if not k.startswith("intermediate")}
    for changes, said in (
        ({"task.kind": "multi_label", "augmentation.relabel": "true"}, "copies of multi_label"),
        ({"augmentation.confidence": "0.5"}, "nothing is filtered by it"),
        (
            {"task.kind": "regression", "task.labels": "", "augmentation.filter": "true"},
            "copies are filtered by their class, and a number is none",
        ),
    ):
        config = resolve(
            load_recipe(f"{commands.TASK}:smoke"), flags | {"augmentation.model": "m"} | changes
        )
        (error,) = Library(config, place.root / "nowhere").check()
        assert said in error.line


def labelled(place, labels: tuple[str, ...]) -> Run:
    """A run with the teacher, its classes named otherwise."""
    teacher = place.root / "-".join(labels)
    shutil.copytree(place.root / "teacher", teacher)
    said = commands.read(teacher / "config.json")
    said["id2label"], said["label2id"] = dict(enumerate(labels)), {}
    (teacher / "config.json").write_text(json.dumps(said), encoding="utf-8")
    flags = place.given | {"teacher": str(teacher)}
    return Run(resolve(load_recipe(f"{commands.TASK}:smoke"), flags), place.root / "nowhere")


def test_classes_are_matched_by_their_names_in_any_case(place):
    job = labelled(place, ("MOVING", "Dull"))
    assert not job.inspection.problems(make=False)
    theirs = read_model(place.root / "MOVING-Dull").params["classifier"]["dense"]["kernel"]
    mine = job.library.given
    assert mine.labels == LABELS
    np.testing.assert_array_equal(mine.params["classifier"]["dense"]["kernel"], theirs[:, ::-1])


def test_classes_of_other_names_can_be_renamed(place):
    (error,) = labelled(place, ("bad", "good")).inspection.problems(make=False)
    assert "labels ('bad', 'good') are not the task's ('dull', 'moving')" in error.what
    assert error.fix.endswith(f"or rename id2label in {place.root}/bad-good/config.json")


def test_classes_that_nobody_named_are_taken_by_place(place):
    assert not labelled(place, ("LABEL_0", "LABEL_1")).inspection.problems(make=False)
    (error,) = labelled(place, ("LABEL_1", "LABEL_0")).inspection.problems(make=False)
    assert "labels ('LABEL_1', 'LABEL_0') are not the task's" in error.what


def test_two_classes_that_differ_in_case_alone_are_two():
    model = Model(commands.TEACHER, {}, ("No", "no", "yes"), Path("there"))
    assert model.class_order(("yes", "no", "No")) == [2, 1, 0]
    assert model.class_order(("no", "NO", "yes")) is None


def test_one_token_type_for_two_texts_is_said_and_not_refused(place, tmp_path, capsys):
    lines = [f"a film\tnumber {i}\t{LABELS[i % 2]}" for i in range(150)]
    rows = tmp_path / "pairs.tsv"
    rows.write_text("\n".join(["text\tmore\tlabel", *lines]) + "\n", encoding="utf-8")
    shape = commands.TEACHER.replace(num_labels=2, type_vocab_size=1)
    one = commands.write_small_teacher(tmp_path / "run" / "models" / "one", shape, LABELS)
    mine, pair = place.given["teacher"], f"tsv:{rows}"

    def said(teacher: Path | str, source: str, columns: str, learns_from: str = "given_teacher"):
        more = {"teacher": str(teacher), "task.source": source, "task.columns": columns}
        more |= {"phases": "prediction", "prediction.start": "student"}
        more |= {"prediction.teacher": learns_from}
        keys = {k: v for k, v in (place.given | more).items() if not k.startswith("intermediate")}
        config = resolve(load_recipe(f"{commands.TASK}:smoke"), keys | {"student.init": "random"})
        Run(config, tmp_path / "unused").inspection.check()
        return capsys.readouterr().err.splitlines()

    (line,) = said(one, pair, "text,more")
    assert line == (
        "warning: the teacher has one token type, so that both texts of mine get the same, "
        f"teacher {one}; give a teacher with two where the texts should differ by more than [SEP]"
    )
    reference = f"run:{tmp_path / 'run'}#one"
    (line,) = said(mine, pair, "text,more", reference)
    assert f"teacher {reference};" in line
    assert said(mine, pair, "text,more") == []  # two token types
    assert said(one, place.given["task.source"], "text") == []  # one text


def train(place, name: str, *flags: str, cache: Path) -> tuple[Path, dict]:
    workdir = place.root / name
    given = [f"--config.{key}={value}" for key, value in place.given.items()]
    given += ["--config.prediction.steps=60", *flags]
    commands.train(f"{commands.TASK}:smoke", workdir, *given, cache=cache)
    return workdir, commands.read(workdir / "summary.json")["phases"]


@pytest.mark.slow
def test_a_run_learns_the_same_from_what_its_teacher_said_before(place, tmp_path_factory, within):
    cache = commands.shared_cache(tmp_path_factory)
    none = [f"--config.{name}.teacher_cache=none" for name in ("intermediate", "prediction")]
    none.append("--config.intermediate.steps=12")
    live, asked = train(place, "live", *none, cache=cache)
    assert all(phase["teacher_cache"] is None for phase in asked.values())
    flags = ["--config.intermediate.teacher_cache=layers", "--config.data_workers=1"]
    flags.append("--config.intermediate.steps=12")
    cached, asked = train(place, "cached", *flags, cache=cache)
    count = len(list((cached / "cache").iterdir()))
    assert count == 2
    assert asked["prediction"]["epochs"] > 1  # so that it was kept by itself
    assert asked["prediction"]["teacher_cache"]["outputs"] == ["logits"]
    assert "scores/2" in asked["intermediate"]["teacher_cache"]["outputs"]
    for name, phase in asked.items():
        folder = cached / "cache" / f"taught_{name}"
        size = sum(path.stat().st_size - 128 for path in folder.glob("*.npy"))
        assert phase["teacher_cache"]["bytes"] == size
        assert phase["compilations"] == 1
    for name in ("intermediate", "student"):
        mine, theirs = (read_model(w / "models" / name).params for w in (cached, live))
        within(mine, theirs)


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_with_another_vocabulary(place, tmp_path_factory):
    cache = commands.shared_cache(tmp_path_factory)
    flags = ["--config.phases=prediction", "--config.prediction.start=student"]
    flags += [f"--config.prediction.teacher={place.other}"]
    flags += ["--config.prediction.learning_rate=1e-3"]
    given = {k: v for k, v in place.given.items() if not k.startswith("intermediate")}
    place = SimpleNamespace(root=place.root, given=given, other=place.other)
    workdir, phases = train(place, "foreign", *flags, cache=cache)
    other = read_model(place.root / "run" / "models" / "other")
    assert phases["prediction"]["teacher_hash"] == parameter_hash(other.params)
    assert phases["prediction"]["teacher_cache"]["outputs"] == ["logits"]
    student = read_model(workdir / "models" / "student")
    assert student.config.vocab_size == commands.TEACHER.vocab_size
    assert load_tokenizer(student.folder).vocab_size > other.config.vocab_size
    losses = [line["prediction"] for line in commands.metrics(workdir) if "prediction" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.slow
def test_a_teacher_in_int8_says_nearly_the_same(place, tmp_path_factory):
    cache = commands.shared_cache(tmp_path_factory)
    flags = ["--config.intermediate.steps=12", "--config.log_every=1"]
    first = {}
    for dtype in ("", "int8"):
        held = f"--config.teacher_dtype={dtype}"
        workdir, _ = train(place, f"held_{dtype}", *flags, held, cache=cache)
        losses = {}
        for line in commands.metrics(workdir):
            for term in ("hidden", "attention", "prediction"):
                if term in line:
                    losses.setdefault(term, line[term])
        first[dtype] = losses
    assert len(first["int8"]) == 3
    for term, loss in first["int8"].items():
        assert loss != first[""][term], term
        assert loss == pytest.approx(first[""][term], rel=0.02), term
