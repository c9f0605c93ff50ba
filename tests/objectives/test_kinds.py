"""Every kind of head: its loss, hard and soft, against float64 NumPy; packed or not the same."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
import small
from small import STUDENT, assert_same_gradients, distillation, one_batch, visible_params

from jaxbert.batch import Batch
from jaxbert.data.packing import Examples, Marks
from jaxbert.models.bert import (
    Bert,
    BertConfig,
    class_logits,
    encode,
    head_logits,
    head_places,
    scored_groups,
)
from jaxbert.models.encoder import Collect
from jaxbert.objectives.finetuning import Finetuning, choices
from jaxbert.objectives.objective import weighted_loss

pytestmark = pytest.mark.usefixtures("matmul_highest")
LENGTHS = [9, 3, 12, 5, 7, 2, 4]
OUTPUTS = {"multi_label": 3, "regression": 1, "tagging": 4, "spans": 2}
TEMPERATURE = 2.0


def config_of(head: str) -> BertConfig:
    """A student of one layer: a kind of head is no matter of depth."""
    return STUDENT.replace(num_layers=1, projection_size=0, head=head, num_labels=OUTPUTS[head])


def examples_of(head: str) -> Examples:
    """Examples of unequal length with random labels of a kind."""
    rng = np.random.default_rng(4)
    count = len(LENGTHS)
    pieces = [rng.integers(0, STUDENT.vocab_size, n, dtype=np.int32) for n in LENGTHS]
    labels: Any = None
    marks = None
    if head == "multi_label":
        labels = rng.integers(0, 2, (count, 3)).astype(np.float32)
    elif head == "regression":
        labels = rng.normal(size=count).astype(np.float32)
    elif head == "spans":
        labels = np.sort([rng.integers(0, n, 2) for n in LENGTHS]).astype(np.int32)
    else:
        counts = [n // 2 for n in LENGTHS]
        places = [np.sort(rng.choice(n, n // 2, replace=False)) for n in LENGTHS]
        targets = rng.integers(0, 4, sum(counts), dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        marks = Marks(np.concatenate(places).astype(np.int32), targets, offsets)
    return Examples.join(pieces, labels=labels, marks=marks)


def params_of(config: BertConfig, seed: int) -> Any:
    params = visible_params(config, seed)
    return {group: params[group] for group in scored_groups(config)}


def logits_alone(config: BertConfig, params: Any, examples: Examples) -> list[np.ndarray]:
    """Each example's own logits, from a row of its own: [C], [marks, C] or [length, 2]."""
    batch = one_batch(examples, packing=False, row_length=max(LENGTHS))
    # Finite streams are shuffled, too: back into the order of the examples.
    found = np.asarray(jax.jit(lambda p, b: class_logits(config, p, b))(params, batch), np.float64)
    kept = []
    for i in range(len(examples)):
        tokens = examples.tokens[examples.offsets[i] : examples.offsets[i + 1]]
        (row,) = (r for r in range(len(found)) if _holds(batch, r, tokens))
        if config.head == "spans":
            kept.append(found[row, : len(tokens)])
        elif config.head == "tagging":
            kept.append(found[row, batch.targets[row] >= 0])
        else:
            kept.append(found[row, 0])
    return kept


def _holds(batch: Batch, row: int, tokens: np.ndarray) -> bool:
    return np.array_equal(batch.tokens[row][batch.segments[row] > 0], tokens)


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def hard(head: str, logits: list[np.ndarray], examples: Examples) -> float:
    """The loss of labels, written out from its definition."""
    if head == "tagging":
        tags = np.split(examples.marks.targets, examples.marks.offsets[1:-1])
        pairs = zip(logits, tags, strict=True)
        errors = [-log_softmax(z)[np.arange(len(t)), t] for z, t in pairs]
        return float(np.mean(np.concatenate(errors)))
    labels = examples.labels.astype(np.float64)
    if head == "multi_label":
        p = sigmoid(np.stack(logits))
        return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)))
    if head == "regression":
        return float(np.mean((np.stack(logits)[:, 0] - labels) ** 2))
    pairs = zip(logits, examples.labels, strict=True)
    return float(np.mean([-log_softmax(z, axis=0)[at, [0, 1]] for z, at in pairs]))


def soft(head: str, mine: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The loss of a teacher's logits, written out from its definition."""
    if head == "regression":
        return float(np.mean((np.stack(mine) - np.stack(theirs)) ** 2))
    a, b = ([z / TEMPERATURE for z in logits] for logits in (mine, theirs))
    if head == "multi_label":
        p, q = sigmoid(np.stack(a)), sigmoid(np.stack(b))
        return float(-np.mean(q * np.log(p) + (1 - q) * np.log(1 - p)))
    axis = 0 if head == "spans" else -1
    crossed = [
        -np.exp(log_softmax(y, axis)) * log_softmax(x, axis) for x, y in zip(a, b, strict=True)
    ]
    if head == "tagging":
        return float(np.mean(np.concatenate(crossed)))  # over choices and classes
    return float(np.mean([error.sum(axis=0) for error in crossed]))


def right(head: str, logits: list[np.ndarray], examples: Examples) -> np.ndarray:
    """Which choices are right."""
    if head == "tagging":
        return np.concatenate(logits).argmax(-1) == examples.marks.targets
    pairs = zip(logits, examples.labels, strict=True)
    made = [(z > 0 if head == "multi_label" else z.argmax(0)) == y for z, y in pairs]
    return np.concatenate(made)


@functools.cache
def compiled(config: BertConfig) -> Any:
    """Hard and soft loss and every term, and the gradients of the sum, as one program."""

    def losses(params: Any, teacher: Any, batch: Batch) -> Any:
        found, terms = [], {}
        for objective in (
            Finetuning(config),
            distillation(config, config, prediction=small.soft(config.head)),
        ):
            made = objective(params, {"teachers": (teacher,)}, batch, jax.random.key(0))
            counts = {name: term.count for name, term in made.items()}
            found.append(weighted_loss(made, counts, objective.weights(0)))
            terms |= {name: tuple(term) for name, term in made.items()}
        return sum(found), (found, terms)

    return jax.jit(jax.value_and_grad(losses, has_aux=True))


def both(config: BertConfig, params: Any, teacher: Any, batch: Batch) -> Any:
    """Hard and soft loss, the gradients of their sum, and every term."""
    (_, (found, terms)), gradients = compiled(config)(params, teacher, batch)
    return found, gradients, terms


@pytest.mark.parametrize("head", OUTPUTS)
def test_losses_are_their_definitions_however_rows_are_packed_and_cut(head, within):
    config, some = config_of(head), examples_of(head)
    student, teacher = params_of(config, 1), params_of(config, 2)
    mine, theirs = (logits_alone(config, params, some) for params in (student, teacher))
    alone = one_batch(some, packing=False, row_length=24)
    packed = one_batch(some, packing=True, row_length=24, multiple=len(LENGTHS))
    assert packed.tokens.shape == alone.tokens.shape and not packed.segments[-2:].any()

    wanted, gradients, terms = both(config, student, teacher, alone)
    within(wanted, [hard(head, mine, some), soft(head, mine, theirs)])
    if head == "regression":
        assert set(terms) == {"squared_error", "prediction"}
    else:
        made = right(head, mine, some)
        assert set(terms) == {"cross_entropy", "prediction", "accuracy"}
        assert tuple(map(float, terms["accuracy"])) == (made.sum(), made.size)
    found, others, other_terms = both(config, student, teacher, packed)
    within(found, wanted)
    within(other_terms, terms)
    assert_same_gradients(others, gradients)
    # The totals and counts of micro-batches, cut from it unequally, are the batch's.
    parts = []
    for chosen in (np.arange(7) % 2 == 0, np.arange(7) % 2 == 1):
        parts.append(both(config, student, teacher, without_rows(packed, ~chosen))[2])
    within(jax.tree.map(np.add, *parts), terms)


def without_rows(batch: Batch, empty: np.ndarray) -> Batch:
    """The batch with nothing in some of its rows."""

    def clear(name: str, x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[empty] = -1 if name == "targets" else 0
        return x

    arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{n: x if x is None else clear(n, x) for n, x in arrays.items()})


def test_an_answer_is_never_sought_in_another_example():
    """What stands beside an example in its row, however probable, takes nothing from it."""
    config = config_of("spans")
    batch = one_batch(examples_of("spans"), packing=True, row_length=24)
    logits = np.zeros((*batch.tokens.shape, 2), np.float32)
    logits[batch.segments == 2] = 50.0
    made = choices(config.head, logits, batch)
    probabilities = np.asarray(jax.nn.softmax(made.logits, axis=-1))  # [B, S, 2, T]
    for row in range(len(batch.tokens)):
        inside = batch.segments[row] == 1
        assert not probabilities[row, 0][:, ~inside].any()
        np.testing.assert_allclose(probabilities[row, 0][:, inside], 1 / inside.sum(), rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("head", OUTPUTS)
def test_where_the_last_layer_runs_changes_neither_logits_nor_gradients(head, layers, within):
    """It runs where the head reads it alone: against all positions of a layer-by-layer pass."""
    config = config_of(head).replace(num_layers=layers)
    params = params_of(config, 1)
    batch = one_batch(examples_of(head), packing=True, row_length=24)
    toward = np.random.default_rng(0).normal(size=(24, 24, OUTPUTS[head]))

    def everywhere(params: Any) -> Any:
        collect = Collect(hidden=(layers,))
        states = encode(config, params, batch, collect=collect).hidden[layers]
        if (places := head_places(config, batch)) is not None:
            states = states[np.arange(len(places))[:, None], places]
        return head_logits(config, params, states)

    def of(logits: Any) -> Any:
        def value(params: Any) -> Any:
            found = logits(params)
            rows, queries = found.shape[:2]
            return (found * toward[:rows, :queries]).sum(), found

        return jax.jit(jax.grad(value, has_aux=True))(params)

    within(of(functools.partial(class_logits, config, batch=batch)), of(everywhere))


def test_dropout_comes_before_tags_and_not_before_spans():
    for head, moved in (("tagging", True), ("spans", False)):
        config = config_of(head)
        params = params_of(config, 1)
        batch = one_batch(examples_of(head), packing=True, row_length=24)
        last = encode(config, params, batch).last_hidden

        def classify(rate: float, config=config, params=params, last=last, batch=batch) -> Any:
            return Bert(config.replace(hidden_dropout=rate)).apply(
                {"params": params},
                last,
                deterministic=not rate,
                rngs={"dropout": jax.random.key(0)},
                method="classify",
            )

        assert bool(np.any(classify(0.5) != classify(0.0))) == moved
