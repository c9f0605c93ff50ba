"""What a phase minimises: its config, the shapes of its models and the task to an objective."""

from __future__ import annotations

from collections.abc import Sequence

from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.datasets import Datasets
from jaxbert.errors import UserError, UserErrors
from jaxbert.interop.huggingface import Model
from jaxbert.library import Library
from jaxbert.models.bert import BertConfig
from jaxbert.objectives.alignment import Match, match_terms
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
        frozen = tuple(teacher.config.replace(dtype=dtype) for teacher in teachers)
        model = self._trained(phase, start.config, frozen, fresh="classifier" not in start.params)
        model = model.replace(
            dtype=dtype, hidden_dropout=phase.dropout, attention_dropout=phase.dropout
        )
        if phase.objective == "finetune":
            return Finetuning(model, phase.compat)
        if phase.objective == "pretrain":
            return Pretraining(model, phase.nsp, phase.freeze_encoder)
        matches = self._matches(phase, model, frozen)
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
        if fresh and phase.start != "given_teacher":
            start = start.replace(classifier=self._config.student.classifier)
        if phase.classifies:
            task = self._data.task.task
            start = start.replace(head=task.kind, num_labels=task.num_outputs)
        projection = self._config.student.projection
        if phase.objective == "distill" and projection != "none" and not start.projection_size:
            start = start.replace(
                projection_size=teachers[0].hidden_size if teachers else 0,
                projection_per_layer=projection == "layer",
            )
        return start

    @staticmethod
    def _matches(
        phase: PhaseConfig, student: BertConfig, teachers: Sequence[BertConfig]
    ) -> tuple[Match, ...]:
        return match_terms(phase.terms, student, teachers, phase.compat)

    def check(self) -> list[UserError]:
        """What is wrong with the phases' teachers, and with what their terms would compare."""
        errors: list[UserError] = []
        for name, phase in self._config.sections.items():
            if phase.objective != "distill":
                continue
            found = self._check_heads(name, phase)
            try:
                if not found:
                    shapes = [self._shape(teacher) for teacher in phase.teachers]
                    student = self._trained(phase, self._shape(phase.start), shapes, fresh=True)
                    self._matches(phase, student, shapes)
            except UserError as error:
                for one in error.errors if isinstance(error, UserErrors) else (error,):
                    found.append(UserError(one.what, f"phase {name}, {one.where}", one.fix))
            errors += found
        return errors

    def _check_heads(self, name: str, phase: PhaseConfig) -> list[UserError]:
        """Whether every teacher has the heads that terms read."""
        errors = []
        for teacher in phase.teachers:
            try:
                heads = self._heads(teacher)
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

    def _heads(self, name: str) -> set[str]:
        """The parameter groups that a model will have, which may not be trained yet."""
        if ":" in name or name == "given_teacher":
            return set(self._library.get(name).params)
        if name == "teacher" and self._library.teacher_is_finetuned:
            return set(self._library.given.params)
        made = [phase for phase in self._config.sections.values() if phase.trains == name]
        heads = {"pooler"}
        if any(phase.classifies for phase in made):
            heads.add("classifier")
        if any(phase.masks for phase in made):
            heads.add("mlm")
        return heads

    def _shape(self, name: str) -> BertConfig:
        """What a model will be like, which may not be trained yet."""
        if ":" in name:
            return self._library.get(name).config
        made = [phase for phase in self._config.sections.values() if phase.trains == name]
        if name == "given_teacher" or (made and made[0].start == "given_teacher"):
            return self._library.given.config
        return self._library.student_config
