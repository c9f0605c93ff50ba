"""Sentence pairs read back piece by piece against the spans that they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbert.data.examples import Examples
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pairs import NEXT, RANDOM, UNPAIRED, SentencePairs
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    "!",
    "?",
    *(f"w{i}" for i in range(60)),
]
ENDS = (5, 6, 7)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return load_tokenizer(folder)


def spans(lengths, sentences=0.1, seed=0) -> Examples:
    """[CLS] words and, at times, the end of a sentence [SEP]; every word names its place."""
    rng = np.random.default_rng(seed)
    out = []
    for length in lengths:
        words = rng.integers(8, 68, length)
        words[rng.random(length) < sentences] = rng.choice(ENDS)
        out.append(np.array([2, *words, 3], np.int32))
    return Examples.join(out)


def example(some: Examples, index: int) -> list[int]:
    return some.tokens[some.offsets[index] : some.offsets[index + 1]].tolist()


def contains(text: list[int], part: list[int]) -> bool:
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def check_pair(made: Examples, index: int, source: Examples, own: int, documents) -> None:
    """Asserts that one pair is what its label says, made of the span ``own``."""
    tokens, span = example(made, index), example(source, own)
    assert len(tokens) == len(span)
    label, second = int(made.labels[index]), int(made.seconds[index])
    if label == UNPAIRED:
        assert tokens == span and second == len(span) < 5
        return
    a, b = tokens[1 : second - 1], tokens[second:-1]
    assert tokens[0] == 2 and tokens[second - 1] == tokens[-1] == 3 and a and b
    assert a == span[1 : 1 + len(a)]
    kept = len(span) - 3
    middle = range(-(-kept // 4) or 1, 3 * kept // 4 + 1)
    cuts = [c for c in middle if 1 <= c < kept and span[c] in ENDS]
    near = min(cuts, key=lambda c: (abs(c - kept // 2), c)) if cuts else kept // 2
    assert len(a) == near
    if label == NEXT:
        assert b == span[1 + len(a) : -2]
        return
    others = [i for i in range(len(source)) if documents[i] != documents[own]]
    assert any(contains(example(source, i)[1:-1], b) for i in others)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=2, max_size=30),
    sentences=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 9),
)
def test_every_pair_is_what_its_label_says(pieces, lengths, sentences, seed):
    source = spans(lengths, sentences, seed)
    documents = np.arange(len(lengths)) * 3 // len(lengths)
    pairs = SentencePairs(source, documents, pieces, seed=seed)
    np.testing.assert_array_equal(pairs.lengths, source.lengths)
    ids = np.random.default_rng(seed).integers(0, len(lengths), 40)
    made = pairs.gather(ids)
    assert made.labels.dtype == made.seconds.dtype == made.tokens.dtype == np.int32
    for index, own in enumerate(ids):
        check_pair(made, index, source, own, documents)


def test_half_of_the_pairs_have_a_second_text_from_another_document(pieces):
    source = spans([40] * 4_000)
    documents = np.arange(4_000) // 10
    made = SentencePairs(source, documents, pieces, seed=1).gather(np.arange(4_000))
    assert abs((made.labels == RANDOM).mean() - 0.5) < 4 * 0.5 / np.sqrt(4_000)
    assert set(made.labels.tolist()) == {NEXT, RANDOM}


def test_second_texts_from_elsewhere_begin_behind_a_sentence_where_the_cut_is_behind_one(pieces):
    """As the following ones do: the form must not give the answer away."""
    source = spans(np.random.default_rng(1).integers(20, 60, 600))
    made = SentencePairs(source, np.arange(600), pieces, seed=1).gather(np.arange(600))
    text = source.tokens.tolist()
    behind = 0
    for index in np.flatnonzero(made.labels == RANDOM).tolist():
        tokens, second = example(made, index), int(made.seconds[index])
        if tokens[second - 2] in ENDS:
            (start,) = (i for i in range(len(text)) if text[i : i + 5] == tokens[second:][:5])
            assert text[start - 1] in ENDS
            behind += 1
    assert behind > 200


def test_a_pair_is_a_function_of_seed_and_example(pieces):
    source, documents = spans(range(5, 105)), np.arange(100)
    pairs = SentencePairs(source, documents, pieces, seed=1)
    whole = pairs.gather(np.arange(100))
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = rng.integers(0, 100, 7)
        some = SentencePairs(source, documents, pieces, seed=1).gather(ids)
        for index, own in enumerate(ids):
            assert example(some, index) == example(whole, own)
            assert some.labels[index] == whole.labels[own]
    other = SentencePairs(source, documents, pieces, seed=2)
    assert (other.gather(np.arange(100)).labels != whole.labels).any()
    assert other.sha256 != pairs.sha256 != source.sha256


def test_what_has_no_span_as_long_elsewhere_is_left_as_it_is(pieces):
    source = spans([80, *[2] * 50])
    pairs = SentencePairs(source, np.arange(51), pieces, seed=0)
    assert all(pairs.gather(np.array([0])).labels[0] == NEXT for _ in range(3))
    assert (pairs.gather(np.arange(1, 51)).labels == UNPAIRED).all()


def test_pairs_are_packed_as_their_spans_are(pieces):
    source, documents = spans([3, 9, 30, 14, 2, 25, 8] * 6), np.arange(42)
    pairs = SentencePairs(source, documents, pieces, seed=3)
    arguments = {"batch_size": 8, "row_length": 64, "seed": 5}
    plain, paired = PackedBatches(source, **arguments), PackedBatches(pairs, **arguments)
    for step in range(12):
        np.testing.assert_array_equal(plain.example_ids(step), paired.example_ids(step))
        before, after = plain[step], paired[step]
        np.testing.assert_array_equal(before.segments, after.segments)
        ids = paired.example_ids(step)
        whole = pairs.gather(ids[ids >= 0])
        np.testing.assert_array_equal(after.labels[ids >= 0], whole.labels)
        np.testing.assert_array_equal(after.tokens[after.segments > 0], whole.tokens)
        assert after.token_types.any()


def test_one_document_alone_makes_no_pairs(pieces):
    with pytest.raises(UserError, match="more than one document"):
        SentencePairs(spans([20, 20]), np.zeros(2, int), pieces, seed=0)


def test_more_spans_than_an_int32_can_name_are_refused(pieces):
    class Many:
        def __len__(self) -> int:
            return 2**31

    with pytest.raises(UserError, match="2,147,483,648 spans are more than the 2,147,483,647"):
        SentencePairs(Many(), np.zeros(2, np.int64), pieces, seed=0)
