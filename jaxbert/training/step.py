"""The one jitted training step that every phase uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbert.batch import Batch
from jaxbert.objectives.losses import Term
from jaxbert.objectives.objective import Objective, weighted_loss
from jaxbert.training import sharding

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, updates made.
      params: the trained parameter groups.
      opt_state: the optimiser's state.
    """

    step: Array
    params: Any
    opt_state: Any


Step = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Term]]]


def init_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out on the mesh.

    Args:
      params: the trained groups, as host or device arrays; copied, so that donation of the state
        takes nothing from the caller.
      optimizer: as given to ``make_step``.
      mesh: as given to ``make_step``.
    """

    def make(params: Any) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    shardings = sharding.tree_shardings(mesh, jax.eval_shape(make, params))
    return jax.jit(make, out_shardings=shardings)(params)


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: Any,
    *,
    seed: int,
    phase: int,
    accumulation: int = 1,
) -> Step:
    """Builds the jitted ``step(state, frozen, batch) -> (state, metrics)``; the state is donated.

    Metrics are (total, count) pairs: the objective's terms, ``loss`` and ``gradient_norm``. A step
    in which the loss or the gradient is not finite leaves parameters and optimiser as they were.

    Args:
      objective: what is minimised.
      optimizer: makes updates of gradients.
      mesh: where it runs; rows of a batch lie along ``data``.
      state: the state's shapes.
      seed: of the run; random keys are fold_in(fold_in(seed, phase), step).
      phase: the phase's index in the run.
      accumulation: micro-batches that a batch is cut into; B must be a multiple of it.
    """

    def loss(
        params: Any, frozen: Any, batch: Batch, key: Array, weights: Any, counts: Any
    ) -> tuple[Array, Any]:
        terms = objective(params, frozen, batch, key)
        if counts is None:
            counts = {name: term.count for name, term in terms.items()}
        return weighted_loss(terms, counts, weights), dict(terms)

    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulate(params: Any, frozen: Any, batch: Batch, key: Array, weights: Any) -> Any:
        # Counts depend on masks alone, so that the compiler drops all else of this call.
        whole = objective(params, frozen, batch, key)
        counts = {name: term.count for name, term in whole.items()}

        # Row r of micro-batch m is row r * accumulation + m: every device keeps its own rows. Where
        # each holds all parameters it keeps its own sums, too, until the last micro-batch: else XLA
        # would add up the gradients of all devices within the loop, once a micro-batch.
        shares = mesh.size if mesh.shape["data"] == mesh.size else 1
        split = (shares, -1, accumulation) if shares > 1 else (-1, accumulation)

        def cut(x: Array) -> Array:  # [M, B / M, ...], or [M, P, B / (M P), ...] of P shares
            return jnp.moveaxis(x.reshape(*split, *x.shape[1:]), len(split) - 1, 0)

        def one(part: tuple[Batch, Array]) -> Any:
            micro, index = part
            own = jax.random.fold_in(key, index)

            def of_rows(rows: Batch) -> Any:
                return gradient(params, frozen, rows, own, weights, counts)

            return jax.vmap(of_rows)(micro) if shares > 1 else of_rows(micro)

        parts = (jax.tree.map(cut, batch), jnp.arange(accumulation))
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        if shares > 1:
            zeros = jax.lax.with_sharding_constraint(zeros, NamedSharding(mesh, P("data")))
        total, _ = jax.lax.scan(
            lambda carry, part: (jax.tree.map(jnp.add, carry, one(part)), None), zeros, parts
        )
        return jax.tree.map(lambda x: x.sum(axis=0), total) if shares > 1 else total

    root = jax.random.fold_in(jax.random.key(seed), phase)
    moves = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Term]]:
        key = jax.random.fold_in(root, state.step)
        weights = objective.weights(state.step)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # which products ask for
            if accumulation == 1:
                (value, terms), grads = gradient(state.params, frozen, batch, key, weights, None)
            else:
                (value, terms), grads = accumulate(state.params, frozen, batch, key, weights)
        norm = optax.tree.norm(grads)

        def move() -> tuple[Any, Any]:
            updates, opt_state = moves.update(grads, state.opt_state, state.params, norm=norm)
            return optax.apply_updates(state.params, updates), opt_state

        # A bad step moves nothing but the number of the step: none is in a checkpoint. On a CPU it
        # is a branch, since to choose between old and new values passes over all of them once more;
        # an accelerator's branch would wait for the host.
        good, old = jnp.isfinite(value) & jnp.isfinite(norm), (state.params, state.opt_state)
        if mesh.devices.flat[0].platform == "cpu":
            params, opt_state = jax.lax.cond(good, move, lambda: old)
        else:
            params, opt_state = jax.tree.map(lambda a, b: jnp.where(good, a, b), move(), old)
        one = jnp.float32(1.0)
        metrics = terms | {
            "loss": Term(value, one),
            "gradient_norm": Term(norm, one),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    places = sharding.tree_shardings(mesh, state)
    return jax.jit(
        step,
        in_shardings=(places, None, sharding.rows(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )
