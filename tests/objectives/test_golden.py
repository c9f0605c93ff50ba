"""The authors' code, to the number: losses, gradients and BertAdam steps recorded from it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small import distillation

from jaxbert.batch import Batch
from jaxbert.interop.layout import from_tensors, to_tensors
from jaxbert.models.bert import Bert, BertConfig
from jaxbert.models.encoder import Collect
from jaxbert.objectives import losses
from jaxbert.objectives.distillation import Distillation
from jaxbert.objectives.objective import weighted_loss
from jaxbert.training.optimizer import linear_schedule, make_optimizer
from jaxbert.training.sharding import make_mesh
from jaxbert.training.step import init_state, make_step

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
pytestmark = [
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded numbers are not here"),
    pytest.mark.usefixtures("matmul_highest"),
]


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def settings() -> dict[str, Any]:
    return json.loads(str(load("gold_A_in")["config_json"]))


def config_of(who: str) -> BertConfig:
    given, sizes = settings(), settings()[who]
    return BertConfig(
        vocab_size=given["vocab"],
        hidden_size=sizes["h"],
        num_layers=sizes["L"],
        num_heads=sizes["a"],
        intermediate_size=sizes["i"],
        max_position_embeddings=given["max_position"],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        classifier="tinybert",
        num_labels=given["num_labels"],
        projection_size=given["fit_size"],
    )


def params_of(who: str) -> dict[str, Any]:
    given = {
        name.removeprefix(f"{who}/").removeprefix("bert."): value
        for name, value in load("gold_A_in").items()
        if name.startswith(f"{who}/")
    }
    groups = ("embeddings", "encoder", "pooler", "classifier", "projection")
    return from_tensors(config_of(who), groups, given.__getitem__)


def batch() -> Batch:
    given = load("gold_A_in")
    ids, mask = given["input_ids"], given["input_mask"]
    count, length = ids.shape
    return Batch(
        tokens=ids,
        segments=mask,
        token_types=given["segment_ids"],
        positions=np.tile(np.arange(length, dtype=np.int32), (count, 1)),
        starts=np.zeros((count, 1), np.int32),
        labels=np.zeros((count, 1), np.int32),
        weights=np.ones((count, 1), np.float32),
    )


def layers_objective() -> Distillation:
    return distillation(
        config_of("student"), config_of("teacher"), preset="tinybert", compat="huawei"
    )


def predictions_objective(temperature: float = 1.0) -> Distillation:
    soft = {"feature": "logits", "temperature": temperature}
    return distillation(
        config_of("student"), config_of("teacher"), compat="huawei", prediction=soft
    )


def gradients_of(objective: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Terms and, by PyTorch name, gradients with respect to everything that could have one."""

    def loss(params: Any) -> Any:
        frozen = {"teachers": (params_of("teacher"),)}
        terms = objective(params, frozen, batch(), jax.random.key(0))
        counts = {name: term.count for name, term in terms.items()}
        return weighted_loss(terms, counts, objective.weights(0)), terms

    gradients, terms = jax.jit(jax.grad(loss, has_aux=True))(params_of("student"))
    return terms, to_tensors(config_of("student"), gradients, "bert.")


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_forward_pass_is_that_of_the_authors_code(who, within):
    config, params, out = config_of(who), params_of(who), load("gold_A_out")
    depth = config.num_layers
    collect = Collect(hidden=tuple(range(depth + 1)), scores=tuple(range(depth)))

    @jax.jit
    def forward(params: Any, batch: Batch) -> Any:
        bound = Bert(config).bind({"params": params})
        seen = bound(batch, collect=collect, key_mask_only=True)
        fit = [bound.project(seen.hidden[i], i) for i in seen.hidden]
        first = jax.numpy.take_along_axis(seen.last_hidden, batch.starts[:, :, None], axis=1)
        return seen, fit, bound.classify(first)

    seen, fit, logits = forward(params, batch())
    raw = "student_hidden_raw" if who == "student" else "teacher_hidden"
    for i in range(depth):
        within(seen.scores[i], out[f"{who}_scores/{i}"])
    for i in range(depth + 1):
        within(seen.hidden[i], out[f"{raw}/{i}"])
        if who == "student":
            within(fit[i], out[f"student_hidden_fit/{i}"])
    within(logits[:, 0], out[f"{who}_logits"])


def test_alignment_is_that_of_the_authors_code():
    out = load("gold_A_out")
    pairs = {match.name: match.layers[0] for match in layers_objective().matches}
    attention = [teacher - 1 for _, teacher in pairs["attention"]]
    assert attention == list(out["map_scores_teacher_index"])
    states = [teacher for _, teacher in (*pairs["embedding"], *pairs["hidden"])]
    assert states == list(out["map_hidden_teacher_index"])


def test_layer_losses_and_gradients_are_those_of_the_authors_code(within):
    out = load("gold_A_out")
    terms, gradients = gradients_of(layers_objective())
    within(terms["attention"].mean(), out["att_loss"])
    # What the authors call the representation loss holds the embeddings' term, too.
    within(terms["hidden"].mean() + terms["embedding"].mean(), out["rep_loss"])
    within(terms["embedding"].mean(), out["rep_loss_per_layer"][0])

    names = list(out["grad_names"])
    norms = np.array([np.linalg.norm(gradients[name].astype(np.float64)) for name in names])
    within(norms, out["grad_norms"])
    within(
        gradients["bert.embeddings.word_embeddings.weight"].sum(1),
        out["grad/word_embeddings_row_sums"],
    )
    recorded = [name.removeprefix("grad/") for name in out if name.startswith("grad/")]
    assert len(recorded) == 8
    for name in set(recorded) - {"word_embeddings_row_sums"}:
        within(gradients[name], out[f"grad/{name}"])
    untouched = {name for name, value in gradients.items() if not value.any()}
    assert untouched == set(out["no_grad_names"])
    assert set(names) | untouched == set(gradients)


def test_layers_one_by_one_have_the_losses_of_the_authors_code(within):
    out = load("gold_A_out")
    maps = zip(out["map_scores_teacher_index"], out["att_loss_per_layer"], strict=True)
    for i, (j, want) in enumerate(maps):
        term = losses.padded_score_mse(out[f"student_scores/{i}"], out[f"teacher_scores/{j}"])
        within(term.mean(), want)
    maps = zip(out["map_hidden_teacher_index"], out["rep_loss_per_layer"], strict=True)
    for i, (j, want) in enumerate(maps):
        mine, theirs = out[f"student_hidden_fit/{i}"], out[f"teacher_hidden/{j}"]
        within(losses.padded_mse(mine, theirs).mean(), want)


@pytest.mark.parametrize("temperature", [1, 2])
def test_prediction_loss_and_gradients_are_those_of_the_authors_code(temperature, within):
    out = load("gold_A_out")
    terms, gradients = gradients_of(predictions_objective(temperature))
    within(terms["prediction"].mean(), out[f"pred_loss_T{temperature}"])
    prefix = f"pred_grad_T{temperature}/"
    recorded = [name.removeprefix(prefix) for name in out if name.startswith(prefix)]
    assert len(recorded) == 4
    for name in recorded:
        within(gradients[name], out[prefix + name])


@pytest.mark.parametrize("kind", ["warmup_linear", "constant", "pred_warmup_linear"])
def test_three_steps_of_training_are_those_of_the_authors_optimiser(kind, within):
    given, steps = settings(), load("gold_A_steps")
    objective = predictions_objective() if kind.startswith("pred") else layers_objective()
    constant = kind == "constant"
    optimizer = make_optimizer(
        learning_rate=given["lr"],
        steps=given["t_total"],
        warmup_ratio=0.0 if constant else given["warmup"],
        schedule="constant" if constant else "linear",
        b1=given["b1"],
        b2=given["b2"],
        eps=given["eps"],
        bias_correction=False,
        weight_decay=given["weight_decay"],
        clip="tensor",
        clip_norm=given["clip_per_tensor"],
    )
    every = params_of("student")
    mesh = make_mesh(data=1)
    state = init_state({group: every[group] for group in objective.groups}, optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
    frozen = {"teachers": (params_of("teacher"),)}
    seen = []
    for count in range(1, 4):
        state, metrics = step(state, frozen, batch())
        seen.append(metrics["loss"].mean())
        now = to_tensors(config_of("student"), every | jax.device_get(state.params), "bert.")
        if count == 1 and not constant:
            before = to_tensors(config_of("student"), every, "bert.")
            assert all((now[name] == before[name]).all() for name in now)
            assert steps[f"{kind}/max_abs_change_step1"] == 0
        if f"{kind}/step{count}/fit_dense.bias" in steps:
            within(now, {name: steps[f"{kind}/step{count}/{name}"] for name in now})
    within(np.array(seen), steps[f"{kind}/losses"])


@pytest.mark.parametrize("steps", [10, 37])
@pytest.mark.parametrize("kind", ["warmup_linear", "none"])
def test_learning_rate_multipliers_are_those_of_the_authors_code(kind, steps, within):
    wanted = load("gold_rules")[f"lr_multiplier/{kind}/t{steps}"]
    linear = kind == "warmup_linear"
    schedule = linear_schedule(1.0, steps, 0.1 if linear else 0.0, linear)
    within(jax.vmap(schedule)(np.arange(len(wanted))), wanted)


def test_scores_around_the_mask_threshold_follow_the_authors_rule(within):
    rules = load("gold_rules")

    def loss(scores: Any) -> Any:
        return losses.padded_score_mse(scores, rules["teacher_scores"]).mean()

    value, gradient = jax.value_and_grad(loss)(rules["student_scores"])
    within(value, rules["att_loss"])
    within(gradient, rules["grad_student_scores"])
