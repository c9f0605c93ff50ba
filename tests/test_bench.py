"""jaxbert bench: what is counted and timed of models, in each library."""

from __future__ import annotations

import json
from pathlib import Path

import commands
import pytest
from small import visible_params

from jaxbert.cli.main import main
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.evaluation.flops import forward_flops
from jaxbert.interop.huggingface import write_model
from jaxbert.models.bert import count_parameters

pytest.importorskip("onnxruntime")
CONFIG = commands.TEACHER.replace(num_labels=3)  # 64 positions


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """One, and one of twice the layers."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(commands.write_vocabulary(root / "vocabulary"))
    for name, layers in (("one", 3), ("two", 6)):
        config = CONFIG.replace(num_layers=layers)
        write_model(root / name, config, visible_params(config, 1), "abc", tokenizer)
    return [root / "one", root / "two"]


@pytest.mark.slow
def test_models_are_counted_and_timed_where_they_can_read_the_text(models, capsys):
    words = ["--lengths=16,128", "--rounds=3", "--batch=2", "--backends=jax,onnx-int8", "--json"]
    main(["bench", *map(str, models), *words])
    found = json.loads(capsys.readouterr().out)
    one = found["models"][str(models[0])]
    params = visible_params(CONFIG, 1)
    assert one["parameters"] == count_parameters(params)
    table = count_parameters(params["embeddings"])
    assert one["parameters_without_embeddings"] == count_parameters(params) - table
    assert one["flops"]["16"] == forward_flops(CONFIG, 16)
    rows = [(row["model"], row["backend"]) for row in found["measured"]]
    assert rows == [(str(m), b) for m in models for b in ("jax", "onnx-int8")]
    for row in found["measured"]:
        assert 0 < row["p50_ms"]["16"] <= row["p90_ms"]["16"]
        assert row["texts_per_second"]["16"] > 0
        for key in ("p50_ms", "p90_ms", "texts_per_second"):
            assert row[key]["128"] is None, "64 positions"
    plain, small = (row["bytes"] for row in found["measured"][:2])
    assert plain == (models[0] / "model.safetensors").stat().st_size > 3 * small
    assert {"jax", "onnxruntime"} <= set(found["versions"]) and found["batch"] == 2


@pytest.mark.slow
def test_the_tables_have_every_model_in_every_library(models, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    main(["bench", str(models[0]), "--lengths=8,016", "--rounds=2", "--batch=2"])
    said = capsys.readouterr().out
    for name in ("jax", "onnxruntime", "onnx-int8", "torch"):
        assert sum(line.split()[1:2] == [name] for line in said.splitlines()) == 3, said
    assert "left out" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lengths=0"], "'0' are no lengths, flag --lengths"),
        (["--rounds=0"], "less than one, flags --batch and --rounds"),
        (["--backends=tflite"], "unknown library 'tflite', flag --backends; give some of jax,"),
    ],
)
def test_mistakes_are_one_line(models, capsys, words, said):
    with pytest.raises(SystemExit) as left:
        main(["bench", str(models[0]), *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith(f"jaxbert: error: {said}")
