"""What a training step needs, counted from its shapes, and how long it takes, by a short probe.

Nothing here compiles a whole step: an objective is traced to its operations (a second or two), and
what is compiled and timed is one encoder layer at the phase's widths and batch.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core
from jax.sharding import Mesh

from jaxbert.batch import Batch
from jaxbert.models.attention import segment_bias
from jaxbert.models.bert import Bert, BertConfig, Params, count_parameters, init_params
from jaxbert.models.encoder import Collect
from jaxbert.models.linear import hold_operands
from jaxbert.objectives.objective import Objective
from jaxbert.training.cost import products
from jaxbert.training.sharding import held_bytes

_FLOAT32 = 4  # bytes
_MOMENTS = 2  # of Adam, a parameter
_ROUNDS = 3
_PROBED = 4_000_000  # parameters that an update is timed with


def shapes_of(config: BertConfig, groups: tuple[str, ...] | None = None) -> Params:
    """The shapes of a model's parameters; arguments as ``init_params``."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), groups))


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one micro-batch on one device costs.

    Attributes:
      parameters: trained, P.
      frozen: parameters that are read and not trained, such as the teacher's.
      held: bytes of the trained parameters that one device holds, H: 4 P, less where the mesh
        divides them.
      held_frozen: the same of the others, in the dtype that they are held in.
      activations: bytes of what the forward pass keeps for the backward pass, A: the residuals of
        the objective's derivative, as JAX traces them.
      batch: bytes of the batch.
      trained_flops: of products in the forward and backward pass of what is trained, two a
        multiply-add.
      frozen_flops: of products that no gradient reaches.
    """

    parameters: int
    frozen: int
    held: int
    held_frozen: int
    activations: int
    batch: int
    trained_flops: int
    frozen_flops: int

    @property
    def state(self) -> int:
        """Bytes of the training state, which a checkpoint holds: 4 (1 + 2) P."""
        return _FLOAT32 * (1 + _MOMENTS) * self.parameters

    def memory(self, accumulation: int) -> int:
        """Bytes at the peak of one device: 3 H of state + H of gradients (2 H, added up over
        several) + frozen + A + batch. Along ``model`` there is less of A.
        """
        state, gradients = (1 + _MOMENTS) * self.held, self.held * (1 + (accumulation > 1))
        return state + gradients + self.held_frozen + self.activations + self.batch


def cost_of(
    objective: Objective, params: Params, frozen: Any, batch: Batch, mesh: Mesh
) -> StepCost:
    """Counts a step without compiling anything.

    A product forward costs two more backward, one for each operand, so that what a derivative
    costs beyond its function tells the trained part from the frozen one.

    Args:
      objective: of the phase.
      params: the trained groups, arrays or shapes.
      frozen: what may be read beside them, arrays or shapes as they are held; what is not read
        does not count.
      batch: one micro-batch of one device.
      mesh: where the parameters lie.
    """

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    params, frozen, batch = (jax.tree.map(shape, tree) for tree in (params, frozen, batch))

    def loss(params: Any, frozen: Any, batch: Batch) -> jax.Array:
        terms = objective(params, frozen, batch, jax.random.key(0))
        return sum((term.total for term in terms.values()), start=jnp.float32(0.0))

    def derivative(params: Any, frozen: Any, batch: Batch) -> Any:
        _, pull = jax.vjp(lambda params: loss(params, frozen, batch), params)
        return pull(jnp.float32(1.0)), jax.tree.leaves(pull)

    forward = jax.make_jaxpr(loss)(params, frozen, batch).jaxpr
    both = jax.make_jaxpr(derivative)(params, frozen, batch).jaxpr
    count = len(jax.tree.leaves(params))
    inputs, kept = set(both.invars), both.outvars[count:]
    residuals = {v for v in kept if isinstance(v, core.Var)} - inputs
    read = {v for equation in forward.eqns for v in equation.invars if isinstance(v, core.Var)}
    others = forward.invars[count : -len(jax.tree.leaves(batch))]
    leaves, tree = jax.tree.flatten(frozen)
    told = [x if v in read else None for x, v in zip(leaves, others, strict=True)]
    seen = jax.tree.unflatten(tree, told)
    once, all_products = products(forward), products(both)
    trained = (all_products - once) // 2
    return StepCost(
        count_parameters(params),
        count_parameters(seen),
        held_bytes(mesh, params),
        held_bytes(mesh, seen),
        sum(_bytes(v.aval) for v in residuals),
        sum(map(_bytes, jax.tree.leaves(batch))),
        3 * trained,
        once - trained,
    )


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * np.dtype(x.dtype).itemsize


def layer_rate(config: BertConfig, rows: int, length: int, *, trained: bool) -> float:
    """FLOPs a second of one encoder layer on this device, the best of three calls.

    Args:
      config: the model; its dropout and dtype are those of the training.
      rows: B of a micro-batch on a device.
      length: T.
      trained: forward and backward; False = forward alone, dropout off.
    """
    one = config.replace(num_layers=1)
    rng = np.random.default_rng(0)

    def draw(x: Any) -> np.ndarray:
        return rng.normal(0.0, 0.02, x.shape).astype(np.float32)

    params = jax.tree.map(draw, shapes_of(one, ("encoder",)))
    x = rng.normal(size=(rows, length, one.hidden_size)).astype(np.float32)
    segments = np.ones((rows, length), np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), segments.shape)
    dropout = trained and max(one.hidden_dropout, one.attention_dropout) > 0

    def run(params: Params, x: jax.Array, key: jax.Array) -> jax.Array:
        out: Any = Bert(one).apply(
            {"params": params},
            x,
            segment_bias(jnp.asarray(segments)),
            positions,
            collect=Collect(scores=(0,) if trained else ()),  # as most phases read them
            deterministic=not dropout,
            rngs={"dropout": key},
            method=lambda model, *given, **more: model.encoder(*given, **more),
        )
        return jnp.sum(jnp.square(out.last_hidden))

    function = jax.grad(run, argnums=(0, 1)) if trained else run
    if one.dtype == "int8":
        params = hold_operands(params, one.dtype)
    given = jax.device_put((params, x, jax.random.key(0)))
    flops = products(jax.make_jaxpr(function)(*given).jaxpr)
    return flops / _seconds(jax.jit(function), *given)


def product_rate(config: BertConfig, rows: int, length: int) -> float:
    """FLOPs a second of NumPy's float32 product of a batch with a feed-forward matrix.

    Args:
      config: the model.
      rows: B of a micro-batch.
      length: T.
    """
    x = np.ones((rows * length, config.hidden_size), np.float32)
    w = np.ones((config.hidden_size, config.intermediate_size), np.float32)
    return 2 * x.size * config.intermediate_size / _seconds(np.matmul, x, w)


def pass_seconds(parameters: int) -> float:
    """How long NumPy takes for the memory traffic of an update: moments, decay and step.

    Of Adam's ten operations on each parameter a compiler leaves about four passes over memory.
    """
    x = np.ones(max(min(parameters, _PROBED), 1), np.float32)
    return 4 * _seconds(np.add, x, x) * parameters / x.size


def update_seconds(optimizer: optax.GradientTransformation, parameters: int, width: int) -> float:
    """How long an update of so many parameters takes: clipping, Adam and weight decay.

    It is bound by memory: what up to four million parameters of one table take, in proportion.
    """
    table = jnp.ones((max(min(parameters, _PROBED) // width, 1), width), jnp.float32)
    state = jax.jit(optimizer.init)({"word": table})

    def update(gradient: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = {"word": table}
    return _seconds(jax.jit(update), params, state, params) * parameters / table.size


def _seconds(function: Callable[..., Any], *given: Any) -> float:
    """The best of three calls, after one that compiles."""
    jax.block_until_ready(function(*given))
    best = math.inf
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(function(*given))
        best = min(best, time.perf_counter() - began)
    return best
