"""Small models with weights of visible size, and examples of unequal length, for many tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.batch import Batch
from jaxbert.config import TermConfig
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.evaluation.flops import forward_flops
from jaxbert.models.bert import BertConfig, init_params
from jaxbert.objectives.alignment import match_terms
from jaxbert.objectives.distillation import Distillation
from jaxbert.objectives.finetuning import Finetuning
from jaxbert.objectives.objective import Objective, weighted_loss
from jaxbert.presets import PRESETS

STUDENT = BertConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=32,
    max_position_embeddings=32,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    num_labels=3,
    projection_size=24,
)
TEACHER = STUDENT.replace(hidden_size=24, num_layers=3, intermediate_size=40, projection_size=0)


def distillation(
    student: BertConfig,
    *teachers: BertConfig,
    preset: str = "",
    compat: str = "",
    steps: int = 1,
    **terms: dict[str, Any],
) -> Distillation:
    """An objective from a preset, or from terms by name."""
    named = {k: TermConfig(**v) for k, v in {**PRESETS.get(preset, {}), **terms}.items()}
    matches = match_terms(named, student, teachers, compat)
    return Distillation(student, teachers, matches, steps, compat)


SOFT = {"feature": "logits", "temperature": 2.0}


def soft(head: str) -> dict[str, Any]:
    """A term of predictions; those of a regression know no temperature."""
    return {"feature": "logits"} if head == "regression" else SOFT


OBJECTIVES: dict[str, Objective] = {
    "layers": distillation(STUDENT, TEACHER, preset="tinybert"),
    "predictions": distillation(STUDENT, TEACHER, prediction=SOFT),
    "finetune": Finetuning(STUDENT),
}


def visible_params(config: BertConfig, seed: int) -> dict[str, Any]:
    """Random parameters in which a missing bias or a transposed matrix shows."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        center, spread = {"scale": (1.0, 0.2), "bias": (0.0, 0.2)}.get(name, (0.0, 0.25))
        return rng.normal(center, spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def trained(objective: Objective, seed: int = 1) -> dict[str, Any]:
    """The groups an objective trains, of a random student."""
    params = visible_params(STUDENT, seed)
    return {group: params[group] for group in objective.groups}


def frozen(seed: int = 2) -> dict[str, Any]:
    """A random teacher."""
    return {"teachers": (visible_params(TEACHER, seed),)}


def examples(lengths: list[int], seed: int = 3, config: BertConfig = STUDENT) -> Examples:
    """Random examples: every other one a pair, with random labels."""
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(0, config.vocab_size, n, dtype=np.int32) for n in lengths]
    seconds = [n if i % 2 else n - n // 3 for i, n in enumerate(lengths)]
    labels = rng.integers(0, config.num_labels, len(lengths), dtype=np.int32)
    return Examples.join(pieces, seconds=seconds, labels=labels)


def one_batch(some: Examples, *, packing: bool, row_length: int, multiple: int = 1) -> Batch:
    """All examples in one batch."""
    stream = PackedBatches(
        some,
        batch_size=len(some),
        row_length=row_length,
        seed=0,
        packing=packing,
        epochs=1,
        multiple=multiple,
    )
    assert len(stream) == 1
    return stream[0]


def empty_rows(batch: Batch, count: int) -> Batch:
    """The batch with rows of nothing after it."""
    return jax.tree.map(
        lambda x: np.concatenate([x, np.zeros((count, *x.shape[1:]), x.dtype)]), batch
    )


def without_labels(batch: Batch) -> Batch:
    """The batch of unlabelled text."""
    return dataclasses.replace(batch, labels=None)


def loss_and_gradients(
    objective: Objective, params: Any, others: Any, batch: Batch
) -> tuple[Any, Any]:
    """The weighted loss and its gradients, compiled as one program."""

    def loss(params: Any) -> Any:
        terms = objective(params, others, batch, jax.random.key(0))
        counts = {name: term.count for name, term in terms.items()}
        return weighted_loss(terms, counts, objective.weights(jnp.int32(0)))

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_same_gradients(actual: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal relative to the largest gradient of each leaf: small gradients count, too."""
    wanted = jax.tree_util.tree_leaves_with_path(expected)
    for (path, want), have in zip(wanted, jax.tree.leaves(actual), strict=True):
        want, have = np.asarray(want, np.float64), np.asarray(have, np.float64)
        allowed = tolerance * np.max(np.abs(want)) + 1e-7
        worst = np.max(np.abs(have - want))
        assert worst <= allowed, f"{jax.tree_util.keystr(path)}: {worst:.3g} > {allowed:.3g}"


def class_flops(config: BertConfig, length: int) -> int:
    """FLOPs of one example's logits, by hand: the last layer asks and goes on at [CLS] alone."""
    width, inner = config.hidden_size, config.intermediate_size
    # Queries, output; scores, mix of values; the two products behind attention.
    position = 2 * width * width + 2 * length * width + 2 * width * inner
    return forward_flops(config, length) - 2 * (length - 1) * position
