"""A resolved config to its phases to the loop: the one place where the parts meet."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxbert import processes, teaching
from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.data.tasks import SIMILARITY
from jaxbert.data.taught import PREFIX, Taught
from jaxbert.data.tokenizer import excerpt
from jaxbert.datasets import MEASURED_TOGETHER, Datasets
from jaxbert.errors import UserError, memory_advice
from jaxbert.evaluation.masked import measure
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predict import RowPredictor
from jaxbert.evaluation.probe import Probe
from jaxbert.files import check_seal, is_whole, read_object, scratch, seal
from jaxbert.inspection import Inspection
from jaxbert.interop.huggingface import Model
from jaxbert.library import Library
from jaxbert.models.bert import BertConfig, Params, init_params
from jaxbert.models.linear import hold_operands
from jaxbert.objectives.distillation import Distillation
from jaxbert.objectives.objective import Objective
from jaxbert.objectives.pretraining import Pretraining
from jaxbert.phases import Objectives
from jaxbert.training import sharding
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.cost import fast_dtype
from jaxbert.training.hashing import parameter_hash
from jaxbert.training.journal import Journal
from jaxbert.training.loop import Plan, train
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.profile import Profile
from jaxbert.training.step import init_state, make_step
from jaxbert.training.tracking import Tracker
from jaxbert.workdir import (
    RESTORE,
    SEALED,
    check_claim,
    claim,
    instruction_sets,
    system,
    versions,
    write_json,
)

OPTIMIZER = (
    "learning_rate",
    "steps",
    "warmup_ratio",
    "schedule",
    "b1",
    "b2",
    "eps",
    "bias_correction",
    "weight_decay",
    "clip",
    "clip_norm",
)
# Carried heads would belong to states that a phase has moved.
STALE = ("projection", "mlm", "nsp")


def run(
    config: RunConfig, workdir: Path, *, profile: bool = False, command: str = ""
) -> dict[str, Any]:
    """Trains every phase that is not finished, and writes summary.json.

    Running it again continues: finished phases are kept, the phase under way goes on from its
    newest checkpoint.

    Args:
      config: checked.
      workdir: the run's folder; made if absent.
      profile: trace some steps of each phase into ``profile/``, and say where their time goes.
      command: by which a user has started it, for summary.json.

    Returns:
      What summary.json holds.

    Raises:
      UserError: whatever the user can fix.
    """
    config = settled(config, workdir)
    check_claim(workdir, config)
    job = Run(config, workdir, profile=profile)
    processes.in_turn(job.inspection.check)
    trusted = job.inspection.trust_teachers()
    scores = {reference: score.facts() for reference, score in trusted.items()}
    with claim(workdir, config) if processes.first() else contextlib.nullcontext():
        processes.barrier()
        summary = job.train(scores, command)
        processes.barrier()
        return summary


def settled(config: RunConfig, workdir: Path) -> RunConfig:
    """The config with a dtype: where it leaves that to the devices, those on which its run began.

    Args:
      config: checked.
      workdir: the run's folder; need not be there.
    """
    if config.dtype:
        return config
    dtype, path = None, workdir / "config.json"
    with contextlib.suppress(UserError):  # check_claim says what is wrong with it
        dtype = read_object(path, RESTORE).get("dtype") if path.exists() else None
    if dtype not in ("bfloat16", "float32"):
        dtype = fast_dtype(jax.devices()[0], instruction_sets())
    return dataclasses.replace(config, dtype=processes.agree(dtype))


def quieten() -> None:
    """Leaves out what libraries say while they work as they should; for commands and notebooks."""
    for name in ("absl", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="orbax")


class Run:
    """What the phases of one run share: models, data and devices.

    Args:
      config: checked.
      workdir: the run's folder.
      profile: whether steps are traced.
    """

    def __init__(self, config: RunConfig, workdir: Path, *, profile: bool = False) -> None:
        config = settled(config, workdir)
        self.config, self.workdir, self._profile = config, workdir, profile
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model, config.mesh.fsdp)
        self.journal = Journal(workdir, Tracker(config.tracking, workdir, config.to_dict()))
        self.library = Library(config, workdir)
        self.data = Datasets(config, self.library, workdir)
        self.objectives = Objectives(config, self.library, self.data)
        self.inspection = Inspection(config, self.library, self.data, self.objectives, self.mesh)

    def train(self, scores: dict[str, Any], command: str) -> dict[str, Any]:
        """Trains every phase that is not finished, and writes summary.json.

        Args:
          scores: of the given teachers on the task, by reference.
          command: by which a user has started it.

        Returns:
          What summary.json holds.
        """
        processes.in_turn(self.library.keep_vocabulary)
        finished: dict[str, dict[str, Any]] = {}
        try:
            for index, name in enumerate(self.config.phases):
                if self.skips(self.config.sections[name]):
                    print(
                        f"{name}: skipped, the given teacher has a classifier already", flush=True
                    )
                    continue
                finished[name] = self.finish(index, name, list(finished.values()))
        finally:  # what is told to stop leaves without Python's own end
            self.journal.close()
        given: dict[str, str | None] = {"parameter_hash": None}
        dev = {"dev": scores.pop(self.config.teacher)} if self.config.teacher in scores else {}
        if self.library.has_teacher:
            given = {"parameter_hash": parameter_hash(self.library.given.params)}
        summary = {
            "phases": finished,
            "parameter_hash": (list(finished.values()) or [given])[-1]["parameter_hash"],
            "teacher": {"reference": self.config.teacher, "hash": given["parameter_hash"]} | dev,
            "other_teachers": scores,
            "seed": self.config.seed,
            "config": self.config.to_dict(),
            **self._made_by(command, finished),
        }
        students = [phase for phase in finished.values() if phase["model"] == "student"]
        if students:
            summary["parameter_hash"] = students[-1]["parameter_hash"]
        summary |= self.data.facts()
        if processes.first():
            write_json(self.workdir / "summary.json", summary)
            seal(self.workdir, SEALED)
        return summary

    def _made_by(self, command: str, finished: dict[str, Any]) -> dict[str, Any]:
        """What trained the phases: this call, or the earlier one that all of them are of."""
        now = {
            "command": command,
            "devices": {
                "platform": jax.default_backend(),
                "kind": jax.devices()[0].device_kind,
                "count": jax.device_count(),
            },
            "system": system(),
            "versions": versions(),
            "git_revision": _git_revision(),
        }
        with contextlib.suppress(UserError):  # none yet, or damaged: it is written anew
            check_seal(self.workdir, "")
            before = read_object(self.workdir / "summary.json", "")
            if before.get("phases") == finished:
                return {name: before.get(name) for name in now}
        return now

    def skips(self, phase: PhaseConfig) -> bool:
        """Whether a phase would make a teacher that is given."""
        makes_teacher = phase.trains == "teacher" and phase.objective == "finetune"
        return makes_teacher and self.library.teacher_is_finetuned

    def finish(
        self, index: int, name: str, earlier: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        """Trains one phase to its end, unless it is there already; returns its record.

        Args:
          index: the phase's, among all.
          name: the phase's.
          earlier: the records of the phases before it.
        """
        phase = self.config.sections[name]
        folder = self.library.folder(phase.trains)
        record = folder / "phase.json"
        if is_whole(folder) and record.exists():
            again = "remove that folder and run the same command again, which trains the phase anew"
            check_seal(folder, again)
            result = json.loads(record.read_text(encoding="utf-8"))
            hashes = {each.get("model"): each.get("parameter_hash") for each in earlier}
            made = [hashes.get(teacher) for teacher in phase.teachers]
            if made and all(made) and result.get("teacher_hash") != "+".join(filter(None, made)):
                what = f"the phase {name} is finished, and has learnt from another {phase.teacher}"
                raise UserError(what, str(folder), again)
            print(f"{name}: finished before, in {folder}", flush=True)
            return result
        began, first_step = time.monotonic(), list[float]()
        start = processes.in_turn(lambda: self.library.start(phase))
        teachers = processes.in_turn(lambda: [self.library.get(name) for name in phase.teachers])
        objective = self.objectives.make(phase, start, teachers)
        config = objective.model
        absent = tuple(g for g in objective.groups if g not in start.params)
        key = jax.random.key(self.config.seed)
        fresh = init_params(config, key, absent) if absent else {}
        params = {g: start.params.get(g, fresh.get(g)) for g in objective.groups}
        multiple = sharding.row_multiple(self.mesh) * phase.accumulation
        batches = processes.in_turn(lambda: self.data.packed(phase, multiple))
        say_size(name, phase, batches)
        taught = None
        if isinstance(objective, Distillation) and len(teachers) == 1 and not phase.masks:
            taught = processes.in_turn(lambda: self._taught(name, objective, teachers[0], batches))
        source, stream = batches.source, self.data.stream(phase, batches, taught)
        reads = objective.reads if isinstance(objective, Distillation) else None
        optimizer = make_optimizer(**{key: getattr(phase, key) for key in OPTIMIZER}, reads=reads)
        state = init_state(params, optimizer, self.mesh)
        step = make_step(
            objective,
            optimizer,
            self.mesh,
            state,
            seed=self.config.seed,
            phase=index,
            accumulation=phase.accumulation,
        )
        layout = sharding.rows(self.mesh)
        held = sharding.HeldRows.of(layout, batches.rows)
        read = [] if taught else [teacher.params for teacher in teachers]
        frozen = held_frozen(objective, start.params, read)
        frozen = jax.device_put(frozen, sharding.tree_shardings(self.mesh, frozen))
        checkpoints = Checkpoints(self.workdir / "checkpoints" / name)
        plan = Plan(
            name,
            phase.steps,
            self.config.log_every,
            phase.eval_every,
            phase.checkpoint_every,
            phase.select or ("last" if self._probes(phase) else "best"),
            self.config.max_bad_steps,
            self.config.spike_factor,
            {
                "start": parameter_hash(start.params),
                "teacher": "+".join(parameter_hash(t.params) for t in teachers) or None,
                "data": batches.sha256,
            },
        )
        # One process's devices stand for all.
        traced = self._profile and processes.first()
        profile = Profile(scratch(self.workdir) / "profile" / name) if traced else None
        try:
            with step_advice(name, phase, batches.rows // multiple):
                state, totals, values = train(
                    plan,
                    step,
                    state,
                    frozen,
                    lambda first, last: iterate(
                        stream, first, last, rows=held.rows, workers=self.config.data_workers
                    ),
                    layout,
                    checkpoints,
                    self.journal,
                    self._evaluator(name, objective, config, frozen) if phase.eval_every else None,
                    lambda step: self._examples(batches, step),
                    held,
                    profile,
                    lambda: first_step.append(time.monotonic() - began),
                )
            development = checkpoints.development()
        finally:
            checkpoints.close()
        params = sharding.on_host(state.params)
        outdated = stale(objective)
        trained = {g: v for g, v in start.params.items() if g not in outdated} | params
        result = {
            "phase": name,
            "model": phase.trains,
            "steps": phase.steps,
            "selected_step": int(state.step),
            **development,
            **dataclasses.asdict(totals),
            "rows": batches.rows,
            "fill": batches.fill,
            "data_wait_fraction": totals.data_wait_fraction,
            "first_step_seconds": first_step[0] if first_step else None,
            "truncated": source.truncated,
            "truncated_share": source.truncated / len(source),
            "skipped": source.skipped,
            "examples": batches.examples_per_batch * phase.steps,
            "epochs": batches.epoch(phase.steps),
            "final": values,
            "start_hash": plan.sources["start"],
            "teacher_hash": plan.sources["teacher"],
            "data_hash": plan.sources["data"],
            "teacher_cache": taught and {"outputs": list(taught.outputs), "bytes": taught.bytes},
            "teacher_seconds": taught and taught.record["seconds"],
            "parameter_hash": parameter_hash(trained),
            "compilations": step._cache_size(),  # type: ignore[attr-defined]
        }
        if isinstance(objective, Pretraining):
            result["held_out"] = measure(objective, params, frozen, self.data.measured(phase))
        # A classifier that is carried through a run on a task without one keeps its own names.
        named = self.data.reads("task", "augmentation") and self.data.task.task.kind != SIMILARITY
        labels = self.data.task.labels if named else start.labels
        labels = labels if "classifier" in trained else ()
        self.journal.keep()
        extra = {"phase.json": json.dumps(result, indent=2) + "\n"}
        self.library.write(phase.trains, config, trained, labels, extra)
        processes.barrier()
        print(
            f"{name}: {phase.steps:,} steps, {totals.real_tokens:,} real tokens "
            f"({batches.fill:.1%} of positions), {totals.seconds / 60:.1f} min -> {folder}",
            flush=True,
        )
        return result

    def _examples(self, batches: PackedBatches, step: int) -> str:
        """The examples that a step, counted from 1, learns from: the first ones by their text."""
        ids = batches.example_ids(step - 1)
        ids = ids[ids >= 0]
        first = ids[:3]
        texts = (batches.source.gather(first[i : i + 1]).tokens for i in range(len(first)))
        shown = [
            f"{index} ({excerpt(self.library.tokenizer, text, 60)!r})"
            for index, text in zip(first.tolist(), texts, strict=True)
        ]
        more = f" and {len(ids) - len(first)} more" * (len(ids) > len(first))
        return f"examples {', '.join(shown)}{more}"

    def _probes(self, phase: PhaseConfig) -> bool:
        """Whether a phase's evaluation has to fit a head first, since it trains none."""
        headless = phase.objective == "distill" and not phase.classifies
        return headless and self.data.reads_task and self.data.task.task.kind != SIMILARITY

    def _taught(
        self, name: str, objective: Distillation, teacher: Model, batches: PackedBatches
    ) -> Taught | None:
        """What a phase's teacher says, where it is asked before the phase (``teacher_cache``)."""
        phase, tokenizer = self.config.sections[name], self.library.foreign(teacher)
        read = None
        if tokenizer is not None:
            teaching.check_foreign(name, phase, teacher.config.head)
            read = self.data.as_read_by(tokenizer, phase)
        return teaching.ask(
            objective,
            {"teachers": (teacher.params,)},
            phase,
            batches,
            scratch(self.workdir) / "cache" / f"{PREFIX}{name}",
            self.mesh if processes.count() == 1 else sharding.own_mesh(),
            read=read,
        )

    def _evaluator(
        self, name: str, objective: Objective, config: BertConfig, frozen: Any
    ) -> Callable[[Any], float | None]:
        """From trained parameters to the metric that selects, on what is not trained on."""
        measured = self._measurement(name, objective, config, frozen)
        size = self.config.eval_batch_size
        fix = f"give --config.eval_batch_size={max(size // 2, 1)} and run again, which goes on"
        if isinstance(objective, Pretraining):
            size, fix = MEASURED_TOGETHER, "give a smaller max_length, and another --workdir"

        def evaluate(params: Any) -> float | None:
            with memory_advice(f"evaluation in phase {name}, {size} examples at once", fix):
                if processes.count() == 1:
                    return measured(params)
                return processes.agree(measured(sharding.on_host(params)))

        return evaluate

    def _measurement(
        self, name: str, objective: Objective, config: BertConfig, frozen: Any
    ) -> Callable[[Any], float | None]:
        phase = self.config.sections[name]
        if isinstance(objective, Pretraining):
            text = self.data.measured(phase)
            return lambda params: measure(objective, params, frozen, text)["mlm_accuracy"]
        data, tokenizer = self.data.task, self.library.tokenizer
        size = {"max_length": self.config.max_length, "batch_size": self.config.eval_batch_size}
        if self._probes(phase):
            probe = Probe(data, tokenizer, **size)
            return lambda params: probe(config, params)
        task, rows = data.task, data.dev
        predict = RowPredictor.of(data, rows, tokenizer, **size)
        return lambda params: (
            score_rows(task, rows, predict(config, params), (task.metric,))[task.metric].value
        )


def held_frozen(objective: Objective, start: Params, teachers: Sequence[Params]) -> Any:
    """The parameters that an objective reads and does not train, as devices hold them.

    Args:
      objective: of the phase.
      start: of the model that it starts from.
      teachers: of those that it reads; none where what they say is kept.
    """
    frozen: dict[str, Any] = {}
    if isinstance(objective, Distillation):
        frozen["teachers"] = tuple(
            hold_operands(
                {group: teacher[group] for group in objective.groups_read(i)},
                objective.teachers[i].dtype,
            )
            for i, teacher in enumerate(teachers)
        )
    if isinstance(objective, Pretraining) and objective.encoder_frozen:
        frozen["model"] = {g: start[g] for g in objective.frozen_groups}
    return frozen


def say_size(name: str, phase: PhaseConfig, batches: PackedBatches) -> None:
    """Says where whole rows cannot hold the number of examples that was asked for."""
    held = batches.examples_per_batch
    if phase.packing and abs(held - phase.batch_size) > 0.1 * phase.batch_size:
        row = held / batches.filled_rows
        print(
            f"{name}: an update has {held:.1f} examples on average, not {phase.batch_size}: whole "
            f"rows of {batches.row_length} hold {row:.1f} each; packing=false takes as many",
            flush=True,
        )


def step_advice(
    name: str, phase: PhaseConfig, rows: int
) -> contextlib.AbstractContextManager[None]:
    """What to do when a device has not the memory that a step of a phase needs.

    Args:
      name: the phase's.
      phase: how large its batches are.
      rows: of a micro-batch on one device; less than one there cannot be.
    """
    more = f"--config.{name}.accumulation={2 * phase.accumulation}, which halves what a step needs"
    fix = f"give {f'{more}, or ' * (rows > 1)}a smaller max_length, and another --workdir"
    what = f"phase {name}, {phase.batch_size} examples in {phase.accumulation} micro-batches"
    return memory_advice(what, fix)


def stale(objective: Objective) -> tuple[str, ...]:
    """The groups of the starting model that would not fit what the objective has trained."""
    if isinstance(objective, Pretraining):  # no architecture has a classifier beside these heads
        return ("classifier", *STALE * (not objective.encoder_frozen))
    return ("pooler", *STALE) if "classifier" in objective.groups else STALE


def _git_revision() -> str | None:
    """The revision of the code that ran, if there is one, with ``-dirty`` if that was changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return (revision + "-dirty" * bool(git("status", "--porcelain", "."))) if revision else None
    except (OSError, subprocess.TimeoutExpired):
        return None
