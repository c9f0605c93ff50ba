"""A resolved config to its phases to the loop: the one place where the parts meet."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbert import augment
from jaxbert.batch import Batch
from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.data.encoding import count_cuts, encode_rows
from jaxbert.data.examples import Examples, ExampleSource
from jaxbert.data.heldout import pretraining_text
from jaxbert.data.masking import MaskedBatches
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import RandomAccess, iterate
from jaxbert.data.prepare import check_reference, open_reference
from jaxbert.data.progress import show_progress
from jaxbert.data.rows import TaskData, load_task
from jaxbert.data.spans import Spans
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError, UserErrors
from jaxbert.evaluation.masked import measure
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predict import RowPredictor, all_answered
from jaxbert.interop.huggingface import Model
from jaxbert.library import Library
from jaxbert.models.bert import POOLED, BertConfig, init_params, scored_groups
from jaxbert.objectives.alignment import align
from jaxbert.objectives.distillation import LayerDistillation, PredictionDistillation
from jaxbert.objectives.finetuning import Finetuning
from jaxbert.objectives.objective import Objective
from jaxbert.objectives.pretraining import Pretraining
from jaxbert.training import sharding
from jaxbert.training.checkpoint import Checkpoints, parameter_hash
from jaxbert.training.journal import Journal
from jaxbert.training.loop import Plan, train
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state, make_step
from jaxbert.workdir import check_claim, claim, versions, write_json

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
CLASSIFIES = ("predictions", "finetune")  # objectives that train a classifier
# Carried heads would belong to states that a phase has moved.
STALE = ("projection", "mlm", "nsp")


def run(config: RunConfig, workdir: Path) -> dict[str, Any]:
    """Trains every phase that is not finished, and writes summary.json.

    Running it again continues: finished phases are kept, the phase under way goes on from its
    newest checkpoint.

    Args:
      config: checked.
      workdir: the run's folder; made if absent.

    Returns:
      What summary.json holds.

    Raises:
      UserError: whatever the user can fix.
    """
    if jax.process_count() > 1:
        what = f"{jax.process_count()} processes write one workdir"
        raise UserError(what, "jax.distributed", "start one: several are not supported yet")
    check_claim(workdir, config)
    job = Run(config, workdir)
    job.check()
    claim(workdir, config)
    job.library.keep_vocabulary()
    finished = {}
    for index, name in enumerate(config.phases):
        phase, finetuned = config.sections[name], job.library.teacher_is_finetuned
        if phase.trains == "teacher" and phase.objective == "finetune" and finetuned:
            print(f"{name}: skipped, the given teacher has a classifier already", flush=True)
            continue
        finished[name] = job.finish(index, name)
    job.journal.close()
    given: dict[str, str | None] = {"parameter_hash": None}
    if job.library.has_teacher:
        given = {"parameter_hash": parameter_hash(job.library.given.params)}
    summary = {
        "phases": finished,
        "parameter_hash": (list(finished.values()) or [given])[-1]["parameter_hash"],
        "teacher": {"reference": config.teacher, "hash": given["parameter_hash"]},
        "seed": config.seed,
        "devices": {"platform": jax.default_backend(), "count": jax.device_count()},
        "versions": versions(),
        "git_revision": _git_revision(),
    }
    students = [phase for phase in finished.values() if phase["model"] == "student"]
    if students:
        summary["parameter_hash"] = students[-1]["parameter_hash"]
    if any(phase.data != "corpus" for phase in config.sections.values()):
        summary["task"] = {
            "rows": job.task.rows,
            "overlap": job.task.overlap,
            "cuts": count_cuts(job.task.train, job.examples),
            "all_answered": all_answered(job.task.train),
        }
    if any(phase.data == "corpus" for phase in config.sections.values()):
        summary["corpus"] = job.corpus.facts
    if any(phase.data == "augmentation" for phase in config.sections.values()):
        summary["augmentation"] = job.augmented.record
    write_json(workdir / "summary.json", summary)
    return summary


class Run:
    """What the phases of one run share: models, data and devices.

    Args:
      config: checked.
      workdir: the run's folder.
    """

    def __init__(self, config: RunConfig, workdir: Path) -> None:
        self.config, self.workdir = config, workdir
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
        self.journal = Journal(workdir)
        self.library = Library(config, workdir)

    @functools.cached_property
    def task(self) -> TaskData:
        """The labelled task."""
        data = load_task(
            describe_task(**dataclasses.asdict(self.config.task)), self.config.data_dir
        )
        print(
            f"task {data.name}: {len(data.train):,} rows to train on, {len(data.dev):,} to choose "
            f"on, {len(data.test):,} to report",
            flush=True,
        )
        for reference, rows in data.rows.items():
            if rows["skipped"]:
                some = "; ".join(rows["problems"])
                print(f"{reference}: {rows['skipped']:,} rows skipped: {some}", flush=True)
        for split, count in data.overlap.items():
            if count:
                print(f"{count:,} {split} rows are among the training rows, too", flush=True)
        return data

    @functools.cached_property
    def examples(self) -> Examples:
        """The encoded training rows of the task."""
        task = self.task
        found = encode_rows(
            self.library.tokenizer,
            task.train,
            max_length=self.config.max_length,
            stride=task.task.stride,
        )
        cuts = count_cuts(task.train, found)
        if cuts["truncated"]:
            print(
                f"{cuts['truncated']:,} training rows ({cuts['percent']} %) are cut to "
                f"max_length = {self.config.max_length}",
                flush=True,
            )
        return found

    @functools.cached_property
    def augmented(self) -> augment.Augmented:
        """The task's training rows and their copies, made once and kept in the workdir."""
        config = self.config.augmentation
        return augment.load(
            config,
            self.task.task,
            self.task.train,
            self.workdir / "cache" / "augmented.jsonl",
            seed=self.config.seed,
            teacher=self.library.get("teacher") if config.relabel or config.filter else None,
            max_length=self.config.max_length,
        )

    @functools.cached_property
    def corpus(self) -> Spans:
        """The text, tokenised now or before."""
        began = time.monotonic()
        config, library = self.config, self.library
        cache = config.corpus_cache or os.environ.get("JAXBERT_CACHE")
        with show_progress() as report:
            corpus = open_reference(
                config.corpus,
                library.tokenizer,
                library.tokenizer_folder,
                cache=(Path(cache) if cache else self.workdir.parent / ".jaxbert") / "corpora",
                data_dir=config.data_dir,
                report=report,
            )
        spans = Spans(
            corpus,
            library.tokenizer,
            max_length=config.max_length,
            num_documents=config.num_documents,
            seed=config.seed,
        )
        facts, left_out = spans.facts, corpus.manifest["empty"] + corpus.manifest["duplicates"]
        print(
            f"corpus: {facts['documents']:,} documents"
            + f", without {left_out:,} empty or repeated ones" * bool(left_out)
            + f"; {facts['spans']:,} spans, {time.monotonic() - began:.0f} s -> {corpus.folder}",
            flush=True,
        )
        for part in spans.shares if len(spans.shares) > 1 else ():
            print(f"corpus: {part['share']:.1%} {part['reference']}, {part['times']:.2f} times")
        return spans

    def check(self) -> None:
        """What can be known to fail before anything compiles.

        Raises:
          UserErrors: with every problem.
        """
        errors = self.library.check()
        copied = self.config.augmentation
        used = {phase.data for phase in self.config.sections.values()}
        for sources, check in (
            ({"task", "augmentation"}, self._check_labels),
            ({"augmentation"}, lambda: augment.open_engine(copied, self.config.seed)),
            ({"corpus"}, self._check_corpus),
        ):
            try:
                if used & sources:
                    check()
            except UserError as error:
                errors.append(error)
        scoring = {p.trains for p in self.config.sections.values() if p.objective in CLASSIFIES}
        if self.library.teacher_is_finetuned:
            scoring |= {"teacher", "given_teacher"}
        for name, phase in self.config.sections.items():
            if phase.objective == "predictions" and phase.teacher not in scoring:
                what = f"{phase.teacher!r} has no classifier, so that it predicts nothing"
                fix = "give a model that is fine-tuned on the task"
                errors.append(UserError(what, f"config key {name}.teacher", fix))
            devices = self.mesh.shape["data"] * phase.accumulation
            if phase.compat and phase.batch_size % devices:
                what = f"padded means over {phase.batch_size} rows cannot be cut into {devices}"
                fix = "give a multiple: empty rows would change them"
                errors.append(UserError(what, f"config key {name}.batch_size", fix))
            try:
                if phase.objective == "layers":
                    self._align(self.library.given.config, self.library.student_config, phase)
            except UserError as error:
                if error.what not in {known.what for known in errors}:  # met by another check
                    errors.append(UserError(error.what, f"phase {name}, {error.where}", error.fix))
        if errors:  # each once, however many models it was met in
            raise UserErrors(list({error.line: error for error in errors}.values()))
        if "corpus" in used:
            _ = self.corpus  # tokenised now, so that a line that is no text is said before all else
        for phase in self.config.sections.values():
            if phase.objective == "pretrain":
                self._pretraining_text(phase, measured=True)

    def _check_corpus(self) -> None:
        """Finds the corpus."""
        check_reference(self.config.corpus, self.config.data_dir)

    def _check_labels(self) -> None:
        """Reads the task, and holds the heads that models come with against it."""
        task = self.task.task
        mine = task.classes

        def check(model: Model, whose: str, where: str, fix: str) -> None:
            labels, head = model.labels, model.config.head
            if "classifier" not in model.params:
                return
            unnamed = len(labels) == len(mine) and all(x.startswith("LABEL_") for x in labels)
            if head != task.kind:
                what = f"the {whose} is for {head}, and {task.name} is {task.kind}"
                raise UserError(what, where, fix)
            if labels != mine and not unnamed:
                what = f"the {whose}'s labels {labels} are not the task's {mine}"
                raise UserError(what, where, fix)

        fix = "give a teacher fine-tuned on this task, or one without a classifier"
        if self.library.has_teacher:
            check(self.library.given, "teacher", f"teacher {self.config.teacher}", fix)
        if self.config.init_from:
            where = f"config key init_from ({self.config.init_from})"
            fix = "give the run of a general distillation, or one on this task"
            check(self.library.get("student"), "student", where, fix)
        if task.kind not in POOLED and self.config.student.classifier == "tinybert":
            what = f"TinyBERT's classifier reads whole examples, and {task.name} is {task.kind}"
            raise UserError(what, "config key student.classifier", "give bert")

    @staticmethod
    def _align(teacher: BertConfig, student: BertConfig, phase: PhaseConfig) -> Any:
        return align(teacher, student, phase.layer_map, scores=phase.attention_weight > 0)

    def objective(self, phase: PhaseConfig, start: Model, teacher: Model | None) -> Objective:
        """What a phase minimises."""
        dtype = self.config.dtype
        needs_classifier = phase.objective in CLASSIFIES
        is_student = phase.start != "given_teacher" and "classifier" not in start.params
        config = start.config.replace(
            dtype=dtype,
            classifier=self.config.student.classifier if is_student else start.config.classifier,
            hidden_dropout=phase.dropout,
            attention_dropout=phase.dropout,
        )
        if needs_classifier:
            task = self.task.task
            config = config.replace(head=task.kind, num_labels=task.num_outputs)
        if phase.objective == "finetune":
            return Finetuning(config, phase.compat)
        if phase.objective == "pretrain":
            return Pretraining(config, phase.nsp, phase.freeze_encoder)
        assert teacher is not None
        theirs = teacher.config.replace(dtype=dtype)
        if phase.objective == "predictions":
            return PredictionDistillation(config, theirs, phase.temperature, phase.compat)
        if self.library.student_config.projection_size and not config.projection_size:
            config = config.replace(
                projection_size=theirs.hidden_size,
                projection_per_layer=self.library.student_config.projection_per_layer,
            )
        return LayerDistillation(
            config,
            theirs,
            self._align(theirs, config, phase),
            phase.attention_weight,
            phase.hidden_weight,
            phase.embedding_weight,
            phase.compat,
        )

    def finish(self, index: int, name: str) -> dict[str, Any]:
        """Trains one phase to its end, unless it is there already; returns its record."""
        phase = self.config.sections[name]
        folder = self.library.folder(phase.trains)
        record = folder / "phase.json"
        if record.exists():
            print(f"{name}: finished before, in {folder}", flush=True)
            return json.loads(record.read_text(encoding="utf-8"))
        start = self.library.get(phase.start)
        teacher = self.library.get(phase.teacher) if phase.teacher else None
        objective = self.objective(phase, start, teacher)
        config: BertConfig = getattr(objective, "student", None) or objective.model  # type: ignore[attr-defined]
        absent = tuple(g for g in objective.groups if g not in start.params)
        key = jax.random.key(self.config.seed)
        fresh = init_params(config, key, absent) if absent else {}
        params = {g: start.params.get(g, fresh.get(g)) for g in objective.groups}
        batches = self.batches(phase)
        source = batches.source
        stream: RandomAccess = batches
        if isinstance(objective, Pretraining):
            stream = self._masked(batches, phase, self.config.seed)
        optimizer = make_optimizer(**{key: getattr(phase, key) for key in OPTIMIZER})
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
        frozen = self._frozen(start, teacher, objective)
        checkpoints = Checkpoints(self.workdir / "checkpoints" / name)
        plan = Plan(
            name,
            phase.steps,
            self.config.log_every,
            phase.eval_every,
            phase.checkpoint_every,
            {
                "start": parameter_hash(start.params),
                "teacher": parameter_hash(teacher.params) if teacher else None,
                "data": batches.sha256,
            },
        )
        try:
            state, totals, values = train(
                plan,
                step,
                state,
                frozen,
                lambda first, last: iterate(stream, first, last, workers=self.config.data_workers),
                sharding.rows(self.mesh),
                checkpoints,
                self.journal,
                self._evaluator(phase, objective, config, frozen) if phase.eval_every else None,
            )
        finally:
            checkpoints.close()
        trained = jax.tree.map(np.asarray, jax.device_get(state.params))
        stale = _stale(objective)
        trained = {g: v for g, v in start.params.items() if g not in stale} | trained
        result = {
            "phase": name,
            "model": phase.trains,
            "steps": phase.steps,
            "selected_step": int(state.step),
            **dataclasses.asdict(totals),
            "rows": batches.rows,
            "fill": batches.fill,
            "data_wait_fraction": totals.data_wait_fraction,
            "truncated": source.truncated,
            "truncated_share": source.truncated / len(source),
            "skipped": source.skipped,
            "examples": batches.examples_per_batch * phase.steps,
            "epochs": batches.epoch(phase.steps),
            "final": values,
            "start_hash": plan.sources["start"],
            "teacher_hash": plan.sources["teacher"],
            "data_hash": plan.sources["data"],
            "parameter_hash": parameter_hash(trained),
            "compilations": step._cache_size(),  # type: ignore[attr-defined]
        }
        if isinstance(objective, Pretraining):
            result["held_out"] = measure(objective, state.params, frozen, self.measured(phase))
        labels = self.task.labels if "classifier" in trained and self.config.task else ()
        extra = {"phase.json": json.dumps(result, indent=2) + "\n"}
        self.library.write(phase.trains, config, trained, labels, extra)
        print(
            f"{name}: {phase.steps:,} steps, {totals.real_tokens:,} real tokens "
            f"({batches.fill:.1%} of positions), {totals.seconds / 60:.1f} min -> {folder}",
            flush=True,
        )
        return result

    def batches(self, phase: PhaseConfig) -> PackedBatches:
        """The phase's stream of batches, before anything is masked."""
        if phase.objective == "pretrain":
            examples: ExampleSource = self._pretraining_text(phase, measured=False)
        elif phase.data == "corpus":
            examples = self.corpus
        elif phase.data == "task":
            examples = self.examples
        else:
            examples = encode_rows(
                self.library.tokenizer,
                self.augmented.rows,
                max_length=self.config.max_length,
                stride=self.task.task.stride,
            )
        return PackedBatches(
            examples,
            batch_size=phase.batch_size,
            row_length=self.config.max_length,
            seed=self.config.seed,
            packing=phase.packing,
            multiple=self.mesh.shape["data"] * phase.accumulation,
            vocab_size=self.library.vocab_size,
        )

    def _pretraining_text(self, phase: PhaseConfig, *, measured: bool) -> ExampleSource:
        return pretraining_text(
            self.corpus,
            self.corpus.documents,
            self.library.tokenizer,
            pairs=phase.nsp,
            measured=measured,
            seed=0 if measured else self.config.seed,
        )

    def _masked(self, batches: PackedBatches, phase: PhaseConfig, seed: int) -> MaskedBatches:
        return MaskedBatches(
            batches,
            self.library.tokenizer,
            row_length=self.config.max_length,
            seed=seed,
            rate=phase.masking_rate,
            whole_words=phase.whole_words,
        )

    def measured(self, phase: PhaseConfig) -> list[Batch]:
        """What a phase that pre-trains is measured on, with the same masks for every seed."""
        batches = PackedBatches(
            self._pretraining_text(phase, measured=True),
            batch_size=self.config.eval_batch_size,
            row_length=self.config.max_length,
            seed=0,
            shuffle=False,
            epochs=1,
        )
        masked = self._masked(batches, phase, seed=0)
        return [masked[step] for step in range(len(batches))]

    def _evaluator(
        self, phase: PhaseConfig, objective: Objective, config: BertConfig, frozen: Any
    ) -> Callable[[Any], float | None]:
        """From trained parameters to the metric that selects, on what is not trained on."""
        if isinstance(objective, Pretraining):
            text = self.measured(phase)
            return lambda params: measure(objective, params, frozen, text)["mlm_accuracy"]
        task, rows = self.task.task, self.task.dev
        predict = RowPredictor(
            task.kind,
            self.library.tokenizer,
            rows,
            max_length=self.config.max_length,
            batch_size=self.config.eval_batch_size,
            stride=task.stride,
            always=all_answered(self.task.train),
        )

        def evaluate(params: Any) -> float | None:
            found = score_rows(task, rows, predict(config, params), (task.metric,))
            return found[task.metric].value

        return evaluate

    def _frozen(self, start: Model, teacher: Model | None, objective: Objective) -> Any:
        """On the devices, the parameters that the objective reads and does not train."""
        frozen: dict[str, Any] = {}
        if teacher is not None:
            groups = scored_groups(teacher.config)
            if isinstance(objective, LayerDistillation):
                groups = ("embeddings", "encoder")
            frozen["teacher"] = {g: teacher.params[g] for g in groups}
        if isinstance(objective, Pretraining) and objective.encoder_frozen:
            frozen["model"] = {g: start.params[g] for g in objective.frozen_groups}
        return jax.device_put(frozen, sharding.tree_shardings(self.mesh, frozen))


def _stale(objective: Objective) -> tuple[str, ...]:
    """The groups of the starting model that would not fit what the objective has trained."""
    if isinstance(objective, Pretraining):  # no architecture has a classifier beside these heads
        return ("classifier", *STALE * (not objective.encoder_frozen))
    return ("pooler", *STALE) if "classifier" in objective.groups else STALE


def _git_revision() -> str | None:
    """The revision of the code that ran, if it lies in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
