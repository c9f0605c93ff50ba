"""The optimiser: what it does to each tensor, whatever the tensors are stacked in."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from small import STUDENT, TEACHER, distillation, examples, one_batch, visible_params

from jaxbert.training.optimizer import (
    clip_by_global_norm,
    clip_per_tensor,
    decay_mask,
    is_stacked,
    linear_schedule,
    make_optimizer,
    path_name,
)

RNG = np.random.default_rng(0)
PARAMS = {
    "encoder": {"layers": {"output": {"kernel": RNG.normal(size=(3, 4, 5)).astype(np.float32)}}},
    "projection": {"kernel": RNG.normal(size=(4, 2, 5)).astype(np.float32)},
    "embeddings": {"norm": {"scale": RNG.normal(size=5).astype(np.float32)}},
}


def like(tree: Any, seed: int, scale: float) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), tree)


def names(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def run(optimizer: Any, params: Any, gradients: list[Any]) -> Any:
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_clipping_per_tensor_is_clipping_of_each_layer(within):
    gradients = like(PARAMS, 1, 0.3)
    gradients["encoder"]["layers"]["output"]["kernel"][1] *= 0.01  # one layer within the norm
    found, _ = jax.jit(clip_per_tensor(1.0).update)(gradients, optax.EmptyState())

    def clipped(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x * min(1.0, 1.0 / (np.sqrt((x**2).sum()) + 1e-6))

    for group in ("encoder", "projection"):
        have, want = jax.tree.leaves(found[group])[0], jax.tree.leaves(gradients[group])[0]
        within(have, np.stack([clipped(layer) for layer in want]))
    scale = gradients["embeddings"]["norm"]["scale"]
    within(found["embeddings"]["norm"]["scale"], clipped(scale))
    kernel = gradients["encoder"]["layers"]["output"]["kernel"]
    np.testing.assert_array_equal(found["encoder"]["layers"]["output"]["kernel"][1], kernel[1])


@pytest.mark.parametrize("shape", [(2, 5), (3, 2, 5)])
def test_projection_is_stacked_only_where_it_has_a_layer_axis(shape):
    """A shared kernel is one tensor: the norm is over all of it."""
    gradient = {"projection": {"kernel": np.ones(shape, np.float32)}}
    found, _ = clip_per_tensor(1.0).update(gradient, optax.EmptyState())
    norms = np.linalg.norm(np.reshape(found["projection"]["kernel"], (-1, 10)), axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


@pytest.mark.parametrize("clip", ["tensor", "none"])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_stacked_layers_train_as_layers_by_themselves(clip, bias_correction, within):
    stacked = {"encoder": PARAMS["encoder"]}
    gradients = [like(stacked, seed, 1.0) for seed in range(3)]
    optimizer = make_optimizer(
        learning_rate=0.1, steps=5, clip=clip, bias_correction=bias_correction
    )
    together = run(optimizer, stacked, gradients)
    for layer in range(3):

        def cut(tree: Any, layer: int = layer) -> Any:
            # Under a name that no rule takes for a stack.
            return {"layer": {"kernel": jax.tree.leaves(tree)[0][layer]}}

        alone = run(optimizer, cut(stacked), [cut(gradient) for gradient in gradients])
        within(cut(together), alone)


def test_weight_decay_spares_biases_and_layer_norm_alone():
    config = STUDENT.replace(projection_per_layer=True)
    params = visible_params(config, 0)
    spared = {name for name, decays in names(decay_mask(params)).items() if not decays}
    norms = ("embeddings/norm", "encoder/layers/attention_norm", "encoder/layers/output_norm")
    biases = {name for name in names(params) if name.endswith("/bias")}
    assert spared == biases | {f"{norm}/scale" for norm in norms}
    assert {f"{norm}/bias" for norm in norms} <= spared


def test_with_bias_correction_it_is_adamw(within):
    """Against optax's own, with a constant rate and no clipping."""
    gradients = [like(PARAMS, seed, 1.0) for seed in range(3)]
    ours = make_optimizer(
        learning_rate=0.1, steps=9, warmup_ratio=0.0, schedule="constant", clip="none"
    )
    theirs = optax.adamw(0.1, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, mask=decay_mask)
    within(run(ours, PARAMS, gradients), run(theirs, PARAMS, gradients))


def test_global_clipping_is_over_all_tensors(within):
    gradients = like(PARAMS, 1, 1.0)
    norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(gradients)))
    small = jax.tree.map(lambda x: x / norm.astype(np.float32), gradients)
    # Without bias correction Adam's direction depends on the size of the gradient.
    options = {"learning_rate": 0.1, "steps": 9, "warmup_ratio": 0.0, "bias_correction": False}
    clipped = run(make_optimizer(**options, clip="global"), PARAMS, [gradients] * 2)
    within(clipped, run(make_optimizer(**options, clip="none"), PARAMS, [small] * 2))
    other = run(make_optimizer(**options, clip="none", eps=1.0), PARAMS, [gradients] * 2)
    assert not np.allclose(jax.tree.leaves(clipped)[0], jax.tree.leaves(other)[0])


@pytest.mark.parametrize("size", [0.0, 0.01, 1e4, np.nan, np.inf])
def test_global_clipping_is_that_of_optax_and_leaves_small_gradients_as_they_are(size, within):
    gradients = jax.tree.map(lambda x: np.float32(size) * x, like(PARAMS, 1, 1.0))
    ours, _ = clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    theirs, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    norm = optax.tree.norm(gradients)
    told, _ = clip_by_global_norm(1.0).update(gradients, optax.EmptyState(), norm=norm)
    jax.tree.map(np.testing.assert_array_equal, told, ours)
    if np.isfinite(size):
        within(ours, theirs)
    if size < 1:
        assert jax.tree.all(jax.tree.map(np.array_equal, ours, gradients))
    finite = [bool(np.isfinite(x).all()) for x in jax.tree.leaves(ours)]
    assert all(finite) == np.isfinite(size)


def test_schedule_rises_from_zero_peaks_after_the_warmup_and_falls_to_zero(within):
    rate = linear_schedule(3.0, 100, 0.2, True)
    counts = np.array([0, 10, 20, 60, 99, 100, 130])
    within(jax.vmap(rate)(counts), np.array([0, 1.5, 3, 1.5, 3 / 80, 0, 0]))


def test_constant_schedule_stays_after_the_warmup(within):
    rate = linear_schedule(3.0, 100, 0.2, False)
    within(jax.vmap(rate)(np.array([0, 10, 20, 99, 130])), np.array([0, 1.5, 3, 3, 3]))
    within(linear_schedule(3.0, 1, 0.0, True)(np.int32(0)), 3.0)


def test_warmup_of_all_steps_never_falls(within):
    rate = linear_schedule(1.0, 4, 1.0, True)
    within(jax.vmap(rate)(np.arange(4)), np.arange(4) / 4)


@pytest.mark.parametrize(
    "terms",
    [
        {name: {"feature": name, "layers": "last"} for name in ("probabilities", "value_relation")},
        {"preset": "minilmv2"},
        {"preset": "tinybert"},
        {"it": {"feature": "hidden", "student_layers": (1,)}},
        {"it": {"feature": "scores", "student_layers": (1,)}},
        {"it": {"feature": "scores"}, "end": {"feature": "logits"}},
        # Of a student as wide as its teacher: a state that is read without its projection.
        {
            "it": {"feature": "hidden", "student_layers": (1,)},
            "bare": {"feature": "cls", "student_layers": (2,), "projection": False},
        },
    ],
)
def test_what_no_term_reads_has_no_gradient_and_does_not_shrink(terms):
    config = STUDENT.replace(projection_per_layer=True)
    if "bare" in terms:
        config = config.replace(hidden_size=TEACHER.hidden_size)
    objective = distillation(config, TEACHER, **terms)
    params = {g: v for g, v in visible_params(config, 1).items() if g in objective.groups}
    batch = one_batch(examples([5, 9, 4]), packing=True, row_length=16)
    frozen = {"teachers": (visible_params(TEACHER, 2),)}

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> Any:
            found = objective(params, frozen, batch, jax.random.key(0))
            return sum(found[match.name].mean() for match in objective.matches)

        return jax.grad(loss)(params)

    found = gradient(params)
    moved = run(
        make_optimizer(learning_rate=0.1, steps=9, reads=objective.reads), params, [found] * 3
    )
    for name, leaf in names(found).items():
        if name.endswith("kernel") and is_stacked(name, leaf):
            for index, part in enumerate(leaf):
                read = objective.reads(name, index)
                assert read == bool(np.any(part)), (name, index)
                same = np.array_equal(names(moved)[name][index], names(params)[name][index])
                assert same != read, (name, index)
