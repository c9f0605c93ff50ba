"""Tensor files: dtypes, shards, pickles, and what is damaged or hostile."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from folders import WEIGHTS, edit

from jaxbert.errors import UserError
from jaxbert.interop.huggingface import read_model


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_converted_exactly(backbone, dtype):
    half = edit(backbone, lambda t: {name: value.astype(dtype) for name, value in t.items()})
    word = read_model(backbone).params["embeddings"]["word"]
    assert word.dtype == np.float32
    np.testing.assert_array_equal(
        word.astype(np.float64), half["embeddings.word_embeddings.weight"].astype(np.float64)
    )


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_other_dtypes_are_refused(backbone, dtype):
    edit(backbone, lambda t: t | {"pooler.dense.bias": t["pooler.dense.bias"].astype(dtype)})
    with pytest.raises(UserError, match=r"'pooler\.dense\.bias' holds (F64|I32) instead"):
        read_model(backbone)


def shard(folder: Path) -> dict[str, str]:
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    places = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_shards_give_the_same_model(backbone):
    whole = read_model(backbone)
    shard(backbone)
    chex.assert_trees_all_equal(read_model(backbone).params, whole.params)


@pytest.mark.parametrize("outside", ["../other/model.safetensors", "/etc/passwd", "..", 3])
def test_an_index_cannot_point_outside_its_folder(backbone, outside):
    places = shard(backbone)
    places["pooler.dense.bias"] = outside
    (backbone / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=r"weight_map names|not a whole safetensors file"):
        read_model(backbone)


def test_a_missing_shard_is_named(backbone):
    file = sorted(shard(backbone).values())[0]
    (backbone / file).unlink()
    with pytest.raises(UserError, match=file):
        read_model(backbone)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_is_never_opened(tmp_path, backbone):
    (backbone / WEIGHTS).unlink()
    content = pickle.dumps(Payload(tmp_path / "executed"))
    (backbone / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle .*save_pretrained"):
        read_model(backbone)
    assert not (tmp_path / "executed").exists()
    pickle.loads(content)  # the payload does work
    assert (tmp_path / "executed").exists()


def test_a_missing_file_is_named(tmp_path, backbone):
    (backbone / WEIGHTS).unlink()
    with pytest.raises(UserError, match=WEIGHTS):
        read_model(backbone)
    with pytest.raises(UserError, match=r"no config\.json"):
        read_model(tmp_path / "nothing")


def test_truncated_files_are_refused(backbone):
    content = (backbone / WEIGHTS).read_bytes()
    for length in [0, 4, 8, 100, len(content) // 2, len(content) - 1]:
        (backbone / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(UserError, match=WEIGHTS):
            read_model(backbone)


def test_mutated_headers_are_refused_or_harmless(backbone):
    content = (backbone / WEIGHTS).read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    want = jax.tree.map(np.shape, read_model(backbone).params)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        mutated = bytearray(content)
        for position in rng.integers(0, header, rng.integers(1, 4)):
            mutated[position] = rng.integers(256)
        (backbone / WEIGHTS).write_bytes(mutated)
        try:
            assert jax.tree.map(np.shape, read_model(backbone).params) == want
        except UserError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("size", [2**63 - 1, 2**40, 100_000_001])
def test_a_header_that_claims_to_be_huge_is_refused(backbone, size):
    content = (backbone / WEIGHTS).read_bytes()
    (backbone / WEIGHTS).write_bytes(size.to_bytes(8, "little") + content[8:])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_model(backbone)
