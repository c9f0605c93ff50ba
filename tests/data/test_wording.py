"""Which words may be replaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbert.data.wording import ENGLISH, Wording, load_stop_words, match_case
from jaxbert.errors import UserError


def words(text: str, *protected: tuple[int, int], wording: Wording | None = None) -> list[str]:
    sentence = (wording or Wording()).cut(text, protected)
    return [sentence.parts[i] for i in sentence.words]


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_the_parts_of_any_text_are_the_text_and_its_words_are_letters(text, bounds):
    protected = list(zip(bounds[::2], bounds[1::2], strict=False))
    sentence = Wording().cut(text, protected)
    assert "".join(sentence.parts) == text
    for part in sentence.words:
        word, start = sentence.parts[part], sentence.start(part)
        assert text[start : start + len(word)] == word
        assert word.isascii() and word.isalpha() and word.lower() not in ENGLISH
        assert not any(a < start + len(word) and start < b for a, b in protected)


def test_words_stand_between_blanks_and_punctuation():
    assert words("The film-maker's “brave” film, isn't it?") == ["film", "maker", "brave", "film"]


@pytest.mark.parametrize("word", ["café", "4th", "x2", "naïve", "Straße", "фильм", "_name1"])
def test_a_word_with_anything_but_a_to_z_stays(word):
    assert words(f"one {word} two", wording=Wording(frozenset())) == ["one", "two"]


def test_a_protected_word_stays_where_it_is_protected_alone():
    assert words("film and film", (0, 1)) == ["film"]
    assert Wording().cut("film and film", [(0, 1)]).words == (4,)


def test_words_of_tagging_stay_one_each():
    sentence = Wording().sentence(["The", "film-maker", "of", "Brazil", "@user", "won"])
    assert [sentence.parts[i] for i in sentence.words] == ["Brazil"]


def test_stop_words_are_the_config_s(tmp_path):
    assert load_stop_words("english") == ENGLISH and not load_stop_words("none")
    (tmp_path / "mine.txt").write_text("Film\n\nplot \n", encoding="utf-8")
    mine = load_stop_words(str(tmp_path / "mine.txt"))
    assert words("The film has a plot", wording=Wording(mine)) == ["The", "has", "a"]
    with pytest.raises(UserError, match="no list of stop words 'germna'"):
        load_stop_words("germna")


def test_a_word_takes_the_case_of_the_old_one():
    cases = [match_case(old, "movie") for old in ("film", "Film", "FILM", "fiLm", "A")]
    assert cases == ["movie", "Movie", "MOVIE", "movie", "Movie"]


def test_chinese_is_replaced_by_the_words_of_a_segmenter_or_not_at_all():
    text = "我喜欢这部电影 very much"
    assert words(text) == ["much"]
    whole = Wording(frozenset({"这部", "very"}), lambda run: [run[:1], run[1:3], run[3:5], run[5:]])
    assert words(text, wording=whole) == ["我", "喜欢", "电影", "much"]
    assert "".join(whole.cut(text).parts) == text
