"""The one loop that trains every phase."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxbert import stopping
from jaxbert.batch import Batch
from jaxbert.errors import UserError
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.journal import Journal, PhaseProgress
from jaxbert.training.step import Step, TrainState
from jaxbert.training.watch import Watch


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a phase ends, speaks, evaluates and saves, in steps.

    Attributes:
      name: the phase.
      steps: updates in all.
      log_every: between lines of metrics.jsonl.
      eval_every: between evaluations, each also a checkpoint; 0 = none.
      checkpoint_every: between checkpoints; 0 = only with evaluations and at the end.
      select: ``best``, the step with the highest development metric, or ``last``: which is the
        phase's result. Both are kept.
      max_bad_steps: steps with a loss or a gradient that is not finite before the phase ends.
      spike_factor: multiple of the median of recent losses that is reported; 0 = none.
      sources: hashes of what the phase starts from and learns from; it goes on from no others.
    """

    name: str
    steps: int
    log_every: int
    eval_every: int = 0
    checkpoint_every: int = 0
    select: str = "best"
    max_bad_steps: int = 0
    spike_factor: float = 0.0
    sources: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def evaluates(self, step: int) -> bool:
        """Whether the phase evaluates after ``step`` updates."""
        return bool(self.eval_every) and (step % self.eval_every == 0 or step == self.steps)

    def saves(self, step: int) -> bool:
        """Whether the phase saves after ``step`` updates."""
        due = bool(self.checkpoint_every) and step % self.checkpoint_every == 0
        return due or step == self.steps or self.evaluates(step)


@dataclasses.dataclass(frozen=True)
class Totals:
    """What a phase has used so far.

    Attributes:
      seconds: in the loop, evaluation and checkpoints included.
      data_wait: of these, seconds in which the loop had to wait for a batch; the devices may have
        been at work on earlier steps meanwhile.
      saving: of these, seconds in which it waited for checkpoints; the rest of their writing runs
        beside the steps.
      tokens: positions seen, padding included.
      real_tokens: without padding.
      bad_steps: steps that were skipped, because their loss or gradient was not finite.
    """

    seconds: float = 0.0
    data_wait: float = 0.0
    saving: float = 0.0
    tokens: int = 0
    real_tokens: int = 0
    bad_steps: int = 0

    @property
    def data_wait_fraction(self) -> float:
        """Share of the seconds."""
        return self.data_wait / max(self.seconds, 1e-9)

    def seen(self, batch: Batch, waited: float) -> Totals:
        """With one more batch, of NumPy arrays."""
        return dataclasses.replace(
            self,
            data_wait=self.data_wait + waited,
            tokens=self.tokens + batch.segments.size,
            real_tokens=self.real_tokens + int(np.count_nonzero(batch.segments)),
        )

    def since(self, earlier: Totals) -> Totals:
        """What was used between two points of a phase."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(earlier), strict=True)
        return Totals(*(now - before for now, before in pairs))


def place(batch: Batch, sharding: NamedSharding) -> Batch:
    """The global batch on its devices; every process holds the whole of it on the host."""

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, batch)


def feed(batches: Iterable[Batch], sharding: NamedSharding) -> Iterator[tuple[Batch, Batch, float]]:
    """Yields each batch as it came, on its devices, and the seconds waited since the last one.

    The next batch is on its way to the devices before a batch is handed out: its transfer runs
    beside the step.
    """
    stream = iter(batches)
    ready: tuple[Batch, Batch] | None = None
    waited = 0.0
    while True:
        began = time.monotonic()
        batch = next(stream, None)
        waited += time.monotonic() - began
        upcoming = None if batch is None else (batch, place(batch, sharding))
        if ready is not None:
            yield *ready, waited
            waited = 0.0
        if upcoming is None:
            return
        ready = upcoming


def train(
    plan: Plan,
    step: Step,
    state: TrainState,
    frozen: Any,
    batches: Callable[[int, int], Iterable[Batch]],
    sharding: NamedSharding,
    checkpoints: Checkpoints,
    journal: Journal,
    evaluate: Callable[[Any], float | None] | None = None,
    examples: Callable[[int], str] = str,
) -> tuple[TrainState, Totals, dict[str, float]]:
    """Trains a phase from its newest checkpoint, or from ``state``, to its end.

    Args:
      plan: the phase's schedule.
      step: the jitted step, which donates its state.
      state: the state before the first step.
      frozen: parameters that no gradient reaches.
      batches: from a step and an end to the batches between them.
      sharding: how a batch is laid out.
      checkpoints: the phase's.
      journal: the run's.
      evaluate: from parameters to the development metric, larger is better; None if undefined.
      examples: from a step, counted from 1, to a text that names what it learns from.

    Returns:
      The selected state (the last one where nothing is evaluated), what the phase used, and the
      last logged values.

    Raises:
      UserError: too many losses or gradients were not finite, the best checkpoint is damaged, one
        is of other models, or one cannot be written.
      KeyboardInterrupt: the program was told to stop, and the state has been saved.
    """
    start, totals, values = 0, Totals(), {}
    watch = Watch(plan.name, plan.max_bad_steps, plan.spike_factor, examples)
    checkpoints.check_room(state)
    if (found := checkpoints.restore_newest(state)) is not None:
        start, state = found
        note = checkpoints.note(start)
        _check_sources(plan, note.get("sources", {}))
        totals, values = Totals(**note["totals"]), note["values"]
        watch.go_on(totals.bad_steps, note["pending"])
    journal.rewind(plan.name, start)
    mark, marked = time.monotonic(), totals
    with PhaseProgress(plan.name, start, plan.steps) as progress, contextlib.ExitStack() as stack:

        def remark(step: int, text: str, entry: dict[str, float]) -> None:
            progress.say(f"{plan.name} {step}/{plan.steps} · {text}")
            if entry:
                journal.write(plan.name, step, entry)

        if start:
            progress.say(f"{plan.name}: continues at step {start}")
        stream = feed(batches(start, plan.steps), sharding)
        for done, (batch, placed, waited) in enumerate(stream, start + 1):
            state, metrics = step(state, frozen, placed)
            if done == start + 1:  # it is compiled: from here on there is something to save
                stack.enter_context(stopping.saving())
            watch.add(done, metrics)
            totals = totals.seen(batch, waited)
            progress.advance(done)
            stops = stopping.requested()
            if done % plan.log_every == 0 or plan.saves(done):
                values = watch.means(remark) or values
                now = time.monotonic()
                totals = dataclasses.replace(
                    totals, seconds=totals.seconds + now - mark, bad_steps=watch.bad
                )
                used = totals.since(marked)
                mark, marked = now, totals
                waiting = {"data_wait_fraction": used.data_wait_fraction}
                journal.write(plan.name, done, dataclasses.asdict(totals) | waiting | values)
                progress.show(done, values, used.real_tokens / max(used.seconds, 1e-9))
            if plan.saves(done) or stops:
                metric = None
                if evaluate is not None and plan.evaluates(done):
                    metric = evaluate(state.params)
                    journal.write(plan.name, done, {"dev": metric})
                    said = "undefined" if metric is None else f"{metric:.4f}"
                    progress.say(f"{plan.name} {done}/{plan.steps} · development {said}")
                now = time.monotonic()
                totals = dataclasses.replace(totals, seconds=totals.seconds + now - mark)
                mark, marked = now, totals
                note = {"totals": dataclasses.asdict(totals), "values": values}
                note |= {"pending": watch.pending(), "sources": dict(plan.sources)}
                checkpoints.save(done, state, metric, note)
                saving = totals.saving + time.monotonic() - now
                totals = dataclasses.replace(totals, saving=saving)
            if stops:
                break
    best = checkpoints.best()
    if plan.select == "best" and best is not None and best != plan.steps:
        state = checkpoints.restore(best, state)
    return state, totals, values


_SOURCES = {
    "start": "the model that it starts from",
    "teacher": "its teacher",
    "data": "what it learns from",
}


def _check_sources(plan: Plan, found: Mapping[str, str | None]) -> None:
    for name, now in plan.sources.items():
        if now != (was := found.get(name)):
            raise UserError(
                f"{_SOURCES[name]} has changed since the checkpoint was written "
                f"({was} is now {now})",
                f"phase {plan.name}",
                "put the old one back, or give another --workdir",
            )
