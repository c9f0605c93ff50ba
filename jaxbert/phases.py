"""What a phase minimises: its config, the shapes of its models and the task to an objective."""

from __future__ import annotations

from collections.abc import Sequence

from jaxbert.config import PhaseConfig, RunConfig, is_reference
from jaxbert.datasets import Datasets
from jaxbert.errors import UserError, UserErrors
from jaxbert.interop.huggingface import Model
from jaxbert.library import Library
from jaxbert.models.bert import POOLED, BertConfig
from jaxbert.objectives.alignment import match_terms
from jaxbert.objectives.distillation import Distillation
from jaxbert.objectives.finetuning import Finetuning
from jaxbert.objectives.objective import Objective
from jaxbert.objectives.pretraining import Pretraining


class Objectives:
    """The objectives of a run's phases.

    Args:
      config: the run's.
      library: its models.
      data: its data.
    """

    def __init__(self, config: RunConfig, library: Library, data: Datasets) -> None:
        self._config, self._library, self._data = config, library, data

    def make(self, phase: PhaseConfig, start: Model, teachers: Sequence[Model]) -> Objective:
        """What a phase minimises.

        Args:
          phase: of the run.
          start: the model that it trains.
          teachers: those that it learns from.

        Raises:
          UserErrors: if its terms cannot compare these models.
        """
        dtype = self._config.dtype
        held = self._config.teacher_dtype or dtype
        frozen = tuple(teacher.config.replace(dtype=held) for teacher in teachers)
        model = self._trained(phase, start.config, frozen, fresh="classifier" not in start.params)
        model = model.replace(
            dtype=dtype, hidden_dropout=phase.dropout, attention_dropout=phase.dropout
        )
        if phase.objective == "finetune":
            return Finetuning(model, phase.compat)
        if phase.objective == "pretrain":
            return Pretraining(model, phase.nsp, phase.freeze_encoder)
        matches = match_terms(phase.terms, model, frozen, phase.compat)
        return Distillation(model, frozen, matches, phase.steps, phase.compat)

    def _trained(
        self,
        phase: PhaseConfig,
        start: BertConfig,
        teachers: Sequence[BertConfig],
        *,
        fresh: bool,
    ) -> BertConfig:
        """The shape of what a phase trains, with the head and the projection that it reads."""
        section = self._library.shapes.section(phase.start)
        if fresh and phase.start != "given_teacher":
            start = start.replace(classifier=section.classifier)
        if phase.classifies:
            task = self._data.task.task
            start = start.replace(head=task.kind, num_labels=task.num_outputs)
        width = teachers[0].hidden_size if teachers else 0
        if section.projection != "none" and width not in (0, start.projection_size):
            start = start.replace(
                projection_size=width,
                projection_per_layer=section.projection == "layer",
                projection_rank=section.projection_rank,
            )
        return start

    def check(self) -> list[UserError]:
        """What is wrong with the phases' models, and with what their terms would compare."""
        errors: list[UserError] = []
        for index, (name, phase) in enumerate(self._config.sections.items()):
            found = self._check_heads(index, name, phase)
            try:
                start = self._library.shapes.of(phase.start)
                if not found and phase.objective == "distill":
                    shapes = [self._library.shapes.of(teacher) for teacher in phase.teachers]
                    student = self._trained(phase, start, shapes, fresh=True)
                    match_terms(phase.terms, student, shapes, phase.compat)
            except UserError as error:
                for one in error.errors if isinstance(error, UserErrors) else (error,):
                    found.append(UserError(one.what, f"phase {name}, {one.where}", one.fix))
            errors += found
        return errors

    def _check_heads(self, index: int, name: str, phase: PhaseConfig) -> list[UserError]:
        """Whether every teacher has the heads that terms read when its phase begins."""
        errors = []
        for teacher in phase.teachers:
            try:
                heads = self._heads(teacher, index)
            except UserError as error:
                errors.append(error)
                continue
            for feature, head, fix in (
                ("logits", "classifier", "give a model that is fine-tuned on the task"),
                (
                    "mlm_logits",
                    "mlm",
                    "train such a head first, with configs/bert_pretrain.py",
                ),
                ("pooled", "pooler", "give a model with a pooler, or another feature"),
            ):
                read = [t for t in phase.terms.values() if t and t.feature == feature]
                if any(term.taught for term in read) and head not in heads:
                    spoken = {"mlm": "masked-LM head"}.get(head, head)
                    what = f"{teacher!r} has no {spoken}, so that it predicts nothing"
                    errors.append(UserError(what, f"config key {name}.teacher", fix))
        return errors

    def _heads(self, name: str, index: int) -> set[str]:
        """The heads that a model has when a phase begins, which earlier ones may have trained."""
        if is_reference(name) or name == "given_teacher":
            return set(self._library.get(name).params)
        if name == "teacher" and self._library.teacher_is_finetuned:
            return set(self._library.given.params)
        phases = list(self._config.sections.values())
        last = next((i for i in reversed(range(index)) if phases[i].trains == name), None)
        if last is None:
            inherits = name == "student" and bool(self._config.init_from)
            return set(self._library.before().params) if inherits else {"pooler"}
        phase = phases[last]
        carried = {"pooler"} if phase.objective == "pretrain" else {"pooler", "classifier"}
        heads = self._heads(phase.start, last) & carried
        if phase.classifies:
            pooled = self._data.task.task.kind in POOLED
            heads = {"classifier", *("pooler",) * pooled}
        if phase.masks:
            heads.add("mlm")
        return heads
