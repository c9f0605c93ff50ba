"""Folders as ``write_model`` makes them, for each test to spoil: without their seal."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import BACKBONE, CONFIG, PIECES, random_params

from jaxbert.data.tokenizer import Tokenizer, load_tokenizer
from jaxbert.files import SEAL
from jaxbert.interop.huggingface import write_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return load_tokenizer(folder)


@pytest.fixture
def backbone(tmp_path, tokenizer) -> Path:
    folder = tmp_path / "backbone"
    write_model(folder, CONFIG, random_params(CONFIG, BACKBONE), (), tokenizer)
    (folder / SEAL).unlink()
    return folder


@pytest.fixture
def masked(tmp_path, tokenizer) -> Path:
    folder = tmp_path / "masked"
    groups = (*BACKBONE, "mlm", "nsp")
    write_model(folder, CONFIG, random_params(CONFIG, groups), (), tokenizer)
    (folder / SEAL).unlink()
    return folder
