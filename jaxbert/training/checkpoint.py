"""Checkpoints of a phase: the latest two and the best are kept, and what is damaged is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxbert import processes
from jaxbert.errors import UserError, warn
from jaxbert.files import (
    absolute,
    free_bytes,
    is_remote,
    move_tree,
    remove_tree,
    sealed,
    size_text,
    whole,
)
from jaxbert.training.loops import end_what_is_begun
from jaxbert.training.record import Record, host_leaves
from jaxbert.training.stored import JUDGEMENT, Damaged, Stored

_TRASH, _DAMAGED = "deleted", "damaged"


class Checkpoints:
    """A phase's checkpoints: the latest two, and the best by the development metric.

    Those that cannot be read are named and set aside, in the folder ``damaged``.

    Args:
      folder: where they lie; made if absent.
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
        end_what_is_begun()
        self._clear()
        processes.barrier()
        self._manager = ocp.CheckpointManager(absolute(folder), options=options)
        self._metrics.update(processes.agree(self._survey() if processes.first() else []))
        self._manager.reload()

    def _survey(self) -> list[tuple[int, float | None]]:
        """Steps and their metrics, of what can be read; the rest is set aside."""
        finished, found = self._manager.all_steps(), dict[int, float | None]()
        bests = dict[int, float | None]()
        for child in [child for child in self._folder.glob("*") if child.name.isdigit()]:
            step = int(child.name)
            if is_remote(child) and step not in finished:  # it has its name from the beginning
                remove_tree(child)
                continue
            # What a process was writing when it was killed.
            for half in child.glob(f"record/.{JUDGEMENT}.*.partial"):
                half.unlink(missing_ok=True)
            try:
                if step not in finished:
                    raise Damaged(child, "it was not finished")
                stored = Stored(child)
            except Damaged as error:
                self._move_aside(error)
                continue
            found[step] = stored.metric
            bests.update([stored.best] if stored.best else [])
        return list((found | bests).items())  # each knows the best so far

    def check_room(self, state: Any) -> None:
        """Checks that a checkpoint can be written beside those that are kept.

        Raises:
          UserError: less than twice the bytes of the state are free.
        """
        needed = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = free_bytes(self._folder)
        if free is not None and free < needed:
            what = f"checkpoints need {size_text(needed)}, and {size_text(free)} are free"
            fix = "make room, or give another --workdir"
            raise UserError(what, str(self._folder), fix)

    def save(self, step: int, state: Any, note: Mapping[str, Any], due: bool = False) -> None:
        """Writes the state in the background; waits for an earlier write first.

        Args:
          step: updates made.
          state: a tree of arrays, which may be given away once this returns.
          note: JSON kept beside the state.
          due: whether the state is to be evaluated, and its metric given to ``judge``.

        Raises:
          UserError: a leaf is not finite, or an earlier write has failed.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        try:
            leaves = host_leaves(state)
        except FloatingPointError as error:
            fix = "lower the learning rate and give another --workdir"
            raise UserError(str(error), f"{self._folder}, step {step}", fix) from error
        self._clear()
        best = _best(self._metrics, self._manager.all_steps())
        content = {"best": best and [best, self._metrics[best]], "note": note, "due": due}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=Record(leaves, content)
        )
        with self._said():
            self._manager.save(step, args=args)

    def judge(self, step: int, metric: float | None, note: Mapping[str, Any]) -> None:
        """Writes the development metric of a step that was saved; waits until it is.

        Args:
          step: updates made.
          metric: larger is better; None if undefined.
          note: takes the place of the one that was saved.

        Raises:
          UserError: the step or this cannot be written.
        """
        self.wait()
        if processes.first():
            path = self._folder / str(step) / "record" / JUDGEMENT
            with self._said(), whole(path) as file:
                file.write(sealed({"metric": metric, "note": note}))
        self._metrics[step] = metric

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
            "last_dev": None if latest is None else self.metric(latest),
        }

    def due(self, step: int) -> bool:
        """Whether a step was saved to be evaluated, and was not."""
        return self._at(step).due

    def judged(self, step: int) -> bool:
        """Whether a step has been evaluated."""
        return self._at(step).judged

    def metric(self, step: int) -> float | None:
        """The development metric of a step; None if undefined or not measured."""
        return self._metrics.get(step)

    def note(self, step: int) -> dict[str, Any]:
        """The JSON kept beside the state of a step."""
        return self._at(step).note

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, laid out like ``like`` (a tree of arrays).

        Raises:
          UserError: what was read is not what was written, or the state of something else.
        """
        return self._at(step).restore(like)

    def restore_newest(self, like: Any) -> tuple[int, Any] | None:
        """The newest step that can be read, and its state; None if there is none.

        Newer ones are named and set aside. The best so far is read, too: that it is damaged is
        better known now than when the phase has been trained.

        Args:
          like: a tree of arrays, laid out as the state is to be.

        Raises:
          UserError: the best is damaged or gone, or the state is that of something else.
        """
        while (step := self.latest()) is not None:
            damage = None
            try:
                state = self.restore(step, like)
            except Damaged as error:
                damage = error
            if processes.any_of(damage is not None):
                self._set_aside(step, damage)
                continue
            best = self._at(step).best
            if best is not None and best[0] != step:
                self._at(best[0]).verify()
            return step, state
        if (self._folder / _DAMAGED).is_dir():
            warn(f"no checkpoint in {self._folder} can be read: the phase begins anew")
        return None

    def wait(self) -> None:
        """Waits for the write under way.

        Raises:
          UserError: it has failed.
        """
        with self._said():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the write under way, and ends."""
        try:
            self.wait()
            self._clear()
        finally:
            with self._said():
                self._manager.close()

    def _at(self, step: int) -> Stored:
        self.wait()
        return Stored(self._folder / str(step))

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Says in one line what goes wrong with a write, and removes what there is of it."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if processes.lost(error):
                raise
            self._clear()
            free = free_bytes(self._folder)
            room = "" if free is None else f" ({size_text(free)} are free)"
            raise UserError(
                f"a checkpoint could not be written{room}: {error}",
                str(self._folder),
                "make room, then run the same command again: it goes on from the one before it",
            ) from error

    def _clear(self) -> None:
        """Removes what is to be deleted, and what a write that did not end has left."""
        if not processes.first():
            return
        if is_remote(self._folder):  # there nothing is renamed, so that nothing has such a name
            return
        remove_tree(self._folder / _TRASH)
        for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
            remove_tree(partial)

    def _set_aside(self, step: int, damage: Damaged | None) -> None:
        if processes.first():
            folder = self._folder / str(step)
            self._move_aside(damage or Damaged(folder, "another process cannot read it"))
        processes.barrier()
        self._metrics.pop(step, None)
        self._manager.reload()

    def _move_aside(self, damage: Damaged) -> None:
        aside = self._folder / _DAMAGED / damage.folder.name
        move_tree(damage.folder, aside)
        warn(f"{damage.what}; moved to {aside}")


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """The best and the two latest: one to go on from, and one should that be damaged.

    Orbax's own best-of-n policy knows no metric of the time before a restart.
    """

    def __init__(self, metrics: dict[int, float | None]) -> None:
        self._metrics = metrics

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-2:], _best(self._metrics, steps)}
        return [step in kept for step in steps]


def _best(metrics: dict[int, float | None], steps: Sequence[int]) -> int | None:
    """The step with the highest metric, the later of equals; None if none has one."""
    scored = [(metric, step) for step in steps if (metric := metrics.get(step)) is not None]
    return max(scored)[1] if scored else None
