"""What the phases of a run will need: memory, disk and time, before any of them has run."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxbert.config import PhaseConfig, is_reference
from jaxbert.data.corpus import find_corpus
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.tokenizer import special_ids
from jaxbert.doctor.estimate import (
    StepCost,
    cost_of,
    layer_rate,
    pass_seconds,
    product_rate,
    shapes_of,
    update_seconds,
)
from jaxbert.files import size_text
from jaxbert.interop.huggingface import Model
from jaxbert.models.bert import BertConfig, count_parameters
from jaxbert.objectives.distillation import Distillation
from jaxbert.run import OPTIMIZER, Run, held_frozen, stale
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.sharding import row_multiple

_SAMPLE = 1_000  # training rows that are encoded
_MEASURED = 1_000  # spans at most that pre-training is measured on


@dataclasses.dataclass(frozen=True)
class PhaseForecast:
    """What a phase will need.

    Attributes:
      name: of the phase.
      trains: the model.
      cost: of a micro-batch.
      rows, length: B and T of a batch on all devices.
      steps: updates.
      memory: bytes at the peak, on each device.
      flops: of a step, on all devices together, as ``metrics.jsonl`` has them.
      seconds: of all steps and evaluations, without compiling.
      disk: bytes of its checkpoints and of the model that it writes, at most.
    """

    name: str
    trains: str
    cost: StepCost
    rows: int
    length: int
    steps: int
    memory: int
    flops: int
    seconds: float
    disk: int


class Forecast:
    """Walks through the phases of a run with the shapes of the models that they will make.

    Args:
      job: has no problems.
      compiles: whether a layer is compiled and timed; False = times are those of the products in
        NumPy on this host, and NaN on a device that is none.
    """

    def __init__(self, job: Run, *, compiles: bool = True) -> None:
        self._job, self._config, self._compiles = job, job.config, compiles
        self._rates: dict[tuple[BertConfig, int, int, bool], float] = {}
        self._encoded: Examples | None = None

    def phases(self) -> Iterator[PhaseForecast]:
        """What each phase needs, in order."""
        made: dict[str, Model] = {}
        for name, phase in self._config.sections.items():
            if self._job.skips(phase):
                continue
            start, *teachers = (
                made.get(one) or self.start(one) for one in (phase.start, *phase.teachers)
            )
            found, made[phase.trains] = self._phase(name, phase, start, teachers)
            yield found

    def start(self, name: str) -> Model:
        """A model that no phase of the run trains, or the shape of one that is made anew."""
        library = self._job.library
        inherited = self._config.init_from and name in ("student", "initial_student")
        if is_reference(name) or name in ("given_teacher", "teacher") or inherited:
            return library.get(name)
        config = library.shapes.of(name)
        return Model(config, shapes_of(config), (), library.folder(name))

    def _phase(
        self, name: str, phase: PhaseConfig, start: Model, teachers: Sequence[Model]
    ) -> tuple[PhaseForecast, Model]:
        """A phase, and the shape of what it trains."""
        objective = self._job.objectives.make(phase, start, teachers)
        config = objective.model
        params = shapes_of(config, objective.groups)
        kept = {g: v for g, v in start.params.items() if g not in stale(objective)} | params
        frozen = jax.eval_shape(
            functools.partial(held_frozen, objective),
            start.params,
            tuple(one.params for one in teachers),
        )
        batches = self._batches(phase)
        length, rows = batches.row_length, batches.rows // self._multiple(phase)
        batch = self._job.data.stream(phase, batches, None)[0]
        part = jax.tree.map(lambda x: x[:rows], batch)
        cost = cost_of(objective, params, frozen, part, self._job.mesh)
        # Of several teachers, the first one's rate.
        teachers_read = objective.teachers if isinstance(objective, Distillation) else ()
        still = (*teachers_read, start.config.replace(dtype=config.dtype))[0]
        # Rows of the model itself, forward alone, and a third of what training it takes.
        ahead = cost.trained_flops / 3 / rows / self._rate(config, rows, length, trained=False)
        seconds = self._step_seconds(phase, config, still, cost, rows, length)
        kept_states = bool(phase.eval_every) + 2 * bool(phase.eval_every or phase.checkpoint_every)
        forecast = PhaseForecast(
            name,
            phase.trains,
            cost,
            batches.rows,
            length,
            phase.steps,
            cost.memory(phase.accumulation),
            self._multiple(phase) * (cost.trained_flops + cost.frozen_flops),
            phase.steps * seconds + self._evaluated_rows(phase) * ahead,
            # The two latest checkpoints and the best, and the one that is being written.
            (1 + kept_states) * cost.state + 4 * count_parameters(kept),
        )
        return forecast, Model(config, kept, start.labels, self._job.library.folder(phase.trains))

    def _step_seconds(
        self,
        phase: PhaseConfig,
        config: BertConfig,
        still: BertConfig,
        cost: StepCost,
        rows: int,
        length: int,
    ) -> float:
        seconds = cost.trained_flops / self._rate(config, rows, length, trained=True)
        if cost.frozen_flops:
            seconds += cost.frozen_flops / self._rate(still, rows, length, trained=False)
        if self._compiles:
            optimizer = make_optimizer(**{key: getattr(phase, key) for key in OPTIMIZER})
            update = update_seconds(optimizer, cost.parameters, config.hidden_size)
        else:
            update = pass_seconds(cost.parameters)
        return phase.accumulation * seconds + update

    def _rate(self, config: BertConfig, rows: int, length: int, *, trained: bool) -> float:
        """Measured once for what is the same in one layer."""
        kept = ("hidden_size", "num_heads", "intermediate_size", "activation", "position", "dtype")
        one = BertConfig(
            **{key: getattr(config, key) for key in kept},
            hidden_dropout=config.hidden_dropout * trained,
            attention_dropout=config.attention_dropout * trained,
        )
        key = (one, rows, length, trained)
        if key not in self._rates and not self._compiles:
            host = jax.default_backend() == "cpu"
            self._rates[key] = product_rate(one, rows, length) if host else math.nan
        if key not in self._rates:
            self._rates[key] = layer_rate(one, rows, length, trained=trained)
        return self._rates[key]

    def _multiple(self, phase: PhaseConfig) -> int:
        return row_multiple(self._job.mesh) * phase.accumulation

    def _batches(self, phase: PhaseConfig) -> PackedBatches:
        """Batches of the phase's shape: of a sample of its rows, of text as if all were full."""
        return PackedBatches(
            self._full_spans(phase.nsp) if phase.data == "corpus" else self.sample,
            batch_size=phase.batch_size,
            row_length=self._config.max_length,
            seed=self._config.seed,
            packing=phase.packing,
            multiple=self._multiple(phase),
        )

    @property
    def sample(self) -> Examples:
        """Some of the task's training rows, in word pieces."""
        if self._encoded is None:
            self._encoded = self._job.data.encode(self._job.data.task.train.sample(_SAMPLE))
        return self._encoded

    def _full_spans(self, pairs: bool) -> Examples:
        """Text as long as a row; with the labels that pairs of sentences have."""
        tokenizer = self._job.library.tokenizer
        ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), special_ids(tokenizer))
        spans = [np.resize(ordinary, self._config.max_length) for _ in range(4)]
        return Examples.join(spans, labels=np.zeros(4, np.int32) if pairs else None)

    def _evaluated_rows(self, phase: PhaseConfig) -> float:
        """Packed rows that all evaluations of a phase read, about."""
        if not phase.eval_every:
            return 0.0
        times = -(-phase.steps // phase.eval_every)
        if phase.objective == "pretrain":
            return float(times * _MEASURED)
        share = float(self.sample.lengths.mean()) / self._config.max_length
        return times * len(self._job.data.task.dev) * share

    def text_bytes(self) -> int:
        """Bytes of the corpus's files; 0 without a corpus, and of a prepared one."""
        corpus = self._config.corpus
        if not self._job.data.reads("corpus") or corpus.startswith("prepared:"):
            return 0
        terms = find_corpus(corpus, self._config.data_dir)
        files = {Path(file) for term in terms for file in term.source.files()}
        return sum(file.stat().st_size for file in files)


COLUMNS = (
    *("", "trains", "parameters", "frozen", "batch", "memory", "FLOPs a step", "steps"),
    *("minutes", "disk"),
)
# What the columns mean.
BASIS = (
    "memory is that of one device, 12 bytes a trained parameter (values, two moments), 4 of its "
    "gradient, a frozen one as it is held, less where the mesh divides them, and what the backward "
    "pass keeps of a batch; FLOPs are those of all devices together"
)


def describe_phase(phase: PhaseForecast) -> tuple[str, ...]:
    """A phase in words, a column each of ``COLUMNS``."""
    return (
        phase.name,
        phase.trains,
        f"{phase.cost.parameters:,}",
        f"{phase.cost.frozen:,}",
        f"{phase.rows} x {phase.length}",
        size_text(phase.memory),
        f"{phase.flops / 1e9:,.1f} G",
        f"{phase.steps:,}",
        _minutes(phase.seconds),
        size_text(phase.disk),
    )


def describe_total(phases: Sequence[PhaseForecast], about: str = "about") -> str:
    """What a run needs, in a line; `about` says how its minutes are meant."""
    seconds, disk = sum(p.seconds for p in phases), sum(p.disk for p in phases)
    peak = max((p.memory for p in phases), default=0)
    return (
        f"the run: {about} {_minutes(seconds)} minutes, {size_text(peak)} of memory a device, "
        f"{size_text(disk)} of disk at most"
    )


def _minutes(seconds: float) -> str:
    return "an unknown number of" if math.isnan(seconds) else f"{seconds / 60:.1f}"
