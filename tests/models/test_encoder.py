"""The stack: right, the same scanned and unrolled, and no longer than anyone needs."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import encoder, random_like, tiny

from jaxbert.models import attention
from jaxbert.models.attention import segment_bias
from jaxbert.models.encoder import Collect, Encoder

pytestmark = pytest.mark.usefixtures("matmul_highest")

B, T, L = 2, 5, 3
CONFIG = tiny()
FEATURES = ("scores", "queries", "keys", "values")
X = np.random.default_rng(0).normal(size=(B, T, CONFIG.hidden_size)).astype(np.float32)
BIAS = segment_bias(np.ones((B, T), np.int32))
POSITIONS = np.tile(np.arange(T, dtype=np.int32), (B, 1))
EVERYTHING = Collect(tuple(range(L + 1)), *(tuple(range(L)),) * 4)


def module(**options) -> Encoder:
    return Encoder(L, CONFIG.num_heads, CONFIG.intermediate_size, **options)


@functools.cache
def variables():
    return random_like(jax.eval_shape(module().init, jax.random.key(0), X, BIAS, POSITIONS))


def run(stack: Encoder, params, x=X, collect=Collect(), seed=None):
    # A generator that compiles faster than the default.
    rngs = None if seed is None else {"dropout": jax.random.key(seed, impl="unsafe_rbg")}
    return stack.apply(
        params, x, BIAS, POSITIONS, collect=collect, deterministic=seed is None, rngs=rngs
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_every_hidden_state_is_the_reference_s(within, activation):
    out = jax.jit(lambda v: run(module(activation=activation), v, collect=EVERYTHING))(variables())
    assert set(out.hidden) == set(range(L + 1))
    for b in range(B):
        want = encoder(variables()["params"], X[b].astype(np.float64), tiny(activation=activation))
        within([out.hidden[i][b] for i in range(L + 1)], want)
    np.testing.assert_array_equal(out.last_hidden, out.hidden[L])


@pytest.mark.parametrize(
    ("collect", "unscored"),
    [(Collect(), 1), (Collect(hidden=(2,), scores=(1,)), L - 1), (EVERYTHING, 0)],
    ids=["scanned", "unrolled", "everything"],
)
def test_layers_whose_scores_nobody_collects_may_do_without(monkeypatch, within, collect, unscored):
    """Where they may; on a CPU they compute the same."""
    by_xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    replace = functools.partial(monkeypatch.setattr, jax.nn, "dot_product_attention")
    replace(lambda *given, implementation: by_xla(*given))
    stack = module()
    want = jax.jit(lambda v: run(stack, v, collect=collect))(variables())
    monkeypatch.setattr(attention, "fuses", lambda queries, keys, dtype: True)
    program = jax.make_jaxpr(lambda v: run(stack, v, collect=collect))(variables())
    assert str(program).count("platform_index[") == unscored  # once within a scan
    have = jax.jit(lambda v: run(stack, v, collect=collect))(variables())
    assert set(have.scores) == set(collect.scores)
    within(jax.tree.leaves(have), jax.tree.leaves(want))


@pytest.mark.parametrize("seed", [None, 0])
def test_scanned_and_unrolled_agree_in_value_and_gradient(within, seed):
    """With dropout (seed 0), too: both draw from the same keys."""
    stack = module(hidden_dropout=0.3, attention_dropout=0.3)

    def loss(params, collect):
        last = run(stack, params, collect=collect, seed=seed).last_hidden
        return jnp.sum(last * jnp.cos(jnp.arange(last.size).reshape(last.shape))), last

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    scanned, unrolled = step(variables(), Collect()), step(variables(), Collect(scores=(0,)))
    within(scanned[1], unrolled[1])
    within(scanned[0], unrolled[0], 5e-5)


def test_dropout_changes_with_the_key_and_between_layers():
    stack = module(hidden_dropout=0.5)
    same = jax.tree.map(lambda p: np.broadcast_to(p[:1], p.shape), variables())
    collect = Collect(hidden=(0, 1, 2))
    first, again, other = (run(stack, same, collect=collect, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.last_hidden, again.last_hidden)
    assert np.any(first.last_hidden != other.last_hidden)
    # Two equal layers given the same input would agree but for their keys.
    second = run(stack, same, x=np.asarray(first.hidden[0]), collect=collect, seed=0)
    np.testing.assert_array_equal(first.hidden[1], second.hidden[1])
    repeated = run(stack, same, x=np.asarray(first.hidden[1]), collect=collect, seed=0)
    assert np.any(repeated.hidden[1] != first.hidden[2])


@pytest.mark.parametrize("feature", FEATURES)
def test_only_what_is_asked_for_comes_back(feature):
    out = jax.eval_shape(
        lambda v: run(module(), v, collect=Collect(**{feature: (2, 0)})), variables()
    )
    assert set(getattr(out, feature)) == {0, 2}
    assert all(not getattr(out, other) for other in ("hidden", *FEATURES) if other != feature)
    head_size = CONFIG.hidden_size // CONFIG.num_heads
    shape = (B, 2, T, T) if feature == "scores" else (B, T, 2, head_size)
    chex.assert_shape(list(getattr(out, feature).values()), shape)
    chex.assert_type(list(getattr(out, feature).values()), jnp.float32)


def test_without_a_last_hidden_state_there_is_none():
    out = jax.eval_shape(lambda v: run(module(), v, collect=Collect(last=False)), variables())
    assert out.last_hidden is None


@pytest.mark.parametrize(
    ("collect", "depth"),
    [
        (Collect(), 3),
        (Collect(hidden=(1,)), 3),
        (Collect(hidden=(1,), last=False), 1),
        (Collect(hidden=(0,), last=False), 0),
        (Collect(last=False), 0),
        (Collect(scores=(1,), last=False), 2),
        (Collect(values=(0,), hidden=(2,), last=False), 2),
        (Collect(keys=(2,), last=False), 3),
    ],
)
def test_the_stack_is_as_deep_as_needed(collect, depth):
    assert collect.depth(L) == depth


def flops(collect: Collect) -> float:
    """Of the compiled program, after everything unused is gone."""
    stack = Encoder(L, 4, 256)
    x = np.zeros((B, 32, 64), np.float32)
    inputs = (x, segment_bias(np.ones((B, 32), np.int32)), np.zeros((B, 32), np.int32))
    params = jax.eval_shape(stack.init, jax.random.key(0), *inputs)
    compiled = jax.jit(lambda v: stack.apply(v, *inputs, collect=collect)).lower(params).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.usefixtures("optimised")
def test_layers_and_parts_of_layers_that_nobody_needs_are_not_computed():
    needed = [
        Collect(queries=(0,), last=False),
        Collect(scores=(0,), last=False),  # two products for it, and their own
        Collect(hidden=(1,), last=False),
        Collect(scores=(1,), last=False),
        Collect(hidden=(2,), last=False),
        Collect(hidden=(3,), last=False),
    ]
    costs = [flops(collect) for collect in needed]
    assert costs == sorted(set(costs)), "each needs more than the one before"
    assert costs[0] < costs[1] < 0.3 * costs[2]
    assert costs[4] == pytest.approx(2 * costs[2], rel=0.02)
    assert costs[5] == pytest.approx(3 * costs[2], rel=0.02)


def test_the_scan_stacks_no_scores():
    program = jax.make_jaxpr(lambda v: run(module(), v).last_hidden)(variables())
    text = str(program)
    assert "scan" in text
    assert f"f32[{L},{B},{CONFIG.num_heads},{T},{T}]" not in text
    assert f"f32[{L},{B},{T}" not in text


def test_the_unrolled_stack_is_not_a_scan():
    program = jax.make_jaxpr(lambda v: run(module(), v, collect=Collect(hidden=(1,))).hidden)
    assert "scan" not in str(program(variables()))


def test_parameters_are_stacked_and_layers_differ_from_the_start():
    params = jax.jit(module().init)(jax.random.key(0), X, BIAS, POSITIONS)["params"]["layers"]
    kernel = params["intermediate"]["kernel"]
    chex.assert_shape(kernel, (L, CONFIG.hidden_size, CONFIG.intermediate_size))
    assert np.any(kernel[0] != kernel[1])
    assert np.std(kernel) == pytest.approx(0.02, rel=0.2)
    chex.assert_tree_all_finite(params)
    assert all(leaf.shape[0] == L and leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("rotary", [False, True])
def test_the_states_at_some_places_are_those_of_the_whole_stack(within, rotary):
    stack = module(rotary=rotary)
    places = np.array([[4, 0, 2], [1, 1, 3]], np.int32)
    whole = run(stack, variables()).last_hidden
    some = stack.apply(variables(), X, BIAS, POSITIONS, places=places).last_hidden
    within(some, np.take_along_axis(np.asarray(whole), places[:, :, None], axis=1))


def test_the_mask_has_the_gradient_of_every_layer(within):
    """At some places as over all of them; float32."""
    places = np.array([[4, 0, 2], [1, 1, 3]], np.int32)

    def at(bias, places):
        some = module().apply(variables(), X, bias, POSITIONS, places=places).last_hidden
        return (some**2).sum()

    def over_all(bias):
        last = module().apply(variables(), X, bias, POSITIONS).last_hidden
        return (jnp.take_along_axis(last, places[:, :, None], axis=1) ** 2).sum()

    within(jax.grad(at)(BIAS, places), jax.grad(over_all)(BIAS), 1e-4)


@pytest.mark.usefixtures("optimised")
def test_asking_at_places_copies_no_other_layers():
    """What a compiled program keeps for itself is a layer at most, not all but the last."""
    deep = Encoder(12, 2, 128)
    x = np.zeros((1, 16, 64), np.float32)
    bias, steps = np.zeros((1, 1, 1, 16), np.float32), np.zeros((1, 16), np.int32)
    params = jax.eval_shape(deep.init, jax.random.key(0), x, bias, steps)

    def ask(params):
        return deep.apply(params, x, bias, steps, places=np.zeros((1, 1), np.int32)).last_hidden

    text = jax.jit(ask).lower(params).compile().as_text()
    assert "f32[12,64,64]" in text and "f32[11," not in text
