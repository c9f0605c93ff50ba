"""The FLOP count against the paper's figures and the compiler's own count."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxbert.batch import Batch
from jaxbert.evaluation.flops import forward_flops
from jaxbert.models.bert import PRESETS, Bert, init_params
from jaxbert.models.encoder import Collect


@pytest.mark.parametrize(
    ("name", "billions"), [("bert-base", 22.5), ("tinybert4", 1.2), ("tinybert6", 11.3)]
)
def test_counts_are_those_of_the_paper(name, billions):
    assert forward_flops(PRESETS[name], 128) / 1e9 == pytest.approx(billions, rel=0.05)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("length", [32, 128])
def test_counts_agree_with_the_compilers(length):
    config = PRESETS["tinybert4"].replace(num_labels=2)
    model = Bert(config)
    ids = np.zeros((1, length), np.int32)
    batch = Batch(ids, ids + 1, ids, ids, ids[:, :1], None, np.ones((1, 1), np.float32))
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def classify(params, batch):
        # Collecting unrolls the layers: the compiler counts the body of a loop once.
        collect = Collect(hidden=(config.num_layers,))
        hidden = model.apply({"params": params}, batch, collect=collect).last_hidden
        return model.apply({"params": params}, hidden[:, :1], method="classify")

    cost = jax.jit(classify).lower(params, batch).compile().cost_analysis()
    # It counts norms, softmax and activations too: a few per cent at this width.
    ours = forward_flops(config, length)
    assert ours < cost["flops"] < 1.05 * ours
