"""Checkpoints of a phase: the whole training state, and the hash that proves it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

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


_TRASH = "deleted"


class Checkpoints:
    """A phase's checkpoints: the latest, and the best by the development metric.

    Args:
      folder: where they lie; made if absent.

    Raises:
      UserError: if what lies there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metrics: dict[int, float | None] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(self._metrics),
            enable_async_checkpointing=True,
            # Renamed first: a process killed while it deletes leaves no half of a checkpoint.
            todelete_subdir=_TRASH,
        )
        shutil.rmtree(folder / _TRASH, ignore_errors=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        for step in self._manager.all_steps():
            self._metrics[step] = self._record(step)["metric"]

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
        self._metrics[step] = metric
        self._empty_trash()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
        )

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest metric, the later of equals; the latest if none has one."""
        return _best(self._metrics, self._manager.all_steps()) or self.latest()

    def development(self) -> dict[str, float | None]:
        """The highest metric, where it was, and the latest one; None where none was measured."""
        best = _best(self._metrics, self._manager.all_steps())
        latest = self.latest()
        return {
            "best_step": best,
            "best_dev": None if best is None else self._metrics[best],
            "last_dev": None if latest is None else self._metrics[latest],
        }

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

        args = ocp.args.StandardRestore(jax.tree.map(shape, like))
        state = self._read(step, "state", args)
        if parameter_hash(state) != self._record(step)["hash"]:
            raise self._damaged(step, "its hash does not match")
        return state

    def close(self) -> None:
        """Waits for writes under way."""
        self._empty_trash()
        self._manager.close()

    def _empty_trash(self) -> None:
        self._manager.wait_until_finished()
        shutil.rmtree(self._folder / _TRASH, ignore_errors=True)

    def _record(self, step: int) -> dict[str, Any]:
        return self._read(step, "record", ocp.args.JsonRestore())

    def _read(self, step: int, item: str, args: Any) -> Any:
        self._manager.wait_until_finished()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # damage surfaces anywhere below: JSON, decompression, shapes
            raise self._damaged(step, f"its {item} cannot be read") from error

    def _damaged(self, step: int, how: str) -> UserError:
        return UserError(
            f"the checkpoint of step {step} is damaged: {how}",
            str(self._folder / str(step)),
            "remove that folder and run the same command again",
        )


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Orbax's own best-of-n policy knows no metric of the time before a restart."""

    def __init__(self, metrics: dict[int, float | None]) -> None:
        self._metrics = metrics

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {max(steps), _best(self._metrics, steps)} if steps else {}
        return [step in kept for step in steps]


def _best(metrics: dict[int, float | None], steps: Sequence[int]) -> int | None:
    """The step with the highest metric, the later of equals; None if none has one."""
    scored = [(metrics[step], step) for step in steps if metrics[step] is not None]
    return max(scored)[1] if scored else None
