"""The whole model: its sizes, its configuration's errors, packing and padding."""

from __future__ import annotations

import dataclasses
import functools
import math

import chex
import jax
import numpy as np
import pytest
from reference import Example, bert, random_params, rows, slices, tiny

from jaxbert.batch import MASKED
from jaxbert.errors import UserError
from jaxbert.models.bert import (
    PRESETS,
    Bert,
    BertConfig,
    class_logits,
    count_parameters,
    groups_of,
    init_params,
)
from jaxbert.models.encoder import Collect

EXAMPLES = [
    Example([2, 7, 8, 3], 4),
    Example([2, 9, 3, 10, 11, 3], 3),
    Example([2, 3], 2),
    Example([2, 12, 13, 14, 15, 16, 3, 17, 3], 7),
]
ALONE = [[example] for example in EXAMPLES]
PACKED = [[EXAMPLES[0], EXAMPLES[3], EXAMPLES[2]], [EXAMPLES[1]]]
ORDER = [0, 3, 2, 1]  # of PACKED


@pytest.mark.parametrize(
    ("preset", "changes", "count"),
    [
        ("tinybert4", {}, 14_350_248),
        ("tinybert4", {"projection_size": 768}, 14_590_632),
        ("tinybert4", {"projection_size": 768, "projection_per_layer": True}, 15_552_168),
        ("tinybert6", {}, 66_955_008),
        ("bert-base", {}, 109_482_240),
        ("minilm-l6", {}, 22_713_216),
    ],
)
def test_parameter_counts_are_the_published_ones(preset, changes, count):
    config = PRESETS[preset].replace(**changes)
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_count_parameters_counts_scalars():
    assert count_parameters({"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}}) == 10


@pytest.mark.usefixtures("matmul_highest")
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("packed", [ALONE, PACKED], ids=["padded", "packed"])
def test_every_example_gets_the_reference_s_hidden_states(within, position, packed):
    config = tiny(position=position, layer_norm_eps=1e-6)
    params = random_params(config)
    collect = Collect(hidden=tuple(range(config.num_layers + 1)))
    batch = rows(packed, 18)
    out = jax.jit(lambda p, b: Bert(config).apply({"params": p}, b, collect=collect))(params, batch)
    flat = [example for row in packed for example in row]
    for example, (b, place, _) in zip(flat, slices(packed), strict=True):
        want = bert(params, example, config)
        within([out.hidden[i][b, place] for i in range(config.num_layers + 1)], want)


@functools.cache
def classifier(position: str):
    config = tiny(position=position, num_labels=3)
    params = random_params(config)

    @jax.jit
    def logits(params, batch):
        return class_logits(config, params, batch)

    return params, logits


@pytest.mark.usefixtures("matmul_highest")
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary"])
def test_padding_and_packing_change_no_logit(within, position):
    params, logits = classifier(position)
    short, long = (np.asarray(logits(params, rows(ALONE, length))) for length in (9, 17))
    within(long, short)
    together = np.asarray(logits(params, rows(PACKED, 18)))
    found = [together[b, slot] for b, _, slot in slices(PACKED)]
    within(np.stack(found), short[ORDER, 0])


@pytest.mark.usefixtures("matmul_highest")
def test_what_stands_in_the_padding_is_never_seen():
    params, logits = classifier("learned")
    batch = rows(ALONE, 12)
    rubbish = np.where(batch.segments == 0, 22, batch.tokens).astype(np.int32)
    np.testing.assert_array_equal(
        logits(params, batch), logits(params, dataclasses.replace(batch, tokens=rubbish))
    )


@pytest.mark.usefixtures("matmul_highest")
def test_the_original_mask_agrees_at_the_real_positions(within):
    config = tiny()
    params, batch = random_params(config), rows(ALONE, 12)
    collect = Collect(scores=(0,))

    def run(key_mask_only):
        return Bert(config).apply(
            {"params": params}, batch, collect=collect, key_mask_only=key_mask_only
        )

    ours, original = run(False), run(True)
    real = batch.segments > 0
    within(np.asarray(ours.last_hidden)[real], np.asarray(original.last_hidden)[real])
    padded = np.asarray(original.scores[0])[:, :, :, -1]
    assert np.all((padded < -9000) & (padded > -11000))
    assert np.all(np.asarray(ours.scores[0])[:, :, :, -1] < MASKED / 2)


def test_a_call_needs_no_group_it_does_not_read():
    config = tiny(num_labels=2)
    params, batch = random_params(config, (*groups_of(config), "mlm", "nsp")), rows(ALONE, 10)
    model = Bert(config)

    def only(*groups):
        return {"params": {group: params[group] for group in groups}}

    last = model.apply(only("embeddings", "encoder"), batch).last_hidden
    first = last[:, :1]
    pooled = model.apply(only("pooler"), first, method="pool")
    chex.assert_shape(pooled, (4, 1, config.hidden_size))
    logits = model.apply(only("pooler", "classifier"), first, method="classify")
    chex.assert_shape(logits, (4, 1, 2))
    chex.assert_shape(model.apply(only("nsp"), pooled, method="nsp_logits"), (4, 1, 2))
    words = model.apply(only("embeddings", "mlm"), last, method="mlm_logits")
    chex.assert_shape(words, (4, 10, config.vocab_size))


def test_bfloat16_is_a_matter_of_products_alone(within):
    config = tiny(dtype="bfloat16")
    params, batch = random_params(config, seed=1), rows(ALONE, 10)
    collect = Collect(hidden=(1,), scores=(0,), values=(0,))
    out = Bert(config).apply({"params": params}, batch, collect=collect)
    chex.assert_type(jax.tree.leaves(out), np.float32)
    exact = Bert(config.replace(dtype="float32")).apply({"params": params}, batch, collect=collect)
    difference = np.abs(out.last_hidden - exact.last_hidden)
    assert 0 < np.max(difference) < 0.2
    fresh = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    chex.assert_type(jax.tree.leaves(fresh), np.float32)


def test_fresh_parameters_follow_from_the_key_group_by_group():
    config = tiny(num_labels=2, hidden_size=64, num_layers=1, initializer_range=0.1)
    params = init_params(config, jax.random.key(0))
    assert set(params) == set(groups_of(config))
    fewer = init_params(config, jax.random.key(0), ("embeddings", "mlm"))
    chex.assert_trees_all_equal(fewer["embeddings"], params["embeddings"])
    assert set(fewer) == {"embeddings", "mlm"}
    other = init_params(config, jax.random.key(1), ("embeddings",))
    assert np.any(other["embeddings"]["word"] != params["embeddings"]["word"])

    def check(path, leaf):
        name = path[-1].key
        if name == "scale":
            assert np.all(leaf == 1)
        elif name == "bias":
            assert np.all(leaf == 0)
        elif leaf.size > 300:
            assert np.std(leaf) == pytest.approx(0.1, rel=0.15), path

    jax.tree_util.tree_map_with_path(check, params)


@pytest.mark.parametrize(
    ("changes", "field", "fix"),
    [
        ({"vocab_size": 0}, "vocab_size = 0", "positive"),
        ({"num_layers": -1}, "num_layers = -1", "positive"),
        ({"num_labels": -1}, "num_labels = -1", "0 (none)"),
        ({"hidden_dropout": 1.0}, "hidden_dropout = 1.0", "a rate"),
        ({"attention_dropout": float("nan")}, "attention_dropout = nan", "a rate"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps = 0.0", "positive"),
        ({"activation": "swish"}, "activation = 'swish'", "gelu, gelu_new, relu"),
        ({"position": "alibi"}, "position = 'alibi'", "learned, sinusoidal, rotary"),
        ({"classifier": "mean"}, "classifier = 'mean'", "bert, tinybert"),
        ({"head": "words"}, "head = 'words'", "regression, tagging, spans"),
        ({"head": "spans", "num_labels": 3}, "num_labels = 3", "2 for spans"),
        ({"head": "regression", "num_labels": 2}, "num_labels = 2", "1 for regression"),
        (
            {"head": "tagging", "classifier": "tinybert"},
            "classifier = 'tinybert'",
            "tagging reads no pooled state",
        ),
        ({"dtype": "float16"}, "dtype = 'float16'", "float32, bfloat16"),
        ({"hidden_size": 768, "num_heads": 11}, "hidden_size = 768", "759 or 770"),
        ({"hidden_size": 5, "num_heads": 12}, "hidden_size = 5", "12 or 24"),
        ({"hidden_size": 36, "position": "rotary"}, "hidden_size = 36", "even head size"),
    ],
)
def test_a_config_error_names_field_value_and_fix(changes, field, fix):
    with pytest.raises(UserError) as caught:
        BertConfig(**changes)
    assert len(caught.value.lines) == 1
    assert field in caught.value.line
    assert fix in caught.value.line


def test_all_config_errors_come_at_once():
    with pytest.raises(UserError) as caught:
        BertConfig().replace(vocab_size=0, num_heads=0, dtype="int4", hidden_dropout=-1)
    assert len(caught.value.lines) == 4
