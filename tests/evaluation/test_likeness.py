"""Layers held against each other, against the definitions in float64 NumPy."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import small

from jaxbert.batch import Batch
from jaxbert.evaluation import likeness
from jaxbert.evaluation.likeness import linear_cka, measure, unexplained
from jaxbert.interop.huggingface import Model
from jaxbert.models.bert import encode
from jaxbert.models.encoder import Collect


def by_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """CKA as Kornblith et al. 2019 define it: HSIC of the N x N kernels, normalised."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = (np.float64(z) @ np.float64(z).T for z in (x, y))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return np.trace(k @ centre @ m @ centre) / (n - 1) ** 2

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12)).astype(np.float32) + 3
    y = x[:, :8] @ rng.normal(size=(8, 20)) + rng.normal(size=(200, 20))
    return x, y.astype(np.float32)


def test_cka_is_that_of_the_kernels(states):
    x, y = states
    assert linear_cka(x, y) == pytest.approx(by_kernels(x, y), rel=1e-10)
    assert 0.2 < linear_cka(x, y) < 0.9


def test_cka_knows_neither_turns_nor_scales_nor_places(states):
    x, y = (z.astype(np.float64) for z in states)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    assert linear_cka(x, 5 * x @ turn + 7) == pytest.approx(1.0)
    assert linear_cka(5 * x @ turn + 7, y) == pytest.approx(linear_cka(x, y))


def test_what_a_linear_map_leaves_is_that_of_least_squares(states):
    x, y = states
    with_one = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    rest = y - with_one @ np.linalg.lstsq(with_one, y.astype(np.float64))[0]
    share = np.square(rest).sum() / np.square(y - y.mean(axis=0, dtype=np.float64)).sum()
    assert unexplained(x, y) == pytest.approx(share, rel=1e-9)
    twice = np.column_stack([x, x])  # of half the rank
    assert unexplained(twice, y) == pytest.approx(share, rel=1e-6)
    assert unexplained(x, x @ np.ones((12, 3))) == pytest.approx(0, abs=1e-9)


def models() -> tuple[Model, Model]:
    teacher = Model(small.TEACHER, small.visible_params(small.TEACHER, 2), (), Path("teacher"))
    student = Model(small.STUDENT, small.visible_params(small.STUDENT, 1), (), Path("student"))
    return teacher, student


def packed(*, packing: bool = True) -> Batch:
    """The same examples for all, so that little is compiled."""
    return small.one_batch(small.examples([9, 14, 5, 17, 12]), packing=packing, row_length=24)


def test_every_layer_is_measured_on_real_tokens(matmul_highest):
    teacher, student = models()
    found = measure(teacher, {"student": student}, [packed()], ((1, 2), (2, 3)))["student"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["tokens"] == 57 and found["pairs"] == [[0, 0], [1, 2], [2, 3]]
    # One example a row, layer by layer, and the padding left out by hand.
    batch = packed(packing=False)
    hidden, scores = [], []
    for model in (student, teacher):
        layers = tuple(range(model.config.num_layers))
        collect = Collect(hidden=(*layers, len(layers)), scores=layers)
        out = jax.jit(functools.partial(encode, model.config, collect=collect))(model.params, batch)
        real = np.asarray(batch.segments) > 0
        hidden.append([np.asarray(out.hidden[i])[real] for i in (*layers, len(layers))])
        scores.append([np.asarray(out.scores[i], np.float64) for i in layers])
    for (s, t), rest, cka in zip(found["pairs"], found["hidden"], found["cka"], strict=True):
        assert cka == pytest.approx(by_kernels(hidden[0][s], hidden[1][t]), abs=1e-5)
        assert rest == pytest.approx(unexplained(hidden[0][s], hidden[1][t]), abs=1e-5)
    assert np.shape(found["matrix"]) == (3, 4)
    assert found["matrix"][1][3] == pytest.approx(by_kernels(hidden[0][1], hidden[1][3]), abs=1e-5)
    both = real[:, None, :, None] & real[:, None, None, :]
    for (s, t), gap in zip(found["pairs"][1:], found["attention"], strict=True):
        squares = np.square(scores[0][s - 1] - scores[1][t - 1])
        assert gap == pytest.approx(
            np.mean(squares[np.broadcast_to(both, squares.shape)]), rel=1e-4
        )


def test_a_model_is_its_own_likeness():
    teacher, _ = models()
    found = measure(teacher, {"same": teacher}, [packed()], ((2, 2), (3, 3)))["same"]
    assert found["attention"] == [0, 0]
    assert found["cka"] == pytest.approx([1] * 3)
    assert found["hidden"] == pytest.approx([0] * 3, abs=1e-9)


def test_reading_stops_in_time_and_heads_that_are_not_as_many_are_averaged(monkeypatch):
    teacher, student = models()
    student = Model(student.config.replace(num_heads=2), student.params, (), student.folder)
    batch = packed()
    monkeypatch.setattr(likeness, "TOKENS", 90)  # of 57 a batch

    def batches():
        yield from (batch, batch)
        raise AssertionError("read on")

    found = measure(teacher, {"student": student}, batches(), ((1, 2), (2, 3)))["student"]
    assert found["tokens"] == 90
    assert all(gap > 0 for gap in found["attention"])
