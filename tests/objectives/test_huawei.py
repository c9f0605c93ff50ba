"""compat="huawei" against PyTorch written from the authors' rules: padded rows, means over all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from small import (
    SOFT,
    STUDENT,
    TEACHER,
    assert_same_gradients,
    distillation,
    examples,
    loss_and_gradients,
    one_batch,
    visible_params,
)

from jaxbert.objectives.finetuning import Finetuning
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.sharding import make_mesh
from jaxbert.training.step import init_state, make_step

torch = pytest.importorskip("torch")
from torch_bert import TorchBert  # noqa: E402  (needs torch)

pytestmark = pytest.mark.usefixtures("matmul_highest")
LENGTHS, ROW, RATE, STEPS, WARMUP = [9, 3, 12, 5, 7, 2, 4], 14, 1e-3, 10, 0.1


class PaddedBert(TorchBert):
    """Whole padded rows at once, as the original BERT computes them."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.embeddings["word_embeddings"].padding_idx = 0

    def forward(self, tokens: Any, types: Any, real: Any) -> tuple[list, list]:
        """Hidden states [B, T, D] 0..L and scores [B, H, T, T] of rows [B, T]."""
        e = self.embeddings
        x = e["word_embeddings"](tokens) + e["token_type_embeddings"](types)
        x = e["LayerNorm"](x + e["position_embeddings"](torch.arange(tokens.shape[1])))
        mask = (1.0 - real[:, None, None, :].double()) * -10000.0
        states, scores = [x], []
        for layer in self.encoder["layer"]:
            query, key, value = (
                linear(x).unflatten(2, (self.config.num_heads, -1)).transpose(1, 2)
                for linear in layer["attention"]["self"].values()
            )  # [B, H, T, K]
            scores.append(query @ key.mT / query.shape[-1] ** 0.5 + mask)
            mixed = (scores[-1].softmax(-1) @ value).transpose(1, 2).flatten(2)
            out = layer["attention"]["output"]
            x = out["LayerNorm"](x + out["dense"](mixed))
            inner = torch.nn.functional.gelu(layer["intermediate"]["dense"](x))
            x = layer["output"]["LayerNorm"](x + layer["output"]["dense"](inner))
            states.append(x)
        return states, scores

    def logits(self, states: Any) -> Any:
        """Class logits [B, C]."""
        return super().logits([states[-1].transpose(0, 1)])


def padded_rows(some: Any) -> tuple[Any, Any, Any]:
    """int64 tokens, token types and masks [B, T], in the order of the examples."""
    tokens, types, real = (np.zeros((len(some), ROW), np.int64) for _ in range(3))
    for i, (first, length) in enumerate(zip(some.offsets, some.lengths, strict=False)):
        tokens[i, :length] = some.tokens[first : first + length]
        types[i, some.seconds[i] : length] = 1
        real[i, :length] = 1
    return torch.from_numpy(tokens), torch.from_numpy(types), torch.from_numpy(real)


def layer_loss(mine: PaddedBert, theirs: PaddedBert, rows: Any, layers: tuple[int, ...]) -> Any:
    mse = torch.nn.functional.mse_loss
    states, scores = mine(*rows)
    with torch.no_grad():
        their_states, their_scores = theirs(*rows)
    loss = sum(mse(x, their_states[j]) for x, j in zip(mine.fit(states), (0, *layers), strict=True))
    for x, j in zip(scores, layers, strict=True):
        y = their_scores[j - 1]
        x, y = (torch.where(z <= -1e2, torch.zeros_like(z), z) for z in (x, y))
        loss = loss + mse(x, y)
    return loss


def bert_adam(model: PaddedBert, loss: Callable[[], Any], count: int) -> list[float]:
    """The authors' optimiser; the losses before each step."""
    moments: dict[str, tuple[Any, Any]] = {}
    losses = []
    for step in range(count):
        model.zero_grad()
        value = loss()
        value.backward()
        losses.append(value.item())
        progress = step / STEPS
        rate = progress / WARMUP if progress < WARMUP else (1 - progress) / (1 - WARMUP)
        with torch.no_grad():
            for name, x in model.named_parameters():
                if x.grad is None:
                    continue
                g = x.grad * min(1.0, 1.0 / (x.grad.norm().item() + 1e-6))
                m, v = moments.get(name, (torch.zeros_like(x), torch.zeros_like(x)))
                moments[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                decay = 0.0 if "bias" in name or "LayerNorm" in name else 0.01
                x -= RATE * rate * (m / (v.sqrt() + 1e-6) + decay * x)
    return losses


def case(name: str) -> tuple[Any, Any, PaddedBert, Callable[[], Any], Any]:
    """The objective, its teacher, and in torch the student and its loss; the examples."""
    some = examples(LENGTHS)
    rows = padded_rows(some)
    deep = TEACHER.replace(num_layers=6, classifier="tinybert")
    config = STUDENT
    if name == "layers":
        config = STUDENT.replace(num_layers=4, projection_per_layer=True)
    mine = PaddedBert(config, visible_params(config, 1))
    given = visible_params(deep, 2)
    theirs = PaddedBert(deep, given)
    functional = torch.nn.functional
    if name == "layers":
        objective: Any = distillation(config, deep, preset="tinybert", compat="huawei")
        return objective, given, mine, lambda: layer_loss(mine, theirs, rows, (2, 3, 5, 6)), some
    if name == "predictions":
        with torch.no_grad():
            target = (theirs.logits(theirs(*rows)[0]) / 2).softmax(-1)

        def soft() -> Any:
            return -(target * (mine.logits(mine(*rows)[0]) / 2).log_softmax(-1)).mean()

        objective = distillation(config, deep, compat="huawei", prediction=SOFT)
        return objective, given, mine, soft, some
    labels = torch.from_numpy(some.labels.astype(np.int64))

    def hard() -> Any:
        return functional.cross_entropy(mine.logits(mine(*rows)[0]), labels)

    return Finetuning(config, "huawei"), given, mine, hard, some


@pytest.mark.parametrize("name", ["layers", "predictions", "finetune"])
def test_loss_gradients_and_three_bert_adam_steps_are_those_of_pytorch(name, within):
    objective, given, student, torch_loss, some = case(name)
    batch = one_batch(some, packing=False, row_length=ROW)
    assert len(set((batch.segments == 0).sum(1))) > 4 and (batch.segments == 0).any(1).all()
    params = jax.tree.map(np.float32, {g: student.params()[g] for g in objective.groups})
    others = {"teachers": (given,)}

    value, gradients = loss_and_gradients(objective, params, others, batch)
    wanted = torch_loss()
    wanted.backward()
    expected = {g: student.gradients()[g] for g in objective.groups}
    within(value, wanted.item())
    within(gradients, expected)
    assert_same_gradients(gradients, expected)
    assert (some.tokens == 0).any() and not gradients["embeddings"]["word"][0].any()

    optimizer = make_optimizer(
        learning_rate=RATE, steps=STEPS, warmup_ratio=WARMUP, bias_correction=False, clip="tensor"
    )
    mesh = make_mesh(data=1)
    state = init_state(params, optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
    losses = []
    for _ in range(3):
        state, metrics = step(state, others, batch)
        losses.append(metrics["loss"].mean())
    within(np.array(losses), np.array(bert_adam(student, torch_loss, 3)))
    reached = {g: student.params()[g] for g in objective.groups}
    within(jax.device_get(state.params), reached)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), reached, params)
    # Class logits do not depend on the biases of keys, which the softmax takes out again.
    assert sum(x > 1e-4 for x in jax.tree.leaves(moved)) >= len(jax.tree.leaves(moved)) - 1
