"""configs/bert_pretrain.py: a head on an encoder, and a BERT from nothing."""

from __future__ import annotations

import re
from pathlib import Path

import commands
import jax
import numpy as np
import pytest

from jaxbert.data.heldout import held_out
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.fill_mask import check_masked_lm
from jaxbert.interop.huggingface import read_model
from jaxbert.library import Library
from jaxbert.models.bert import last_states, masked_lm_logits, next_sentence_logits
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import Run, run
from jaxbert.training.hashing import parameter_hash

PRETRAIN = "configs/bert_pretrain.py"
NAMES = ("anna", "bert", "carl", "dora", "emil", "fay")
THINGS = ("apples", "books", "cards", "dogs")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """Fine-tuned: with a classifier, and without a masked-LM head."""
    folder = tmp_path_factory.mktemp("given") / "teacher"
    config = commands.TEACHER.replace(num_labels=2)
    return commands.write_small_teacher(folder, config, ("bad", "good"))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Documents of a language that is easily learned."""
    rng = np.random.default_rng(0)
    documents = [
        " ".join(f"{rng.choice(NAMES)} has many {rng.choice(THINGS)} ." for _ in range(12))
        for _ in range(1_500)
    ]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def headed(tmp_path_factory, teacher, text) -> Path:
    """A head on a frozen encoder, with next sentences."""
    workdir = tmp_path_factory.mktemp("runs") / "mlm"
    given = (f"--config.teacher={teacher}", f"--config.corpus=text:{text}")
    flags = (*commands.SMALL, *given, "--config.pretrain.nsp=true")
    commands.train_here(f"{PRETRAIN}:frozen,smoke", workdir, *flags)
    return workdir


@pytest.fixture(scope="module")
def scratch(tmp_path_factory, text) -> Run:
    """A small BERT from nothing but that text."""
    given = {
        "dtype": "float32",
        "max_length": "40",
        "corpus": f"text:{text}",
        "num_documents": "0",
        "vocab_size": "100",
        "mesh.data": "1",
        "log_every": "20",
        "pretrain.steps": "120",
        "pretrain.batch_size": "16",
        "pretrain.eval_every": "60",
        "pretrain.learning_rate": "3e-3",
        "pretrain.whole_words": "true",
    }
    config = resolve(load_recipe(f"{PRETRAIN}:scratch,smoke"), given)
    workdir = tmp_path_factory.mktemp("runs") / "scratch"
    run(config, workdir)
    return Run(config, workdir)


def test_a_frozen_encoder_keeps_every_bit_and_gets_its_heads(headed, teacher):
    before, after = read_model(teacher), read_model(headed / "models" / "student")
    assert set(after.params) == {"embeddings", "encoder", "pooler", "mlm", "nsp"}
    for group in ("embeddings", "encoder"):
        assert parameter_hash(after.params[group]) == parameter_hash(before.params[group])
    assert np.abs(after.params["mlm"]["bias"]).max() > 0
    phase = commands.read(headed / "models" / "student" / "phase.json")
    assert set(phase["held_out"]) == {
        *("mlm", "mlm_accuracy", "nsp", "nsp_accuracy", "pieces", "most_frequent_accuracy")
    }
    assert commands.read(headed / "summary.json")["phases"]["pretrain"] == phase
    lines = [line for line in commands.metrics(headed) if "dev" in line]
    assert [line["step"] for line in lines] == [1, 2]


def test_transformers_computes_the_same_of_what_is_written(headed, within):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = headed / "models" / "student"
    theirs, info = transformers.BertForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert transformers.AutoConfig.from_pretrained(folder).architectures == ["BertForPreTraining"]
    job = Run(resolve(commands.read(headed / "config.json"), {}), headed)
    model, batch = read_model(folder), job.data.measured(job.config.sections["pretrain"])[0]

    @jax.jit
    def logits(params, batch):
        places = [batch.places, batch.starts]
        _, (masked, first) = last_states(model.config, params, batch, places)
        words = masked_lm_logits(model.config, params, masked)
        return words, next_sentence_logits(model.config, params, first)

    with jax.default_matmul_precision("highest"):
        words, follows = logits(model.params, batch)
    compared = 0
    for row, slot in np.ndindex(batch.starts.shape):
        here = np.flatnonzero(batch.segments[row] == slot + 1)
        if not len(here):
            continue
        ids, types = (
            torch.from_numpy(x[row, here][None].astype(np.int64))
            for x in (batch.tokens, batch.token_types)
        )
        with torch.no_grad():
            want = theirs.eval()(input_ids=ids, token_type_ids=types)
        within(follows[row, slot], want.seq_relationship_logits[0].numpy())
        inside = np.flatnonzero(np.isin(batch.places[row], here) & (batch.targets[row] >= 0))
        at = batch.places[row, inside] - here[0]
        within(words[row, inside], want.prediction_logits[0, at].numpy())
        compared += len(inside)
    assert compared > 20


@pytest.mark.slow
def test_a_bert_from_nothing_learns_its_language_and_has_a_vocabulary_of_it(scratch):
    """Names and things are guesses, one in six and one in four; the rest is certain."""
    folder = scratch.workdir / "models" / "student"
    model, tokenizer = read_model(folder), load_tokenizer(folder)
    assert {*NAMES, *THINGS, "has", "many"} <= set(tokenizer.pieces)
    assert tokenizer.fingerprint == load_tokenizer(scratch.workdir / "vocabulary").fingerprint
    assert model.config.vocab_size == tokenizer.vocab_size <= 100
    assert model.config.max_position_embeddings == 40
    found = commands.read(folder / "phase.json")["held_out"]
    certain = (3 + 1 / len(NAMES) + 1 / len(THINGS)) / 5
    assert found["most_frequent_accuracy"] < 0.3
    assert certain - 0.15 < found["mlm_accuracy"] < certain + 0.1
    assert set(model.params) == {"embeddings", "encoder", "pooler", "mlm"}


@pytest.mark.slow
def test_a_vocabulary_is_kept_given_or_that_of_the_model_that_is_continued(
    scratch, teacher, tmp_path
):
    assert scratch.library.tokenizer_folder == scratch.workdir / "vocabulary"
    mine, theirs = scratch.library.tokenizer.fingerprint, load_tokenizer(teacher).fingerprint

    def library(**given: object) -> Library:
        recipe = load_recipe(f"{PRETRAIN}:scratch,smoke") | given
        return Library(resolve(recipe, {"max_length": "40"}), tmp_path)

    given = library(vocabulary=str(teacher))
    assert given.tokenizer.fingerprint == theirs
    assert given.shapes.of("student").vocab_size == given.tokenizer.vocab_size
    continued = library(init_from=str(scratch.workdir))
    assert continued.tokenizer.fingerprint == mine and not continued.check()
    other = library(init_from=str(scratch.workdir), vocabulary=str(teacher))
    (error,) = other.check()
    assert re.search(r"vocabulary is not the config's \(id \d+ is '.+', and '.+'\)", error.line)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_measured_document_is_among_those_trained_on(scratch):
    phase = scratch.config.sections["pretrain"]
    out = held_out(scratch.data.corpus.documents)
    assert len(scratch.data.packed(phase, 1).source) == (~out).sum() > 0
    measured = scratch.data.measured(phase)
    assert sum(batch.weights.sum() for batch in measured) == out.sum() == 2 * 15


def test_a_model_without_a_head_is_told_a_command_that_trains_one(headed, teacher):
    check_masked_lm(read_model(headed / "models" / "student").params, str(headed))
    with pytest.raises(UserError, match="has no masked-LM head") as error:
        check_masked_lm(read_model(teacher).params, "pkg:encoder")
    flags = dict(re.findall(r"--([\w.]+)=([^\s,]+)", error.value.line))
    assert flags.pop("workdir") == "runs/mlm"
    config = resolve(load_recipe(flags.pop("config")), {k[7:]: v for k, v in flags.items()})
    assert config.teacher == "pkg:encoder"
    assert config.sections["pretrain"].start == "given_teacher"


def test_a_corpus_of_too_few_documents_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "one.txt").write_text("Two documents.\n\nNo more.", encoding="utf-8")
    given = {"corpus": f"text:{tmp_path}/one.txt", "max_length": "16"}
    config = resolve(load_recipe(f"{PRETRAIN}:scratch,smoke"), given)
    with pytest.raises(UserError, match="2 documents are too few"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
