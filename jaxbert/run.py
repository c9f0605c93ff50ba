"""A resolved config to its phases to the loop: the one place where the parts meet."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.data import corpus, tasks
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.data.tokenizer import Tokenizer, load_tokenizer
from jaxbert.errors import UserError, UserErrors
from jaxbert.evaluation.evaluate import predict
from jaxbert.evaluation.metrics import classification_metrics
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, read_model, write_model
from jaxbert.models.bert import PRESETS, BertConfig, init_params
from jaxbert.models.reduction import init_from_teacher
from jaxbert.objectives.alignment import align
from jaxbert.objectives.distillation import LayerDistillation, PredictionDistillation
from jaxbert.objectives.finetuning import Finetuning
from jaxbert.objectives.objective import Objective
from jaxbert.training import sharding
from jaxbert.training.checkpoint import Checkpoints, parameter_hash
from jaxbert.training.journal import Journal
from jaxbert.training.loop import Plan, train
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state, make_step

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


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
    _check_claim(workdir, config)
    job = Run(config, workdir)
    job.check()
    _claim(workdir, config)
    finished = {}
    for index, name in enumerate(config.phases):
        if config.sections[name].trains == "teacher" and job.teacher_is_finetuned:
            print(f"{name}: skipped, the given teacher has a classifier already", flush=True)
            continue
        finished[name] = job.finish(index, name)
    job.journal.close()
    given = {"parameter_hash": parameter_hash(job.given.params)}
    summary = {
        "phases": finished,
        "parameter_hash": (list(finished.values()) or [given])[-1]["parameter_hash"],
        "teacher": {"reference": config.teacher, "hash": given["parameter_hash"]},
        "seed": config.seed,
        "devices": {"platform": jax.default_backend(), "count": jax.device_count()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_revision": _git_revision(),
    }
    students = [phase for phase in finished.values() if phase["model"] == "student"]
    if students:
        summary["parameter_hash"] = students[-1]["parameter_hash"]
    _write_json(workdir / "summary.json", summary)
    return summary


class Run:
    """What the phases of one run share: models by name, data and devices.

    Args:
      config: checked.
      workdir: the run's folder.
    """

    def __init__(self, config: RunConfig, workdir: Path) -> None:
        self.config, self.workdir = config, workdir
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
        self.journal = Journal(workdir)
        self.given = read_model(hub.resolve(config.teacher))
        self.tokenizer: Tokenizer = load_tokenizer(self.given.folder)

    @property
    def teacher_is_finetuned(self) -> bool:
        """Whether the given teacher comes with a classifier."""
        return "classifier" in self.given.params

    @functools.cached_property
    def task(self) -> tasks.TaskData:
        """The labelled task."""
        return tasks.load_task(self.config.task, self.config.data_dir)

    @functools.cached_property
    def corpus(self) -> Examples:
        """The encoded corpus."""
        began = time.monotonic()
        documents = corpus.load_documents(self.config.corpus, self.config.data_dir)
        spans = corpus.encode_spans(
            self.tokenizer,
            documents,
            max_length=self.config.max_length,
            num_documents=self.config.num_documents,
            seed=self.config.seed,
        )
        print(
            f"corpus: {len(spans):,} spans, {len(spans.tokens):,} tokens, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        return spans

    def check(self) -> None:
        """What can be known to fail before anything compiles.

        Raises:
          UserErrors: with every problem.
        """
        errors: list[UserError] = []

        def check(good: bool, what: str, where: str, fix: str) -> None:
            if not good:
                errors.append(UserError(what, where, fix))

        positions = self.given.config.max_position_embeddings
        check(
            self.config.max_length <= positions,
            f"max_length = {self.config.max_length} is beyond the {positions} positions",
            f"config key max_length and the teacher {self.config.teacher}",
            f"give at most {positions}",
        )
        check(
            self.tokenizer.vocab_size <= self.given.config.vocab_size,
            f"the tokenizer has {self.tokenizer.vocab_size} pieces, "
            f"the teacher {self.given.config.vocab_size}",
            f"teacher {self.config.teacher}",
            "put the tokenizer that the teacher was trained with into its folder",
        )
        starts = {phase.start for phase in self.config.sections.values()}
        for name in ("student", "initial_student"):
            if self.config.init_from and name in starts:
                try:
                    self._check_shape(self._inherited(name))
                except UserError as error:
                    errors.append(error)
        if self.config.student.init == "teacher" and not self.config.init_from:
            try:
                self._fresh_student()  # made again when it is written: rather that than late
            except UserError as error:
                errors.append(error)
        if any(phase.data == "task" for phase in self.config.sections.values()):
            try:
                self.task  # noqa: B018  (read now, so that what is wrong with it is said now)
            except UserError as error:
                raise UserErrors([*errors, error]) from error
        if self.config.task and self.teacher_is_finetuned:
            mine, theirs = self.task.labels, self.given.labels
            unnamed = all(label.startswith("LABEL_") for label in theirs)
            check(
                mine == theirs or (unnamed and len(mine) == len(theirs)),
                f"the teacher's labels {theirs} are not the task's {mine}",
                f"teacher {self.config.teacher}",
                "give a teacher fine-tuned on this task, or one without a classifier",
            )
        for name, phase in self.config.sections.items():
            try:
                if phase.objective == "layers":
                    align(self.given.config, self.student_config, phase.layer_map)
            except UserError as error:
                errors.append(UserError(error.what, f"phase {name}, {error.where}", error.fix))
        if errors:
            raise UserErrors(errors)

    @functools.cached_property
    def student_config(self) -> BertConfig:
        """The student's shape: the preset, its overrides, and what it shares with the teacher."""
        wanted, teacher = self.config.student, self.given.config
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
        changed = {key: getattr(wanted, key) for key in sizes if getattr(wanted, key)}
        shared = ("vocab_size", "type_vocab_size", "max_position_embeddings")
        student = PRESETS[wanted.preset].replace(
            **changed,
            **{key: getattr(teacher, key) for key in shared},
            position=wanted.position,
            classifier=wanted.classifier,
            projection_size=0 if wanted.projection == "none" else teacher.hidden_size,
            projection_per_layer=wanted.projection == "layer",
        )
        if wanted.projection == "none" and student.hidden_size != teacher.hidden_size:
            raise UserError(
                f"the student's width {student.hidden_size} is not the teacher's "
                f"{teacher.hidden_size}, so that hidden states cannot be compared",
                "config key student.projection",
                "give shared or layer, or student.hidden_size as wide as the teacher",
            )
        return student

    def model(self, name: str) -> Model:
        """A model by the name that phases use."""
        if name == "given_teacher" or (name == "teacher" and self.teacher_is_finetuned):
            return self.given
        folder = self.workdir / "models" / name
        if not folder.is_dir() and name in ("student", "initial_student"):
            if self.config.init_from:
                return self._inherited(name)
            if name == "student":
                return self.model("initial_student")
            self._write(folder, self.student_config, self._fresh_student(), {})
        return read_model(folder)

    def _inherited(self, name: str) -> Model:
        reference = self.config.init_from
        if name == "initial_student":
            if not hub.is_workdir(Path(reference.removeprefix("run:"))):
                raise UserError(
                    f"{reference} is not a run, so that its initial student is not known",
                    "config key init_from",
                    "give the workdir of a run, or leave out the phases that start from "
                    "initial_student",
                )
            reference = f"run:{reference.removeprefix('run:')}#initial_student"
        model = read_model(hub.resolve(reference))
        if load_tokenizer(model.folder).fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                "the student's vocabulary is not the teacher's",
                f"{model.folder} and {self.given.folder}",
                "give a teacher with the vocabulary that the student was made with",
            )
        return model

    def _check_shape(self, student: Model) -> None:
        """Raises a UserError unless an inherited student is the one that the config describes."""
        wanted = self.student_config
        fields = ["hidden_size", "num_layers", "num_heads", "intermediate_size", "position"]
        # What the student does not have yet, it gets as the config says.
        fields += ["classifier"] * ("classifier" in student.params)
        fields += ["projection_size", "projection_per_layer"] * ("projection" in student.params)
        errors = [
            UserError(
                f"{field} is {mine!r}, and in the student of {self.config.init_from} {theirs!r}",
                f"config section student ({self.config.teacher} is the teacher)",
                f"make it {theirs!r}, or give another init_from",
            )
            for field in fields
            if (mine := getattr(wanted, field)) != (theirs := getattr(student.config, field))
        ]
        positions = student.config.max_position_embeddings
        if self.config.max_length > positions:
            what = f"max_length = {self.config.max_length} is beyond the {positions} positions"
            where = f"config key max_length and the student of {self.config.init_from}"
            errors.append(UserError(what, where, f"give at most {positions}"))
        if errors:
            raise UserErrors(errors)

    def _fresh_student(self) -> Any:
        key = jax.random.key(self.config.seed)
        if self.config.student.init == "random":
            return init_params(self.student_config, key)
        layers = align(self.given.config, self.student_config).attention
        return init_from_teacher(
            self.student_config, self.given.config, self.given.params, layers, key
        )

    def objective(self, phase: PhaseConfig, start: Model, teacher: Model | None) -> Objective:
        """What a phase minimises."""
        dtype = self.config.dtype
        needs_classifier = phase.objective != "layers"
        is_student = phase.start != "given_teacher" and "classifier" not in start.params
        config = start.config.replace(
            dtype=dtype,
            classifier=self.config.student.classifier if is_student else start.config.classifier,
            hidden_dropout=phase.dropout,
            attention_dropout=phase.dropout,
            num_labels=len(self.task.labels) if needs_classifier else start.config.num_labels,
        )
        if phase.objective == "finetune":
            return Finetuning(config, phase.compat)
        assert teacher is not None
        theirs = teacher.config.replace(dtype=dtype)
        if phase.objective == "predictions":
            return PredictionDistillation(config, theirs, phase.temperature, phase.compat)
        if self.student_config.projection_size and not config.projection_size:
            config = config.replace(
                projection_size=theirs.hidden_size,
                projection_per_layer=self.student_config.projection_per_layer,
            )
        return LayerDistillation(
            config,
            theirs,
            align(theirs, config, phase.layer_map),
            phase.attention_weight,
            phase.hidden_weight,
            phase.embedding_weight,
            phase.compat,
        )

    def finish(self, index: int, name: str) -> dict[str, Any]:
        """Trains one phase to its end, unless it is there already; returns its record."""
        phase = self.config.sections[name]
        folder = self.workdir / "models" / phase.trains
        record = folder / "phase.json"
        if record.exists():
            print(f"{name}: finished before, in {folder}", flush=True)
            return json.loads(record.read_text(encoding="utf-8"))
        start = self.model(phase.start)
        teacher = self.model(phase.teacher) if phase.teacher else None
        objective = self.objective(phase, start, teacher)
        config: BertConfig = getattr(objective, "student", None) or objective.model  # type: ignore[attr-defined]
        absent = tuple(g for g in objective.groups if g not in start.params)
        key = jax.random.key(self.config.seed)
        fresh = init_params(config, key, absent) if absent else {}
        params = {g: start.params.get(g, fresh.get(g)) for g in objective.groups}
        batches = self.batches(phase)
        optimizer = make_optimizer(
            **{
                key: getattr(phase, key)
                for key in ("learning_rate", "steps", "warmup_ratio", "schedule", "b1", "b2")
            },
            **{
                key: getattr(phase, key)
                for key in ("eps", "bias_correction", "weight_decay", "clip", "clip_norm")
            },
        )
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
        frozen = {} if teacher is None else {"teacher": self._frozen(teacher, objective)}
        checkpoints = Checkpoints(self.workdir / "checkpoints" / name)
        plan = Plan(
            name,
            phase.steps,
            self.config.log_every,
            phase.eval_every,
            phase.checkpoint_every,
        )
        state, totals, values = train(
            plan,
            step,
            state,
            frozen,
            lambda first, last: iterate(batches, first, last),
            sharding.rows(self.mesh),
            checkpoints,
            self.journal,
            self._evaluator(config) if phase.eval_every else None,
        )
        checkpoints.close()
        # Heads that this phase does not train belong to states that it has moved.
        stale = ("projection", "mlm", "nsp")
        carried = {g: v for g, v in start.params.items() if g not in stale}
        trained = carried | jax.tree.map(np.asarray, jax.device_get(state.params))
        result = {
            "phase": name,
            "model": phase.trains,
            "steps": phase.steps,
            "selected_step": int(state.step),
            **dataclasses.asdict(totals),
            "rows": batches.rows,
            "fill": batches.fill,
            "examples": batches.examples_per_batch * phase.steps,
            "epochs": batches.epoch(phase.steps),
            "final": values,
            "start_hash": parameter_hash(start.params),
            "teacher_hash": parameter_hash(teacher.params) if teacher else None,
            "parameter_hash": parameter_hash(trained),
            "compilations": step._cache_size(),  # type: ignore[attr-defined]
        }
        self._write(folder, config, trained, {"phase.json": json.dumps(result, indent=2) + "\n"})
        print(
            f"{name}: {phase.steps:,} steps, {totals.real_tokens:,} real tokens "
            f"({batches.fill:.1%} of positions), {totals.seconds / 60:.1f} min -> {folder}",
            flush=True,
        )
        return result

    def batches(self, phase: PhaseConfig) -> PackedBatches:
        """The phase's stream of batches."""
        if phase.data == "corpus":
            examples = self.corpus
        else:
            examples = tasks.encode_rows(
                self.tokenizer, self.task.train, max_length=self.config.max_length
            )
        return PackedBatches(
            examples,
            batch_size=phase.batch_size,
            row_length=self.config.max_length,
            seed=self.config.seed,
            packing=phase.packing,
            multiple=self.mesh.shape["data"] * phase.accumulation,
            vocab_size=self.given.config.vocab_size,
        )

    def _evaluator(self, config: BertConfig) -> Any:
        """From trained parameters to the task's metric on its development part."""
        rows = self.task.dev
        examples = tasks.encode_rows(self.tokenizer, rows, max_length=self.config.max_length)
        batches = PackedBatches(
            examples,
            batch_size=self.config.eval_batch_size,
            row_length=self.config.max_length,
            seed=0,
            shuffle=False,
            epochs=1,
        )

        def evaluate(params: Any) -> float:
            logits = predict(config, params, batches)
            name = self.task.metric
            metric = classification_metrics(rows.labels, logits, (name,))[name]
            # Nothing scores below an undefined metric.
            return -math.inf if metric.value is None else metric.value

        return evaluate

    def _frozen(self, teacher: Model, objective: Objective) -> Any:
        """The teacher's parameters on the devices, those that the objective reads."""
        groups = [g for g in teacher.params if g in ("embeddings", "encoder")]
        if not isinstance(objective, LayerDistillation):
            groups += ["pooler", "classifier"]
        params = {g: teacher.params[g] for g in groups}
        return jax.device_put(params, sharding.tree_shardings(self.mesh, params))

    def _write(self, folder: Path, config: BertConfig, params: Any, extra: dict[str, str]) -> None:
        plain = "projection" not in params and config.position == "learned"
        plain &= "classifier" not in params or config.classifier == "bert"
        config = config.replace(hidden_dropout=0.1, attention_dropout=0.1)
        labels = self.task.labels if "classifier" in params and self.config.task else ()
        layout = "huggingface" if plain else "tinybert"
        write_model(folder, config, params, labels, self.tokenizer, layout=layout, extra=extra)


def _check_claim(workdir: Path, config: RunConfig) -> None:
    """Checks that the run that a workdir holds, if any, is this one."""
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fix = "restore the file, or give another --workdir"
        raise UserError(f"not valid JSON: {error}", str(path), fix) from error
    errors = [
        UserError(
            f"it is {new!r} and was {old!r} when this run began",
            f"config key {key} ({path})",
            "give the old value, or another --workdir",
        )
        for key, old, new in _differences(theirs, json.loads(json.dumps(config.to_dict())))
    ]
    if errors:
        raise UserErrors(errors)


def _claim(workdir: Path, config: RunConfig) -> None:
    """Writes config.json, once the run is known to be able to start."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_json(workdir / "config.json", config.to_dict())
    except OSError as error:
        raise UserError(f"cannot write there: {error}", str(workdir), "give another") from error


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [(prefix.rstrip("."), old, new)]
    found = []
    for key in sorted(set(old) | set(new)):
        found += _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    return found


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _git_revision() -> str | None:
    """The revision of the code that ran, if it lies in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
