"""jaxbert.mteb: what the real MTEB makes of a model, where mteb is installed.

What mteb and what it imports warn of is theirs.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from scipy.stats import spearmanr
from small import visible_params

import jaxbert
from jaxbert.data.rows import Rows
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.interop.huggingface import write_model

WORDS = ("a", "film", "of", "rare", "warmth", "and", "no", "wit", "told", "by", "people", "there")


@pytest.fixture(scope="module")
def library():
    """The real mteb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.syspath_prepend(str(commands.ROOT / "benchmarks"))
        yield pytest.importorskip("mteb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model with a classifier, as the runs leave them."""
    root = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(commands.write_vocabulary(root / "vocabulary"))
    config = commands.TEACHER.replace(num_labels=2)
    write_model(root / "small", config, visible_params(config, 1), ("no", "yes"), tokenizer)
    return root / "small"


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 30, count)]


@pytest.mark.filterwarnings("default")
def test_mteb_finds_of_pairs_what_jaxbert_says_of_them(library, folder, tmp_path):
    from mteb_sts import LocalPairs

    from jaxbert.mteb import MTEBEncoder

    firsts, seconds = texts(40, 0), texts(40, 1)
    alike = np.random.default_rng(2).uniform(0, 5, 40)
    rows, served = Rows(firsts, seconds, alike), jaxbert.load(folder, max_length=16)
    cache = library.ResultCache(tmp_path)
    found = library.evaluate(MTEBEncoder(served), LocalPairs(rows), cache=cache)
    (scores,) = found.task_results[0].scores["test"]
    one, two = (served.encode(side, normalize=True) for side in (firsts, seconds))
    wanted = spearmanr((one * two).sum(1), alike).statistic
    for name in ("spearman", "cosine_spearman"):
        assert scores[name] == pytest.approx(wanted, abs=1e-6)
    # What is kept of a model is not said of another: cut elsewhere, it is one.
    other = MTEBEncoder(jaxbert.load(folder, max_length=8))
    again = library.evaluate(other, LocalPairs(rows), cache=cache)
    assert again.task_results[0].scores["test"][0]["spearman"] != scores["spearman"]
    assert other.mteb_model_meta.name == "jaxbert/small"
    with pytest.raises(UserError, match="embeddings are float32, and not int8"):
        words = {"precision": "int8"}
        library.evaluate(other, LocalPairs(rows), cache=None, encode_kwargs=words)


@pytest.mark.filterwarnings("default")
def test_mteb_fits_a_classifier_on_the_embeddings(library, folder):
    """And takes the model for an encoder, though it has a head that predicts."""
    import datasets
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    from jaxbert.mteb import MTEBEncoder

    class LocalClasses(AbsTaskClassification):
        metadata = TaskMetadata(
            name="LocalClasses",
            description="Which of two words there is.",
            type="Classification",
            dataset={"path": "local", "revision": "1"},
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
        )
        n_experiments = 2

    labels = [i % 2 for i in range(60)]
    items = [f"{text} {('wit', 'rare')[i]}" for i, text in zip(labels, texts(60, 3), strict=True)]
    made = datasets.Dataset.from_dict({"text": items, "label": labels})
    task = LocalClasses()
    task.dataset = {"default": {"train": made, "test": made}}
    task.data_loaded = True
    found = library.evaluate(MTEBEncoder(jaxbert.load(folder), "mine/small"), task, cache=None)
    assert found.model_name == "mine/small"
    (scores,) = found.task_results[0].scores["test"]
    assert 0.6 < scores["accuracy"] <= 1


def test_without_mteb_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.abs_encoder", None)
    monkeypatch.delitem(sys.modules, "jaxbert.mteb", raising=False)
    with pytest.raises(UserError, match=r'jaxbert\.mteb; pip install "jaxbert\[mteb\]"'):
        importlib.import_module("jaxbert.mteb")
