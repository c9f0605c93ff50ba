"""Whether a run can begin: its models, its data and its phases held against each other."""

from __future__ import annotations

from collections.abc import Iterator

from jax.sharding import Mesh

from jaxbert import processes, teaching
from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.data.tasks import SIMILARITY
from jaxbert.datasets import Datasets
from jaxbert.errors import UserError, UserErrors, warn
from jaxbert.evaluation.teacher import TeacherScore, check_order, score_teacher
from jaxbert.interop.huggingface import Model
from jaxbert.library import Library
from jaxbert.models.bert import POOLED
from jaxbert.phases import Objectives
from jaxbert.training.sharding import row_multiple
from jaxbert.training.tracking import check_tracking


class Inspection:
    """What can be known of a run before anything compiles for long.

    Args:
      config: checked by itself.
      library: the run's models.
      data: what it learns from.
      objectives: of its phases.
      mesh: its devices.
    """

    def __init__(
        self,
        config: RunConfig,
        library: Library,
        data: Datasets,
        objectives: Objectives,
        mesh: Mesh,
    ) -> None:
        self.config, self.library, self.data = config, library, data
        self.objectives, self.mesh = objectives, mesh

    def check(self) -> None:
        """Checks what can be known to fail before anything compiles, and reads the corpus.

        What is only doubtful is said on stderr.

        Raises:
          UserErrors: with every problem.
        """
        if errors := self.problems():
            raise UserErrors(errors)
        for doubt in self.doubts() if processes.first() else ():
            warn(doubt.line)
        self.data.tokenize()

    def problems(self, *, make: bool = True) -> list[UserError]:
        """What models, data and config say against the run, each once.

        Args:
          make: as ``Library.check`` has it.
        """
        errors = [*self.library.check(make=make), *self.data.check()]
        errors += check_tracking(self.config.tracking)
        try:
            if self.data.reads_task:
                self._check_labels()
            known = {error.what for error in errors}  # met by another check
            errors += [error for error in self.objectives.check() if error.what not in known]
        except UserError as error:  # of what has the wrong heads no terms are checked
            errors.append(error)
        for name, phase in self.config.sections.items():
            try:
                self._check_outside(name, phase)
            except UserError as error:
                errors.append(error)
            devices = row_multiple(self.mesh) * phase.accumulation
            if phase.compat and phase.batch_size % devices:
                what = f"padded means over {phase.batch_size} rows cannot be cut into {devices}"
                fix = "give a multiple: empty rows would change them"
                errors.append(UserError(what, f"config key {name}.batch_size", fix))
        return list({error.line: error for error in errors}.values())

    def doubts(self) -> list[UserError]:
        """What a run can begin with, and its user should know: models without a second type."""
        if not self.data.reads_task:
            return []
        task = self.data.task.task
        if len(task.columns) < 2 or task.kind == SIMILARITY:  # which reads each text by itself
            return []
        models = [("teacher", one, self.library.get(one)) for one in self.config.references]
        if self.library.has_teacher:
            models.insert(0, ("teacher", self.config.teacher, self.library.given))
        if self.config.init_from:
            models.append(("student", self.config.init_from, self.library.get("student")))
        same = f"has one token type, so that both texts of {task.name} get the same"
        apart = "with two where the texts should differ by more than [SEP]"
        return [
            UserError(f"the {whose} {same}", f"{whose} {reference}", f"give a {whose} {apart}")
            for whose, reference, model in models
            if model.config.type_vocab_size == 1
        ]

    def score_teachers(self) -> Iterator[tuple[str, Model, TeacherScore]]:
        """Yields each fine-tuned teacher from outside, and how it does on the development part."""
        labelled = self.data.reads("task", "augmentation")
        if not labelled or self.data.task.task.kind == SIMILARITY:
            return  # the latter measures encoders, and no head
        teachers = {name: self.library.get(name) for name in self.config.references}
        if self.library.has_teacher:
            teachers = teachers | {self.config.teacher: self.library.given}
        for reference, teacher in teachers.items():
            if "classifier" in teacher.params:
                yield (
                    reference,
                    teacher,
                    score_teacher(
                        teacher,
                        self.library.foreign(teacher) or self.library.tokenizer,
                        self.data.task,
                        max_length=self.config.max_length,
                        batch_size=self.config.eval_batch_size,
                    ),
                )

    def trust_teachers(self) -> dict[str, TeacherScore]:
        """Says how fine-tuned teachers from outside do; their scores by reference.

        Raises:
          UserError: classes clearly stand in another order than the task's.
        """
        scores = {}
        for reference, teacher, score in self.score_teachers():
            print("\n".join(score.lines), flush=True)
            check_order(score, teacher, self.data.task.task, reference)
            scores[reference] = score
        return scores

    def _check_outside(self, name: str, phase: PhaseConfig) -> None:
        """Checks teachers of another vocabulary than the run's.

        Raises:
          UserError: the phase cannot learn from one.
        """
        for reference in phase.references:
            teacher = self.library.get(reference)
            if (tokenizer := self.library.foreign(teacher)) is not None:
                teaching.check_foreign(name, phase, teacher.config.head)
                if phase.data == "task" and teacher.config.head == "tagging":
                    theirs = self.data.as_read_by(tokenizer, phase)
                    teaching.check_words(self.data.examples, theirs)

    def _check_labels(self) -> None:
        """Reads the task, and holds the heads that models come with against it."""
        task = self.data.task.task
        mine = task.classes
        if task.kind == SIMILARITY or not self.data.reads("task", "augmentation"):
            return  # it measures encoders, and no head

        def check(model: Model, whose: str, where: str, fix: str) -> None:
            labels, head = model.labels, model.config.head
            if "classifier" not in model.params:
                return
            by_place = model.unnamed and len(labels) == len(mine)
            if head != task.kind:
                what = f"the {whose} is for {head}, and {task.name} is {task.kind}"
                raise UserError(what, where, fix)
            if labels != mine and not by_place:
                what = f"the {whose}'s labels {labels} are not the task's {mine}"
                rename = f", or rename id2label in {model.folder}/config.json"
                fix += rename * (len(labels) == len(mine))
                raise UserError(what, where, fix)

        fix = "give a teacher fine-tuned on this task, or one without a classifier"
        if self.library.has_teacher:
            check(self.library.given, "teacher", f"teacher {self.config.teacher}", fix)
        for name, phase in self.config.sections.items():
            for reference in phase.references:
                check(self.library.get(reference), "teacher", f"config key {name}.teacher", fix)
        if self.config.init_from:
            where = f"config key init_from ({self.config.init_from})"
            fix = "give the run of a general distillation, or one on this task"
            check(self.library.get("student"), "student", where, fix)
        for who in ("student", "assistant"):
            if task.kind not in POOLED and getattr(self.config, who).classifier == "tinybert":
                what = f"TinyBERT's classifier reads whole examples, and {task.name} is {task.kind}"
                raise UserError(what, f"config key {who}.classifier", "give bert")
