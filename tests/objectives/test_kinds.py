"""Every kind of head: every loss against PyTorch in float64; packed or not the same."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
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
from jaxbert.objectives.distillation import Distillation
from jaxbert.objectives.finetuning import Finetuning, choices
from jaxbert.objectives.objective import weighted_loss

pytestmark = pytest.mark.usefixtures("matmul_highest")
LENGTHS = [9, 3, 12, 5, 7, 2, 4]
OUTPUTS = {"multi_label": 3, "regression": 1, "tagging": 4, "spans": 2}
LOSSES = {
    "multi_label": ("soft_cross_entropy", "kl", "mse", "labels"),
    "regression": ("mse", "labels"),
    "tagging": ("soft_cross_entropy", "kl", "mse", "dist", "labels"),
    "spans": ("soft_cross_entropy", "kl", "labels"),
}
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


def right(head: str, logits: list[np.ndarray], examples: Examples) -> np.ndarray:
    """Which choices are right."""
    if head == "tagging":
        return np.concatenate(logits).argmax(-1) == examples.marks.targets
    pairs = zip(logits, examples.labels, strict=True)
    made = [(z > 0 if head == "multi_label" else z.argmax(0)) == y for z, y in pairs]
    return np.concatenate(made)


def taught(config: BertConfig) -> Distillation:
    """Every loss that a kind of head knows, each with another weight."""
    terms = {loss: {"feature": "logits", "loss": loss} for loss in LOSSES[config.head]}
    for i, (loss, term) in enumerate(terms.items()):
        term["weight"] = 1 + 0.37 * i
        if loss in ("soft_cross_entropy", "kl", "dist"):
            term["temperature"] = TEMPERATURE
    return distillation(config, config, **terms)


@functools.cache
def compiled(config: BertConfig) -> Any:
    """The weighted sum of hard and soft losses, its gradients and every term, as one program."""
    objectives = Finetuning(config), taught(config)

    def total(params: Any, teacher: Any, batch: Batch) -> Any:
        terms, weights = {}, {}
        for objective in objectives:
            terms |= objective(params, {"teachers": (teacher,)}, batch, jax.random.key(0))
            weights |= objective.weights(0)
        counts = {name: term.count for name, term in terms.items()}
        loss = weighted_loss(terms, counts, weights)
        return loss, {name: tuple(term) for name, term in terms.items()}

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def both(config: BertConfig, params: Any, teacher: Any, batch: Batch) -> tuple[Any, Any]:
    """The gradients of the sum, and every term."""
    (_, terms), gradients = compiled(config)(params, teacher, batch)
    return gradients, terms


@pytest.mark.parametrize("head", OUTPUTS)
def test_losses_and_gradients_are_those_of_pytorch(head, within):
    torch = pytest.importorskip("torch")
    from torch_bert import TorchBert, hard_loss, head_logits_of, soft_loss

    config, some = config_of(head), examples_of(head)
    student, teacher = params_of(config, 1), params_of(config, 2)
    model = TorchBert(config, student)
    mine = head_logits_of(model, some)
    with torch.no_grad():
        theirs = head_logits_of(TorchBert(config, teacher), some)
    hard = hard_loss(head, mine, some)
    values = {
        loss: hard if loss == "labels" else soft_loss(loss, head, mine, theirs, TEMPERATURE)
        for loss in LOSSES[head]
    }
    weights = taught(config).weights(0)
    (hard + sum(weights[loss] * value for loss, value in values.items())).backward()

    gradients, terms = both(config, student, teacher, rows_alone(some))
    wanted = values | {"squared_error" if head == "regression" else "cross_entropy": hard}
    if head != "regression":
        made = right(head, [x.numpy(force=True) for x in mine], some)
        assert tuple(map(float, terms.pop("accuracy"))) == (made.sum(), made.size)
    found = {name: total / count for name, (total, count) in terms.items()}
    within(found, {name: value.item() for name, value in wanted.items()})
    within(gradients, model.gradients())
    assert_same_gradients(gradients, model.gradients())


@pytest.mark.parametrize("head", OUTPUTS)
def test_losses_are_the_same_however_rows_are_packed_and_cut(head, within):
    config, some = config_of(head), examples_of(head)
    student, teacher = params_of(config, 1), params_of(config, 2)
    alone = rows_alone(some)
    packed = one_batch(some, packing=True, row_length=24, multiple=len(LENGTHS))
    assert packed.tokens.shape == alone.tokens.shape and not packed.segments[-2:].any()

    gradients, terms = both(config, student, teacher, alone)
    others, other_terms = both(config, student, teacher, packed)
    within(other_terms, terms)
    assert_same_gradients(others, gradients)
    # The totals and counts of micro-batches, cut from it unequally, are the batch's.
    parts = []
    for chosen in (np.arange(7) % 2 == 0, np.arange(7) % 2 == 1):
        parts.append(both(config, student, teacher, without_rows(packed, ~chosen))[1])
    whole = {name: term for name, term in terms.items() if name != "dist"}  # of a whole batch
    within({name: jax.tree.map(np.add, *(part[name] for part in parts)) for name in whole}, whole)


def rows_alone(some: Examples) -> Batch:
    return one_batch(some, packing=False, row_length=24)


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
