"""The heads against float64 NumPy."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ACTIVATIONS, dense, layer_norm, random_like

from jaxbert.models import heads

pytestmark = pytest.mark.usefixtures("matmul_highest")

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(2, 7, 6)).astype(np.float32)
POOLED = RNG.normal(size=(2, 3, 6)).astype(np.float32)
TABLE = RNG.normal(size=(11, 6)).astype(np.float32)


def random_variables(module, *inputs):
    return random_like(jax.eval_shape(module.init, jax.random.key(0), *inputs))


class HeadsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_the_pooler_is_a_product_and_a_tanh(self):
        variables = random_variables(heads.Pooler(), POOLED)
        out = self.variant(heads.Pooler().apply)(variables, POOLED)
        want = np.tanh(dense(variables["params"]["dense"], POOLED.astype(float)))
        np.testing.assert_allclose(out, want, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_bert_s_classifier_is_one_product(self):
        module = heads.Classifier(4, "bert", 0.5)
        variables = random_variables(module, POOLED)
        out = self.variant(module.apply)(variables, POOLED)
        want = dense(variables["params"]["dense"], POOLED.astype(float))
        np.testing.assert_allclose(out, want, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_tinybert_s_classifier_has_a_relu_before_it(self):
        module = heads.Classifier(4, "tinybert", 0.5)
        variables = random_variables(module, POOLED)
        out = self.variant(module.apply)(variables, POOLED)
        want = dense(variables["params"]["dense"], np.maximum(POOLED.astype(float), 0))
        np.testing.assert_allclose(out, want, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_the_next_sentence_head_is_one_product(self):
        variables = random_variables(heads.NextSentenceHead(), POOLED)
        out = self.variant(heads.NextSentenceHead().apply)(variables, POOLED)
        chex.assert_shape(out, (2, 3, 2))
        want = dense(variables["params"]["dense"], POOLED.astype(float))
        np.testing.assert_allclose(out, want, atol=1e-6)


def test_dropout_comes_before_bert_s_classifier_alone():
    for kind, changes in (("bert", True), ("tinybert", False)):
        module = heads.Classifier(4, kind, 0.5)
        variables = random_variables(module, POOLED)
        rngs = {"dropout": jax.random.key(0)}
        noisy = module.apply(variables, POOLED, deterministic=False, rngs=rngs)
        assert np.any(noisy != module.apply(variables, POOLED)) == changes


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_masked_lm_logits(within, activation):
    module = heads.MaskedLMHead(activation, 1e-3)
    variables = random_variables(module, HIDDEN, TABLE)
    out = jax.jit(module.apply)(variables, HIDDEN, TABLE)
    params = variables["params"]
    x = ACTIVATIONS[activation](dense(params["transform"], HIDDEN.astype(float)))
    x = layer_norm(params["norm"], x, 1e-3)
    within(out, x @ TABLE.T.astype(float) + params["bias"])


def test_the_masked_lm_decoder_is_the_word_table_and_trains_it():
    module = heads.MaskedLMHead()
    variables = random_variables(module, HIDDEN, TABLE)
    assert set(variables["params"]) == {"transform", "norm", "bias"}
    gradient = jax.grad(lambda table: module.apply(variables, HIDDEN, table)[..., 3].sum())(TABLE)
    assert np.all(gradient[3] != 0)
    assert not np.any(np.delete(gradient, 3, axis=0))


@pytest.mark.parametrize("index", [0, 2])
def test_a_shared_projection_treats_every_state_alike(within, index):
    module = heads.Projection(5)
    variables = random_variables(module, HIDDEN)
    chex.assert_shape(variables["params"]["kernel"], (6, 5))
    out = module.apply(variables, HIDDEN, index)
    within(out, dense(variables["params"], HIDDEN.astype(float)))


@pytest.mark.parametrize("index", [0, 2])
def test_a_projection_per_layer_has_one_for_each_state(within, index):
    module = heads.Projection(5, copies=3)
    variables = random_variables(module, HIDDEN)
    chex.assert_shape(variables["params"]["kernel"], (3, 6, 5))
    out = module.apply(variables, HIDDEN, index)
    within(out, dense(jax.tree.map(lambda p: p[index], variables["params"]), HIDDEN.astype(float)))


def test_bfloat16_operands_give_float32_logits():
    module = heads.Classifier(4, dtype=jnp.bfloat16)
    variables = random_variables(module, POOLED)
    out = module.apply(variables, POOLED)
    chex.assert_type(out, jnp.float32)
    want = dense(variables["params"]["dense"], POOLED.astype(float))
    np.testing.assert_allclose(out, want, atol=0.05)


@pytest.mark.parametrize("copies", [0, 3])
def test_a_projection_of_low_rank_is_two_products_and_learns_as_they_do(within, copies):
    module = heads.Projection(5, copies, rank=2)
    variables = random_variables(module, HIDDEN)
    lead = (copies,) if copies else ()
    shapes = jax.tree.map(lambda x: x.shape, variables["params"])
    assert shapes == {"down_kernel": (*lead, 6, 2), "up_kernel": (*lead, 2, 5), "bias": (*lead, 5)}
    cotangent = RNG.normal(size=(2, 7, 5)).astype(np.float32)

    def loss(variables, hidden):
        out = module.apply(variables, hidden, 1)
        return (out * cotangent).sum(), out

    (_, out), (found, into) = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, HIDDEN)
    p = jax.tree.map(lambda x: (x[1] if copies else x).astype(float), variables["params"])
    x, g = HIDDEN.reshape(-1, 6).astype(float), cotangent.reshape(-1, 5).astype(float)
    down, up = p["down_kernel"], p["up_kernel"]
    within(out.reshape(-1, 5), x @ down @ up + p["bias"])
    within(into.reshape(-1, 6), g @ (down @ up).T)
    want = {"down_kernel": x.T @ g @ up.T, "up_kernel": (x @ down).T @ g, "bias": g.sum(0)}
    mine = found["params"]
    within(jax.tree.map(lambda x: x[1], mine) if copies else mine, want)
    if copies:  # the other states' projections are not touched
        assert not any(np.any(leaf[::2]) for leaf in jax.tree.leaves(mine))


def test_a_fresh_projection_of_low_rank_is_as_large_as_a_full_one():
    wide = np.zeros((1, 1, 200), np.float32)
    params = heads.Projection(300, rank=64).init(jax.random.key(0), wide)["params"]
    product = params["down_kernel"] @ params["up_kernel"]
    assert np.std(product) == pytest.approx(0.02, rel=0.1)
