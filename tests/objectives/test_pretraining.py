"""Pre-training against transformers' BertForPreTraining and BertForMaskedLM on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from small import assert_same_gradients, empty_rows, loss_and_gradients, one_batch

from jaxbert.batch import Batch
from jaxbert.data.masking import MaskedBatches
from jaxbert.data.packing import Examples
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.interop.huggingface import read_model
from jaxbert.interop.layout import canonical, from_tensors
from jaxbert.objectives.pretraining import Pretraining
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.sharding import make_mesh
from jaxbert.training.step import init_state, make_step

pytestmark = pytest.mark.usefixtures("matmul_highest")
LENGTHS = [9, 5, 12, 6, 7, 20, 8]
GROUPS = ("embeddings", "encoder", "pooler", "mlm", "nsp")
LABELS = np.array([0, 1, 1, 0, -1, 1, 0], np.int32)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Any:
    """A random BertForPreTraining of transformers, in float64, and its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        pad_token_id=None,  # no row of the word table without a gradient
    )
    model = transformers.BertForPreTraining(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:  # transformers starts them at zero
                parameter.normal_(0, 0.3)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def ours(theirs) -> Any:
    return read_model(theirs[1])


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Any:
    """From a batch to the same batch with masks."""
    folder = tmp_path_factory.mktemp("pieces")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(59))]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(folder)

    def mask(batch: Batch) -> Batch:
        length = batch.tokens.shape[1]
        return MaskedBatches([batch], tokenizer, row_length=length, seed=0, rate=0.3)[0]

    return mask


def examples() -> Examples:
    """Pairs with labels for next or not, one of them not counted."""
    rng = np.random.default_rng(3)
    pieces = [rng.integers(5, 64, n, dtype=np.int32) for n in LENGTHS]
    return Examples.join(pieces, seconds=[n - n // 3 for n in LENGTHS], labels=LABELS)


def alone(masked: Any) -> Batch:
    return masked(one_batch(examples(), packing=False, row_length=max(LENGTHS)))


def trained(objective: Pretraining, params: Any) -> Any:
    return {group: params[group] for group in objective.groups}


def torch_arguments(batch: Batch, torch: Any) -> dict[str, Any]:
    """A batch of one example a row in the arguments of transformers."""
    labels = np.full(batch.tokens.shape, -100)
    rows, columns = np.nonzero(batch.targets >= 0)
    labels[rows, batch.places[rows, columns]] = batch.targets[rows, columns]
    values = {
        "input_ids": batch.tokens,
        "token_type_ids": batch.token_types,
        "attention_mask": batch.segments > 0,
        "labels": labels,
    }
    return {name: torch.from_numpy(value.astype(np.int64)) for name, value in values.items()}


@pytest.mark.parametrize("nsp", [True, False])
def test_both_terms_and_every_gradient_are_those_of_transformers(nsp, theirs, ours, masked, within):
    import torch
    import transformers

    batch = alone(masked)
    arguments = torch_arguments(batch, torch)
    if nsp:
        model = theirs[0]
        labels = batch.labels[:, 0].astype(np.int64)
        arguments["next_sentence_label"] = torch.from_numpy(np.where(labels < 0, -100, labels))
    else:
        model = transformers.BertForMaskedLM.from_pretrained(theirs[1])
    model = model.double().eval()
    model.zero_grad()
    output = model(**arguments)
    output.loss.backward()

    objective = Pretraining(ours.config, nsp=nsp)
    params = trained(objective, ours.params)
    terms = jax.jit(objective)(params, {}, batch, jax.random.key(0))
    counted = arguments["labels"] >= 0
    logits = output.prediction_logits if nsp else output.logits
    mlm = torch.nn.functional.cross_entropy(logits[counted], arguments["labels"][counted])
    within(terms["mlm"].mean(), float(mlm.detach()))
    right = (logits.argmax(-1) == arguments["labels"])[counted].double().mean()
    within(terms["mlm_accuracy"].mean(), float(right))
    if nsp:
        within(terms["nsp"].mean(), float((output.loss - mlm).detach()))
        follows = output.seq_relationship_logits.argmax(-1).numpy(force=True)[:, None]
        accuracy = (follows[:, 0] == labels)[labels >= 0].mean()
        within(terms["nsp_accuracy"].mean(), accuracy)
    loss, gradients = loss_and_gradients(objective, params, {}, batch)
    within(loss, float(output.loss.detach()))
    found = {canonical(name): x.grad.numpy() for name, x in model.named_parameters()}
    expected = from_tensors(ours.config, objective.groups, found.__getitem__)
    within(gradients, expected)
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("nsp", [True, False])
def test_packing_padding_and_empty_rows_change_no_loss_and_no_gradient(nsp, ours, masked, within):
    objective = Pretraining(ours.config, nsp=nsp)
    single = alone(masked)
    # The same masks in packed rows: where each example's piece went.
    plain = one_batch(examples(), packing=True, row_length=32)
    assert len(plain.tokens) < len(LENGTHS)
    key_of = {}  # (example, position) -> (row, column) of the packed batch
    for row, slot in np.ndindex(plain.starts.shape):
        here = np.flatnonzero(plain.segments[row] == slot + 1)
        if len(here):
            example = LENGTHS.index(len(here))
            key_of.update({(example, i): (row, column) for i, column in enumerate(here)})
    order = [LENGTHS.index(int((row > 0).sum())) for row in single.segments]
    tokens, marks = plain.tokens.copy(), [[] for _ in plain.tokens]
    for i, example in enumerate(order):
        for position in range(LENGTHS[example]):
            tokens[key_of[example, position]] = single.tokens[i, position]
        for place, target in zip(single.places[i], single.targets[i], strict=True):
            if target >= 0:
                row, column = key_of[example, int(place)]
                marks[row].append((column, target))
    most = max(map(len, marks)) + 1
    filled = np.array([m + [(0, -1)] * (most - len(m)) for m in marks], np.int32)
    packed = dataclasses.replace(
        plain, tokens=tokens, places=filled[..., 0], targets=filled[..., 1]
    )
    # A row of nothing: no place there is labelled.
    packed = empty_rows(packed, 1)
    packed.targets[-1] = -1
    wanted = loss_and_gradients(objective, trained(objective, ours.params), {}, single)
    found = loss_and_gradients(objective, trained(objective, ours.params), {}, packed)
    within(found, wanted)
    assert_same_gradients(found[1], wanted[1])
    assert float(wanted[0]) > 0


def test_micro_batches_with_unequal_masks_change_nothing(ours, masked, within):
    objective = Pretraining(ours.config, nsp=True)
    batch = masked(one_batch(examples(), packing=False, row_length=20, multiple=4))
    optimizer = make_optimizer(learning_rate=1e-3, steps=10, warmup_ratio=0.0)
    mesh = make_mesh(data=1)
    reached = []
    for accumulation in (1, 4):
        state = init_state(trained(objective, ours.params), optimizer, mesh)
        step = make_step(
            objective, optimizer, mesh, state, seed=0, phase=0, accumulation=accumulation
        )
        state, metrics = step(state, {}, batch)
        reached.append((jax.device_get(state.params), metrics["loss"].mean()))
    within(reached[1], reached[0])


def test_a_frozen_encoder_gives_the_same_terms_and_is_not_trained(ours, masked, within):
    batch = alone(masked)
    free = Pretraining(ours.config, nsp=True)
    held = Pretraining(ours.config, nsp=True, encoder_frozen=True)
    assert free.groups == ("embeddings", "encoder", "mlm", "pooler", "nsp")
    assert held.groups == ("mlm", "pooler", "nsp")
    assert Pretraining(ours.config, encoder_frozen=True).groups == ("mlm",)
    frozen = {"model": {group: ours.params[group] for group in held.frozen_groups}}
    wanted = loss_and_gradients(free, trained(free, ours.params), {}, batch)
    found = loss_and_gradients(held, trained(held, ours.params), frozen, batch)
    within(found, (wanted[0], {group: wanted[1][group] for group in held.groups}))


def test_what_is_not_labelled_counts_nowhere(ours, masked):
    objective = Pretraining(ours.config, nsp=True)
    batch = alone(masked)
    terms = jax.jit(objective)(trained(objective, ours.params), {}, batch, jax.random.key(0))
    assert float(terms["mlm"].count) == float(terms["mlm_accuracy"].count)
    assert float(terms["mlm"].count) == (batch.targets >= 0).sum() > 10
    assert float(terms["nsp"].count) == float(terms["nsp_accuracy"].count) == (LABELS >= 0).sum()
    assert set(objective.weights(0)) == {"mlm", "nsp"}
    for term in terms.values():
        assert term.total.dtype == term.count.dtype == np.float32


def test_dropout_draws_from_the_key(ours, masked):
    config = ours.config.replace(hidden_dropout=0.5)
    objective, batch = Pretraining(config), alone(masked)
    run = jax.jit(objective)
    params = trained(objective, ours.params)
    totals = {float(run(params, {}, batch, jax.random.key(s))["mlm"].total) for s in (0, 0, 1)}
    assert len(totals) == 2
