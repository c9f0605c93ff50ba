"""TF-IDF: what a model has to beat to have learnt anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import threadpoolctl
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from jaxbert.data.tasks import SIMILARITY

if TYPE_CHECKING:
    from jaxbert.data.rows import Rows


def texts_of(rows: Rows) -> list[str]:
    """One text an example: a pair's two on lines of their own."""
    if rows.pairs is None:
        return list(rows.texts)
    return [f"{text}\n{pair}" for text, pair in zip(rows.texts, rows.pairs, strict=True)]


def fit(kind: str, train: Rows) -> Pipeline:
    """Words and pairs of words seen twice or more, log counts, L2-regularised at C = 2.

    C was chosen on Rotten Tomatoes' dev split out of 0.3, 1, 2, 3, 5, 10 (0.740 to 0.760). Of
    similarity it is the vectors of words alone, which `cosines` compares.

    Raises:
      ValueError: a task of another kind, or ``train`` holds one class only, or no word twice.
    """
    if kind == SIMILARITY:
        return make_pipeline(TfidfVectorizer(sublinear_tf=True)).fit(train.single_texts.texts)
    if kind != "classification":
        raise ValueError(f"it tells classes of texts apart, and this task is {kind}")
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = make_pipeline(features, LogisticRegression(C=2.0, max_iter=1000))
    return model.fit(texts_of(train), train.labels)


def logits(model: Pipeline, rows: Rows, num_labels: int) -> np.ndarray:
    """Log probabilities, float64 [N, num_labels]; -inf for a class absent from training."""
    known = model.predict_log_proba(texts_of(rows))
    every = np.full((len(known), num_labels), -np.inf)
    every[:, model.classes_] = known
    return every


def cosines(model: Pipeline, rows: Rows) -> np.ndarray:
    """How alike the two texts of each pair are, float64 [N]."""
    first, second = model.transform(rows.texts), model.transform(rows.pairs)
    return np.asarray(first.multiply(second).sum(axis=1)).ravel()  # of length 1


def count_parameters(model: Pipeline) -> int:
    """Coefficients and intercepts; of vectors alone, a weight for each word."""
    regression = model[-1]
    if isinstance(regression, TfidfVectorizer):
        return int(regression.idf_.size)
    return int(regression.coef_.size + regression.intercept_.size)


def milliseconds(model: Pipeline, text: str, rounds: int = 100) -> float:
    """Median time from a text to its class (or its vector), on one thread."""
    run = model.predict if hasattr(model, "predict") else model.transform
    with threadpoolctl.threadpool_limits(1):
        return 1e3 * median_seconds(lambda: run([text]), rounds)


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """Median of ``rounds`` calls, after as many as a tenth to warm up."""
    for _ in range(max(rounds // 10, 1)):
        call()
    return statistics.median(_seconds(call) for _ in range(rounds))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
