"""BERT's optimiser in optax, acting per layer however the parameters are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array
Reads = Callable[[str, int], bool]


def path_name(path: tuple[Any, ...]) -> str:
    """``embeddings/norm/scale`` for a key path of jax.tree_util."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_stacked(name: str, leaf: Array) -> bool:
    """Whether a leaf's first axis counts layers: several tensors stored as one."""
    return name.startswith("encoder/layers/") or (
        name.startswith("projection/") and leaf.ndim == (3 if name.endswith("kernel") else 2)
    )


def decay_mask(params: Any) -> Any:
    """True for what weight decay moves: everything but biases and LayerNorm scales."""

    def decays(path: tuple[Any, ...], _: Array) -> bool:
        return path_name(path).rsplit("/", 1)[-1] not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def decay_weights(weight_decay: float, reads: Reads | None = None) -> optax.GradientTransformation:
    """Weight decay of what ``decay_mask`` has, and of a stack of those tensors that are read.

    A tensor without a gradient would only shrink; PyTorch's optimisers pass it over.

    Args:
      weight_decay: times the parameter, added to the updates.
      reads: whether the loss depends on a tensor of a stack, by the leaf's name and its place in
        the stack; None = on all.
    """
    plain = optax.add_decayed_weights(weight_decay, decay_mask)
    if reads is None:
        return plain

    def spare(path: tuple[Any, ...], leaf: Array) -> Array:
        name = path_name(path)
        if not is_stacked(name, leaf):
            return leaf
        read = np.array([reads(name, i) for i in range(len(leaf))], np.float32)
        return leaf if read.all() else leaf * read.reshape(-1, *[1] * (leaf.ndim - 1))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return plain.update(updates, state, jax.tree_util.tree_map_with_path(spare, params))

    return optax.GradientTransformation(plain.init, update)


def linear_schedule(
    learning_rate: float, steps: int, warmup_ratio: float, decay: bool
) -> optax.Schedule:
    """Linear warm-up from 0, then linear decay to 0 at the last step, or a constant.

    The argument is the count of updates made before: with a warm-up the first update has rate 0
    (Devlin et al. 2019, as their code does it).
    """

    def schedule(count: Array) -> Array:
        progress = count / steps
        after = (1.0 - progress) / max(1.0 - warmup_ratio, 1e-9) if decay else 1.0
        during = progress / max(warmup_ratio, 1e-9)
        return learning_rate * jnp.maximum(jnp.where(progress < warmup_ratio, during, after), 0.0)

    return schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales all gradients by one factor to an L2 norm of at most ``max_norm`` together.

    As optax does it, by one product: XLA then clips while it reads the gradients for Adam, where
    a choice between two values writes all of them once more. Who has their norm gives it to
    ``update`` as ``norm``, and they are not read for it again.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, norm: Array | None = None, **_: Any
    ) -> tuple[Any, Any]:
        norm = optax.tree.norm(updates) if norm is None else norm
        factor = max_norm / jnp.maximum(norm, max_norm)
        return jax.tree.map(lambda gradient: gradient * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def clip_per_tensor(max_norm: float) -> optax.GradientTransformation:
    """Scales each parameter tensor's gradient to an L2 norm of at most ``max_norm``.

    A stacked leaf is as many tensors as it has layers. The factor is min(1, max / (norm + 1e-6)).
    """

    def clip(path: tuple[Any, ...], gradient: Array) -> Array:
        axes = tuple(range(1 if is_stacked(path_name(path), gradient) else 0, gradient.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=axes, keepdims=True))
        return gradient * jnp.minimum(1.0, max_norm / (norm + 1e-6))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(clip, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


class MomentState(NamedTuple):
    """First and second moments, shaped like the parameters."""

    mu: Any
    nu: Any


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction m / (sqrt(v) + eps) without bias correction (BertAdam)."""

    def init(params: Any) -> MomentState:
        return MomentState(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates: Any, state: MomentState, params: Any = None) -> tuple[Any, MomentState]:
        mu = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1.0 - b2) * g * g, state.nu, updates)
        step = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return step, MomentState(mu, nu)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    *,
    learning_rate: float,
    steps: int,
    warmup_ratio: float = 0.1,
    schedule: str = "linear",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    bias_correction: bool = True,
    weight_decay: float = 0.01,
    clip: str = "global",
    clip_norm: float = 1.0,
    reads: Reads | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, warm-up, linear decay and clipping.

    Args:
      learning_rate: its peak.
      steps: updates in all.
      warmup_ratio: share of the steps over which the rate rises from 0.
      schedule: ``linear`` decay to 0 or ``constant``, both after the warm-up.
      b1, b2, eps: Adam's; eps is added outside the root.
      bias_correction: False, with ``clip="tensor"``, is BertAdam exactly.
      weight_decay: added to Adam's direction, times the parameter, before the rate.
      clip: ``global``, ``tensor`` (each parameter tensor by itself) or ``none``.
      clip_norm: the largest L2 norm that clipping leaves.
      reads: as `decay_weights` takes it.
    """
    rate = linear_schedule(learning_rate, steps, warmup_ratio, schedule == "linear")
    adam = optax.scale_by_adam if bias_correction else scale_by_uncorrected_adam
    clipping = {
        "global": clip_by_global_norm,
        "tensor": clip_per_tensor,
        "none": lambda _: optax.identity(),
    }[clip]
    return optax.chain(
        clipping(clip_norm),
        adam(b1=b1, b2=b2, eps=eps),
        decay_weights(weight_decay, reads),
        optax.scale_by_learning_rate(rate),
    )
