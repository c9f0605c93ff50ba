"""A student as TinyBERT's authors released theirs: continued, and written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import safetensors.numpy
from folders import WEIGHTS, write_released

from jaxbert.cli.main import main
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.interop.layout import canonical
from jaxbert.models.bert import BertConfig
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import Run, run

SHAPE = BertConfig(6_000, 24, 2, 12, 48, 64, projection_size=48, projection_per_layer=True)
RATE = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A teacher 48 wide, the student with a projection for each hidden state, and a corpus."""
    root = tmp_path_factory.mktemp("released")
    commands.write_small_teacher(root / "teacher")
    (root / "student").mkdir()
    write_released(root / "student", SHAPE, scale=0.1)
    (root / "student" / "vocab.txt").write_bytes((root / "teacher" / "vocab.txt").read_bytes())
    text = "\n\n".join(f"The film number {i} is long. So is the night." for i in range(30))
    (root / "corpus.txt").write_text(text, encoding="utf-8")
    return root


def config(root: Path, **overrides: str) -> Any:
    given = {
        "teacher": f"{root}/teacher",
        "init_from": f"{root}/student",
        "corpus": f"text:{root}/*.txt",
        "corpus_cache": f"{root}/cache",
        "dtype": "float32",
        "max_length": "32",
        "mesh.data": "1",
        "student.hidden_size": "24",
        "student.intermediate_size": "48",
        "student.projection": "layer",
        "general.learning_rate": str(RATE),
    }
    given |= {key.replace("__", "."): value for key, value in overrides.items()}
    return resolve(load_recipe(f"{commands.GENERAL}:smoke"), given)


def test_it_is_continued_with_its_projections_and_keeps_its_layout(root, tmp_path):
    summary = run(config(root), tmp_path / "run")
    assert np.isfinite(summary["phases"]["general"]["final"]["loss"])
    before = safetensors.numpy.load_file(root / "student" / WEIGHTS)
    after = safetensors.numpy.load_file(tmp_path / "run" / "models" / "student" / WEIGHTS)
    fits = {f"fit_denses.{i}.{end}" for i in range(3) for end in ("weight", "bias")}
    assert {name for name in after if name.startswith("fit")} == fits
    for name in (*fits, "bert.encoder.layer.1.output.dense.weight"):
        moved = np.abs(after[name] - before[name]).max()
        # Adam moves a parameter by its rate at most, and it is decayed a little.
        assert 0 < moved < 3 * RATE, name
    assert after["fit_denses.0.weight"].shape == (48, 24)


def test_the_documented_command_goes_on_with_it(root):
    (words,) = (w for w in commands.documented("docs/shapes.md") if "task=sst2" in " ".join(w))
    flags = dict(w.removeprefix("--config.").split("=", 1) for w in words if "--config." in w)
    assert flags.pop("init_from") == "models/tinybert_general"
    flags |= {"teacher": f"{root}/teacher", "init_from": f"{root}/student", "max_length": "32"}
    flags |= {"student.hidden_size": "24", "student.intermediate_size": "48"}
    flags |= {"student.num_layers": "2", "mesh.data": "1"}
    made = resolve(load_recipe(f"{commands.TASK}:paper"), flags)  # on the task that is here
    found = [error.line for error in Run(made, root / "nowhere").inspection.problems(make=False)]
    assert found == []


@pytest.mark.parametrize("exported", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_written_again_is_every_tensor_of_it(root, tmp_path, exported):
    model, tokenizer = read_model(root / "student"), load_tokenizer(root / "student")
    folder = tmp_path / "m"
    if exported:
        main(["export", f"{root}/student", f"--to={folder}", "--format=tinybert"])
        folder = folder / "tinybert"
    else:
        write_model(folder, model.config, model.params, (), tokenizer, layout="tinybert")
    released = safetensors.numpy.load_file(root / "student" / WEIGHTS)
    written = safetensors.numpy.load_file(folder / WEIGHTS)
    not_parameters = {"bert.embeddings.position_ids", "cls.predictions.decoder.weight"}
    mine = {canonical(name): tensor for name, tensor in written.items()}
    theirs = {canonical(k): v for k, v in released.items() if k not in not_parameters}
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(mine[name], tensor, err_msg=name)
    assert set(written) - set(released) == {
        name.replace("gamma", "weight").replace("beta", "bias")
        for name in released
        if name.endswith(("gamma", "beta"))
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"student__projection": "shared"},
            "projection is 'shared', and in the student of {}/student 'layer', config key "
            "student.projection ({}/teacher is the teacher); give 'layer', or another init_from",
        ),
        (
            {"student__projection_rank": "4"},
            "projection_rank is 4, and in the student of {}/student 0, config key student.",
        ),
        (
            {"teacher": "{}/narrow"},
            "its projection leads into a width of 48, and the model that it learns from is 36 "
            "wide, the student of {}/student; give the teacher that it was made for",
        ),
    ],
)
def test_projections_of_another_kind_are_refused(root, tmp_path, overrides, said):
    if not (root / "narrow").exists():
        narrow = commands.TEACHER.replace(hidden_size=36)
        commands.write_small_teacher(root / "narrow", narrow)
    overrides = {key: value.format(root) for key, value in overrides.items()}
    with pytest.raises(UserError) as error:
        run(config(root, **overrides), tmp_path / "run")
    (line,) = error.value.lines
    assert said.format(root, root) in line
