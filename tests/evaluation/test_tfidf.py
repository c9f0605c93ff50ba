"""The bag-of-words baseline."""

from __future__ import annotations

import time

import numpy as np
import pytest

from jaxbert.data.rows import Rows
from jaxbert.evaluation import tfidf
from jaxbert.evaluation.predictions import read_classes

TRAIN = Rows(["a fine film", "so fine", "a dull film", "so dull"], None, np.array([2, 2, 0, 0]))


def test_learns_the_words_that_matter_and_never_picks_a_class_it_never_saw():
    model = tfidf.fit("classification", TRAIN)
    logits = tfidf.logits(model, Rows(["fine", "dull, dull"], None, np.zeros(2)), num_labels=4)
    assert logits.shape == (2, 4)
    assert logits.argmax(axis=1).tolist() == [2, 0]
    scores = read_classes(logits).scores
    np.testing.assert_allclose(scores[:, [0, 2]], model.predict_proba(["fine", "dull, dull"]))
    assert not scores[:, [1, 3]].any()


def test_parameters_are_a_weight_a_feature_and_an_intercept():
    # Seen twice or more: fine, film, dull, so (one letter is no word), and no pair of words.
    assert tfidf.count_parameters(tfidf.fit("classification", TRAIN)) == 4 + 1


def test_both_texts_of_a_pair_count():
    pairs = Rows(["x", "x"], ["one", "two"], np.array([0, 1]))
    assert tfidf.texts_of(pairs) == ["x\none", "x\ntwo"]


def test_median_time_is_not_moved_by_an_outlier():
    pauses = iter([0.0, 0.002, 0.2, 0.002, 0.002])
    assert 0.002 <= tfidf.median_seconds(lambda: time.sleep(next(pauses)), rounds=4) < 0.1


def test_what_is_no_class_of_a_text_is_left_to_others():
    with pytest.raises(ValueError, match="this task is regression"):
        tfidf.fit("regression", TRAIN)
