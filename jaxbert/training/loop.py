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

from jaxbert import memory, processes, stopping
from jaxbert.batch import Batch
from jaxbert.errors import UserError
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.cost import peak_rate, step_flops
from jaxbert.training.journal import Journal, PhaseProgress
from jaxbert.training.profile import Profile
from jaxbert.training.sharding import HeldRows
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
      flops: of the products of all steps, two a multiply-add, padding included.
    """

    seconds: float = 0.0
    data_wait: float = 0.0
    saving: float = 0.0
    tokens: int = 0
    real_tokens: int = 0
    bad_steps: int = 0
    flops: int = 0

    @property
    def data_wait_fraction(self) -> float:
        """Share of the seconds."""
        return self.data_wait / max(self.seconds, 1e-9)

    def since(self, earlier: Totals) -> Totals:
        """What was used between two points of a phase."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(earlier), strict=True)
        return Totals(*(now - before for now, before in pairs))


def place(batch: Batch, layout: NamedSharding, held: HeldRows | None = None) -> Batch:
    """The global batch on its devices.

    Args:
      batch: of NumPy arrays; the rows that this process holds.
      layout: how the global batch lies.
      held: which rows of it they are; None is all.
    """
    held = held or HeldRows.whole(len(batch.tokens))

    def put(x: np.ndarray) -> jax.Array:
        shape = (held.count, *x.shape[1:])
        return jax.make_array_from_callback(shape, layout, lambda i: x[held.within(i[0])])  # type: ignore[index]

    return jax.tree.map(put, batch)


def count_tokens(batch: Batch, placed: Batch, held: HeldRows | None = None) -> int:
    """Real tokens of the rows of this process; of rows that several hold, one counts them.

    Args:
      batch: as given to ``place``.
      placed: what came of it.
      held: as given to ``place``.
    """
    held = held or HeldRows.whole(len(batch.tokens))
    return sum(
        int(np.count_nonzero(batch.segments[held.within(shard.index[0])]))  # type: ignore[index]
        for shard in placed.segments.addressable_shards
        if shard.replica_id == 0
    )


def feed(
    batches: Iterable[Batch], layout: NamedSharding, held: HeldRows | None = None
) -> Iterator[tuple[Batch, Batch, float]]:
    """Yields each batch as it came, on its devices, and the seconds waited since the last one.

    The next batch is on its way to the devices before a batch is handed out: its transfer runs
    beside the step. Arguments as for ``place``.
    """
    stream = iter(batches)
    ready: tuple[Batch, Batch] | None = None
    waited = 0.0
    while True:
        began = time.monotonic()
        batch = next(stream, None)
        waited += time.monotonic() - began
        upcoming = None if batch is None else (batch, place(batch, layout, held))
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
    layout: NamedSharding,
    checkpoints: Checkpoints,
    journal: Journal,
    evaluate: Callable[[Any], float | None] | None = None,
    examples: Callable[[int], str] = str,
    held: HeldRows | None = None,
    profile: Profile | None = None,
    begun: Callable[[], object] = lambda: None,
) -> tuple[TrainState, Totals, dict[str, float]]:
    """Trains a phase from its newest checkpoint, or from ``state``, to its end.

    Args:
      plan: the phase's schedule.
      step: the jitted step, which donates its state.
      state: the state before the first step.
      frozen: parameters that no gradient reaches.
      batches: from a step and an end to the batches between them.
      layout: how a batch is laid out.
      checkpoints: the phase's.
      journal: the run's.
      evaluate: from parameters to the development metric, larger is better; None if undefined.
      examples: from a step, counted from 1, to a text that names what it learns from.
      held: the rows of each batch that `batches` gives this process; None is all.
      profile: traces some steps, and says in the end where their time went.
      begun: called once, when this process has made its first update.

    Returns:
      The selected state (the last one where nothing is evaluated), what the phase used, and the
      last logged values.

    Raises:
      UserError: too many losses or gradients were not finite, the best checkpoint is damaged, one
        is of other models, or one cannot be written.
      KeyboardInterrupt: the program was told to stop, and the state has been saved.
    """
    watch = Watch(plan.name, plan.max_bad_steps, plan.spike_factor, examples)
    log = _Log(plan, checkpoints, journal, watch, layout)
    start, state = log.begin(state)
    with PhaseProgress(plan.name, start, plan.steps) as progress, contextlib.ExitStack() as stack:
        if start:
            progress.say(f"{plan.name}: continues at step {start}")
            if evaluate is not None and checkpoints.due(start):
                log.judge(start, evaluate(state.params), progress)
        if profile is not None:
            stack.enter_context(profile)
        stream = feed(batches(start, plan.steps), layout, held)
        before = None  # the metrics of the step before
        for done, (batch, placed, waited) in enumerate(stream, start + 1):
            if done == start + 1:
                log.step_flops = step_flops(step, state, frozen, placed)
            if profile is not None:
                profile.before(state, plan.steps - done + 1)
            state, metrics = step(state, frozen, placed)
            if profile is not None:
                profile.after(state, last=plan.saves(done))
            if done == start + 1:  # it is compiled: from here on there is something to save
                stack.enter_context(stopping.saving())
                memory.give_back()
                jax.block_until_ready(metrics)
                begun()
            watch.add(done, metrics)
            log.see(placed, count_tokens(batch, placed, held), waited)
            # No more than this step is left to the devices: a stop would wait for all of them.
            jax.block_until_ready(before)
            before = metrics
            progress.advance(done - 1)
            stops = _told(plan, done)
            if done % plan.log_every == 0 or plan.saves(done):
                log.write(done, progress)
            if plan.saves(done) or stops:
                log.save(done, state, due=evaluate is not None and plan.evaluates(done))
            if stops:
                break
            if evaluate is not None and plan.evaluates(done):
                with _interruptible():
                    metric = evaluate(state.params)
                log.judge(done, metric, progress)
        if profile is not None:
            progress.say("\n".join(profile.table()))
    best = checkpoints.best()
    if plan.select == "best" and best is not None and best != plan.steps:
        state = checkpoints.restore(best, state)
    return state, log.totals, log.values


def _told(plan: Plan, step: int) -> bool:
    """Whether the program is to stop, in all of its processes after the same step."""
    # The question waits for the step: on an accelerator it is not asked at each one.
    often = 1 if jax.default_backend() == "cpu" else max(plan.log_every // 10, 1)
    if processes.count() > 1 and step % often and not plan.saves(step):
        return False
    if told := processes.any_of(stopping.requested()):
        stopping.request()
    return told


def _interruptible() -> contextlib.AbstractContextManager[None]:
    """One process may leave an evaluation; several leave together, behind it."""
    return stopping.interruptible() if processes.count() == 1 else contextlib.nullcontext()


class _Log:
    """What a phase has used and said so far, in the journal and beside its checkpoints.

    Attributes:
      totals: what it has used; its seconds are those up to the last call, its real tokens those up
        to the last time that something was written or saved.
      values: the means that were written last.
      step_flops: of the products of a step.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoints: Checkpoints,
        journal: Journal,
        watch: Watch,
        layout: NamedSharding,
    ) -> None:
        self.totals, self.values = Totals(), dict[str, float]()
        self._plan, self._checkpoints, self._journal = plan, checkpoints, journal
        self._watch, self.step_flops = watch, 0
        peak = peak_rate(jax.devices()[0].device_kind)
        self._peak = None if peak is None else layout.num_devices * peak  # of all together
        self._tokens = 0  # of this process, real, not among the totals yet

    def begin(self, state: TrainState) -> tuple[int, TrainState]:
        """Where the phase goes on, and the state there; step 0 and the given one if it is new."""
        start = 0
        self._checkpoints.check_room(state)
        if (found := self._checkpoints.restore_newest(state)) is not None:
            start, state = found
            note = self._checkpoints.note(start)
            _check_sources(self._plan, note.get("sources", {}))
            try:
                self.totals, self.values = Totals(**note["totals"]), note["values"]
                self._watch.go_on(self.totals.bad_steps, note["pending"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"what its checkpoint says of it is not understood ({error!r})"
                fix = "run the version that wrote it, or give another --workdir"
                raise UserError(what, f"phase {self._plan.name}, step {start}", fix) from error
        judged = found is not None and self._checkpoints.judged(start)
        if not self._journal.rewind(self._plan.name, start, judged) and judged:
            self._journal.write(self._plan.name, start, {"dev": self._checkpoints.metric(start)})
        self._mark, self._written = time.monotonic(), self.totals
        return start, state

    def see(self, placed: Batch, real_tokens: int, waited: float) -> None:
        """Counts a batch, of which this process made so many real tokens."""
        self._tokens += real_tokens
        self.totals = dataclasses.replace(
            self.totals,
            data_wait=self.totals.data_wait + waited,
            tokens=self.totals.tokens + placed.segments.size,
            flops=self.totals.flops + self.step_flops,
        )

    def write(self, step: int, progress: PhaseProgress) -> None:
        """Writes the means since the last time, and what was used for them."""

        def remark(step: int, text: str, entry: dict[str, float]) -> None:
            progress.say(f"{self._plan.name} {step}/{self._plan.steps} · {text}")
            if entry:
                self._journal.write(self._plan.name, step, entry)

        self.values = self._watch.means(remark) or self.values
        self._add_tokens()
        self._tick(bad_steps=self._watch.bad)
        used = self.totals.since(self._written)
        self._written = self.totals
        seconds = max(used.seconds, 1e-9)
        speed = {"flops_per_second": used.flops / seconds}
        if self._peak is not None:
            speed["mfu"] = speed["flops_per_second"] / self._peak
        entry = dataclasses.asdict(self.totals) | speed
        entry["data_wait_fraction"] = used.data_wait_fraction
        self._journal.write(self._plan.name, step, entry | self.values)
        progress.show(step, self.values, used.real_tokens / seconds, **speed)

    def save(self, step: int, state: TrainState, due: bool) -> None:
        """Saves a checkpoint with all that another process needs to go on."""
        self._add_tokens()
        self._tick()
        began = time.monotonic()
        self._journal.keep()
        self._checkpoints.save(step, state, self._note(), due)
        self._tick(saving=self.totals.saving + time.monotonic() - began)
        self._written = self.totals  # what saving took slows no step down

    def judge(self, step: int, metric: float | None, progress: PhaseProgress) -> None:
        """Writes what an evaluation of a saved step has come to, and says it."""
        self._tick()
        began = time.monotonic()
        self._checkpoints.judge(step, metric, self._note())
        self._tick(saving=self.totals.saving + time.monotonic() - began)
        self._written = self.totals
        self._journal.write(self._plan.name, step, {"dev": metric})
        said = "undefined" if metric is None else f"{metric:.4f}"
        progress.say(f"{self._plan.name} {step}/{self._plan.steps} · development {said}")

    def _add_tokens(self) -> None:
        """Counts what all processes have made, in all of them after the same step."""
        real_tokens = self.totals.real_tokens + processes.total(self._tokens)
        self._tokens = 0
        self.totals = dataclasses.replace(self.totals, real_tokens=real_tokens)

    def _note(self) -> dict[str, Any]:
        return {
            "totals": dataclasses.asdict(self.totals),
            "values": self.values,
            "pending": self._watch.pending(),
            "sources": dict(self._plan.sources),
        }

    def _tick(self, **changes: Any) -> None:
        """Counts the seconds until now."""
        now = time.monotonic()
        seconds = self.totals.seconds + now - self._mark
        self._mark = now
        self.totals = dataclasses.replace(self.totals, seconds=seconds, **changes)


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
