"""Fine-tuning against PyTorch, with both kinds of classifier."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from small import STUDENT, examples, one_batch, trained, visible_params
from test_distillation import LENGTHS, check_against_torch

from jaxbert.objectives.finetuning import Finetuning, freeze_padding_row

pytestmark = pytest.mark.usefixtures("matmul_highest")


@pytest.mark.parametrize("classifier", ["bert", "tinybert"])
def test_fine_tuning_is_that_of_pytorch(classifier, within):
    torch = pytest.importorskip("torch")
    from torch_bert import TorchBert, logits_of

    config = STUDENT.replace(classifier=classifier)
    model = TorchBert(config, visible_params(config, 1))
    some = examples(LENGTHS)
    labels = torch.from_numpy(some.labels.astype(np.int64))

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(logits_of(model, some), labels)

    batch = one_batch(some, packing=True, row_length=16)
    check_against_torch(Finetuning(config), model, loss, {}, batch, within)


def test_accuracy_is_measured_and_not_minimised():
    objective = Finetuning(STUDENT)
    batch = one_batch(examples(LENGTHS), packing=True, row_length=16)
    terms = jax.jit(objective)(trained(objective), {}, batch, jax.random.key(0))
    assert set(objective.weights(0)) == {"cross_entropy"}
    assert float(terms["accuracy"].count) == float(terms["cross_entropy"].count) == len(LENGTHS)
    assert 0 <= float(terms["accuracy"].mean()) <= 1


def test_frozen_padding_row_keeps_its_values_and_gets_no_gradient():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(freeze_padding_row({"word": table})["word"], table)
    gradient = jax.grad(lambda x: freeze_padding_row({"word": x})["word"].sum())(table)
    np.testing.assert_array_equal(gradient, np.concatenate([np.zeros((1, 3)), np.ones((3, 3))]))
