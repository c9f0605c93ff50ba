"""Vocabularies with fewer pieces, against longest-match cutting written down once more."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest

from jaxbert.data.pruning import as_wordpiece, compare, count_words, prune_vocabulary
from jaxbert.data.tokenizer import WordPieceTokenizer, load_tokenizer
from jaxbert.errors import UserError

SPECIALS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_of(folder: Path, pieces: list[str]) -> WordPieceTokenizer:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *pieces]) + "\n", encoding="utf-8")
    return as_wordpiece(load_tokenizer(folder), "a test")


def longest_match(word: str, vocabulary: set[str]) -> list[str]:
    """The pieces of a word (Devlin et al. 2019), [UNK] where none fits."""
    found, rest = [], word
    while rest:
        form = "##" if found else ""
        ends = [e for e in range(1, len(rest) + 1) if form + rest[:e] in vocabulary]
        if not ends:
            return ["[UNK]"]
        found.append(form + rest[: ends[-1]])
        rest = rest[ends[-1] :]
    return found


def random_words(rng: np.random.Generator, count: int, alphabet: str) -> list[str]:
    sizes = rng.integers(1, 8, count)
    return ["".join(rng.choice(list(alphabet), size)) for size in sizes]


@pytest.mark.parametrize("seed", range(8))
def test_every_counted_word_is_cut_as_before_also_one_that_is_unknown(tmp_path, seed):
    """Single characters are missing on purpose, so that many words are [UNK]."""
    rng = np.random.default_rng(seed)
    drawn = {w[:3] for w in random_words(rng, 60, "abcd")}
    drawn |= {f"##{w[:3]}" for w in random_words(rng, 60, "abcd")}
    pieces = sorted(drawn - {"##c", "d"})
    tokenizer = tokenizer_of(tmp_path / "all", pieces)
    words = count_words(tokenizer, [" ".join(random_words(rng, 12, "abcd"))])

    small = prune_vocabulary(tokenizer, words).tokenizer

    kept = set(small.pieces) - set(SPECIALS)
    assert kept < set(pieces)
    cut = {word: longest_match(word, set(pieces)) for word in words}
    assert ["[UNK]"] in cut.values()
    for word, want in cut.items():
        assert [small.pieces[i] for i in small.encode([word])[0]] == want


def test_ids_are_the_old_ones_in_their_order_and_unused_rows_go(tmp_path):
    tokenizer = tokenizer_of(tmp_path / "all", ["film", "a", "##s", "abab", "b", "##a", "##b"])
    words = count_words(tokenizer, ["A film. FILMS, a film"])
    small, kept = prune_vocabulary(tokenizer, words)
    # "##a" and "##b" are there for words to come; "abab" is not.
    assert small.pieces[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert small.pieces[5:] == ("film", "a", "##s", "b", "##a", "##b")
    assert [tokenizer.pieces[i] for i in kept] == list(small.pieces)
    text = ["films film [SEP] a"]
    np.testing.assert_array_equal(kept[small.encode(text)[0]], tokenizer.encode(text)[0])
    small.save(tmp_path / "small")
    assert load_tokenizer(tmp_path / "small").fingerprint == small.fingerprint
    (tmp_path / "small" / "tokenizer.json").unlink()  # vocab.txt says the same
    assert load_tokenizer(tmp_path / "small").fingerprint == small.fingerprint


def test_rare_pieces_go_and_single_characters_stay(tmp_path):
    both = [form for c in "abcd" for form in (c, f"##{c}")]
    tokenizer = tokenizer_of(tmp_path / "all", [*both, "ab", "abc", "##cd", "dab", "##bad"])
    words = count_words(tokenizer, ["ab ab ab abcd abc acd"])
    small = prune_vocabulary(tokenizer, words, min_count=2).tokenizer
    assert set(small.pieces) == {*SPECIALS, *both, "ab", "abc"} - {"[unused0]"}
    found = compare(tokenizer, small, words)
    # "acd" alone was cut by a piece that is used once: a ##cd.
    assert (found.words, found.different_words) == (6, 4)
    assert (found.changed, found.different_changed) == (1, 1)
    assert (found.pieces_before, found.pieces_after) == (8, 9)
    rng = np.random.default_rng(0)
    held_out = collections.Counter(random_words(rng, 300, "abcd"))
    assert compare(tokenizer, small, held_out).unknown_after == 0


def test_a_piece_whose_characters_stand_nowhere_else_is_kept(tmp_path):
    tokenizer = tokenizer_of(tmp_path / "all", ["ax", "##x", "b", "##b", "bb", "q", "##y"])
    small = prune_vocabulary(tokenizer, count_words(tokenizer, ["b"])).tokenizer
    assert "ax" in small.pieces  # "a" has no piece of its own
    assert "bb" not in small.pieces


def test_unknown_words_are_counted(tmp_path):
    tokenizer = tokenizer_of(tmp_path / "all", ["a", "##a", "aa"])
    words = count_words(tokenizer, ["aa b b ac", "x" * 101])
    found = compare(tokenizer, prune_vocabulary(tokenizer, words).tokenizer, words)
    assert (found.words, found.unknown_before, found.unknown_after, found.changed) == (5, 4, 4, 0)


def test_other_kinds_of_tokenizers_are_refused(tmp_path):
    tokenizer = tokenizer_of(tmp_path / "all", ["a"])
    state = json.loads(tokenizer.backend.to_str())
    state["model"] = {"type": "WordLevel", "vocab": state["model"]["vocab"], "unk_token": "[UNK]"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"no WordPiece.*, model m; give"):
        as_wordpiece(load_tokenizer(tmp_path / "other"), "model m")
