"""Checkpoints of a phase: the whole training state, and the hash that proves it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxbert.errors import UserError
from jaxbert.training.optimizer import path_name


def parameter_hash(tree: Any) -> str:
    """SHA-256 over the path-sorted leaves: path, dtype, global shape, little-endian C-order bytes.

    Independent of how the leaves are sharded.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    digest = hashlib.sha256()
    for name, leaf in sorted((path_name(path), leaf) for path, leaf in leaves):
        array = np.asarray(jax.device_get(leaf))
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Checkpoints:
    """A phase's checkpoints: the latest, and the best by the development metric.

    Args:
      folder: where they lie; made if absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        best = BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: Any, metric: float | None, note: dict[str, Any]) -> None:
        """Writes the state in the background; waits for an earlier write first.

        Args:
          step: updates made.
          state: a tree of arrays, copied before this returns.
          metric: the development metric at this step, larger is better; None if not measured.
          note: JSON kept beside the state.
        """
        if step in self._manager.all_steps():
            return
        record = {"hash": parameter_hash(state), "metric": metric, "note": note}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
            metrics=None if metric is None else {"metric": metric, "step": step},
        )

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest metric, the later of equals; the latest if none has one."""
        self._manager.wait_until_finished()
        ranked = [(self._record(step), step) for step in self._manager.all_steps()]
        scored = [(r["metric"], step) for r, step in ranked if r["metric"] is not None]
        return max(scored)[1] if scored else self.latest()

    def note(self, step: int) -> dict[str, Any]:
        """The JSON kept beside the state of a step."""
        return self._record(step)["note"]

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, laid out like ``like`` (a tree of arrays).

        Raises:
          UserError: if what was read is not what was written.
        """

        def shape(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

        args = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(shape, like)))
        state = self._manager.restore(step, args=args)["state"]
        if parameter_hash(state) != self._record(step)["hash"]:
            raise UserError(
                f"the checkpoint of step {step} is damaged: its hash does not match",
                str(self._folder / str(step)),
                "remove that folder and run the same command again",
            )
        return state

    def close(self) -> None:
        """Waits for writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _record(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["record"]


def _rank(metrics: Any) -> float:
    # Of equal metrics the later step stands higher, by less than any metric differs.
    return metrics["metric"] + 1e-12 * metrics["step"]
