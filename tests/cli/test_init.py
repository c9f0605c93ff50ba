"""jaxbert init: a recipe that runs, and what it refuses."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys

import commands
import pytest

from jaxbert.cli import init
from jaxbert.cli.main import main
from jaxbert.recipe import load_recipe, resolve


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("init")
    commands.write_small_teacher(root / "teacher")
    rows = [f"a {('dull', 'moving')[i % 2]} film, number {i}\t{i % 2}" for i in range(100)]
    (root / "rows.tsv").write_text("\n".join(["body\tmark", *rows]) + "\n", encoding="utf-8")
    documents = "\n\n".join(f"Film {i} is " + "rather long and " * 9 for i in range(40))
    (root / "texts.txt").write_text(documents, encoding="utf-8")
    return root


def flags(place, **more: str) -> list[str]:
    given = {"teacher": f"{place / 'teacher'}", "source": f"tsv:{place / 'rows.tsv'}"}
    given |= {"columns": "body", "label": "mark", "labels": "it's dull,moving"} | more
    return [f"--{key}={value}" for key, value in given.items()]


@pytest.mark.slow
def test_what_it_wrote_runs(place, tmp_path, cache):
    recipe = tmp_path / "films.py"
    main(["init", str(recipe), *flags(place, corpus=f"text:{place / 'texts.txt'}")])
    commands.train(f"{recipe}:smoke", tmp_path / "run", *commands.SMALL[:2], cache=cache)
    phases = commands.read(tmp_path / "run" / "summary.json")["phases"]
    assert list(phases) == ["general", "finetune", "intermediate", "prediction", "baseline"]
    student = commands.read(tmp_path / "run" / "models" / "student" / "config.json")
    assert student["id2label"] == {"0": "it's dull", "1": "moving"}


@pytest.mark.parametrize("kind", ["classification", "multi_label", "regression", "tagging"])
def test_every_kind_is_a_run(place, tmp_path, capsys, kind):
    labels = {"labels": ""} if kind == "regression" else {}
    main(["init", str(tmp_path / "own.py"), *flags(place, kind=kind, **labels)])
    config = resolve(load_recipe(str(tmp_path / "own.py")), {})
    assert (config.task.name, config.task.kind) == ("own", kind)
    assert config.task.label == "mark" and config.student.init == "teacher"
    assert f"jaxbert doctor --config={tmp_path / 'own.py'}" in capsys.readouterr().out
    lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=100"]
    subprocess.run([*lint, str(tmp_path / "own.py")], check=True, capture_output=True)


@pytest.mark.parametrize("source", ["conll:tags.conll", "squad:spans.json"])
def test_formats_that_say_their_kind_need_not_be_told(place, tmp_path, source):
    labels = "PER" if source.startswith("conll") else ""
    main(["init", str(tmp_path / "own.py"), *flags(place, source=source, labels=labels)])
    config = resolve(load_recipe(str(tmp_path / "own.py")), {})
    assert config.task.source == source and config.task.columns == ()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_no_flag_says_is_asked_on_a_terminal(place, tmp_path, monkeypatch, capsys):
    answers = [
        "",
        f"tsv:{place / 'rows.tsv'}",
        "",
        "body",
        "mark",
        "a,b",
        "tinybert6",
        "random",
        "",
    ]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(answers) + "\n"))
    main(["init", str(tmp_path / "own.py")])
    config = resolve(load_recipe(str(tmp_path / "own.py")), {})
    assert config.teacher == init._QUESTIONS["teacher"].default
    assert config.student.preset == "tinybert6" and config.student.init == "random"
    assert config.task.labels == ("a", "b") and config.corpus == ""
    assert "[tinybert4]: " in capsys.readouterr().out


def test_a_bad_answer_on_a_terminal_is_asked_again(place, tmp_path, monkeypatch, capsys):
    rows = f"tsv:{place / 'rows.tsv'}"
    first = ["", "", "tsv:none.tsv", "poetry", "text", "mark", "only", "tinybert5", "", "none"]
    # The kind, the student and the labels; source, columns and label of the rows, and again.
    again = ["", "", "dull,moving", rows, "", "", "", "body", ""]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join([*first, *again]) + "\n"))
    main(["init", str(tmp_path / "new" / "own.py")])
    config = resolve(load_recipe(str(tmp_path / "new" / "own.py")), {})
    assert config.task.source == rows and config.task.columns == ("body",)
    assert config.task.labels == ("dull", "moving") and config.corpus == ""
    out = capsys.readouterr().out
    for said in ("no recipe for 'poetry'", "1 labels", "'tinybert5' is out of range"):
        assert out.count(said) == 1, out
    assert "no file matches, none.tsv" in out and "it has 'body', 'mark'" in out


def test_who_has_no_better_answer_gets_the_error(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    with pytest.raises(SystemExit) as left:
        main(["init", str(tmp_path / "own.py"), *flags(place), "--labels=only"])
    assert left.value.code == 2 and "1 labels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--labels=only"], "1 labels"),
        (["--kind=poetry"], "no recipe for 'poetry', flag --kind; give classification, "),
        (["--kind=similarity"], "no recipe for 'similarity'"),
        (["--student=huge"], "'huge' is out of range"),
        (["--source="], "it is not given, flag --source"),
        (
            ["--source=rows.tsv"],
            "unknown source 'rows.tsv', section task; did you mean tsv:rows.tsv?",
        ),
    ],
)
def test_what_is_no_run_is_not_written(place, tmp_path, capsys, monkeypatch, given, said):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit) as left:
        main(["init", str(tmp_path / "own.py"), *flags(place), *given])
    assert left.value.code == 2 and said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(place, tmp_path, capsys):
    (tmp_path / "own.py").write_text("mine")
    for name, said in (
        ("own.py", "it is there already"),
        ("own.txt", "no recipe can be written"),
        ("own.py/b.py", "cannot be written"),
    ):
        with pytest.raises(SystemExit):
            main(["init", str(tmp_path / name), *flags(place)])
        assert said in capsys.readouterr().err
    assert (tmp_path / "own.py").read_text() == "mine"


def test_its_own_example_is_one(tmp_path, monkeypatch):
    """The command of the module's text, as it stands there, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    words = next(line for line in init.__doc__.splitlines() if line.startswith("jaxbert init"))
    parser = argparse.ArgumentParser()
    init.add_arguments(parser)
    init.run(parser.parse_args(words.split()[2:]))
    assert resolve(load_recipe("configs/reviews.py"), {}).task.labels == ("negative", "positive")
