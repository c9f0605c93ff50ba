"""The models of a run by the names that phases use: given, inherited, fresh or trained."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxbert import processes
from jaxbert.config import PhaseConfig, RunConfig, is_reference
from jaxbert.data.tasks import describe_task
from jaxbert.data.tokenizer import Tokenizer, difference, load_tokenizer
from jaxbert.data.vocabulary import read_sample, train_vocabulary, write_vocabulary
from jaxbert.errors import UserError, UserErrors
from jaxbert.evaluation.relabel import check_labelling
from jaxbert.files import as_path, fetched, is_whole
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, layout_for, read_model, write_model
from jaxbert.models.bert import BertConfig, Params, init_params
from jaxbert.models.reduction import init_from_teacher
from jaxbert.objectives.alignment import layer_map
from jaxbert.shapes import MADE, Shapes

_VOCABULARY = "vocabulary"  # of the workdir
_DOCUMENTS = 20_000  # at most, to train one


class Library:
    """Models by name.

    ``given_teacher`` is what the config's teacher names; ``initial_student`` a student before any
    training, ``random_student`` one of its shape with random weights, ``student`` the one to start
    from; ``initial_assistant`` and ``random_assistant`` are the like of an assistant; a reference
    is a model from outside; every other is a model that a phase trained.

    Args:
      config: the run's.
      workdir: the run's folder.

    Attributes:
      has_teacher: whether the config names one.
    """

    def __init__(self, config: RunConfig, workdir: Path) -> None:
        self._config, self._workdir = config, workdir
        self.has_teacher = bool(config.teacher)
        self._references: dict[str, Model] = {}
        self._checked: dict[str, Params] = {}  # fresh models, until they are written

    @functools.cached_property
    def given(self) -> Model:
        """The given teacher."""
        return self._outside(self._config.teacher)

    def _outside(self, reference: str) -> Model:
        """A teacher from outside, its classes in the order of the task's if it names the same."""
        model = read_model(hub.resolve(reference))
        if "classifier" not in model.params or not self._config.task:
            return model
        return _in_order(model, describe_task(**dataclasses.asdict(self._config.task)).classes)

    @functools.cached_property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies that all models of the run share.

        The teacher's, else that of the vocabulary that the config names, else that of the student
        that is continued, else one that is trained on the corpus: in the workdir if it was before.
        """
        config = self._config
        if self.has_teacher:
            return self.given.folder
        if reference := config.vocabulary or config.init_from:
            return hub.resolve(reference)
        kept = self._workdir / _VOCABULARY
        if kept.is_dir():
            return fetched(kept)
        count = min(config.num_documents or _DOCUMENTS, _DOCUMENTS)
        text = read_sample(config.corpus, count, config.data_dir)
        pieces = train_vocabulary(text, config.vocab_size)
        folder = Path(tempfile.mkdtemp())  # nothing is written before all is checked
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        write_vocabulary(folder / _VOCABULARY, pieces)
        return folder / _VOCABULARY

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The one that all models of the run share."""
        return load_tokenizer(self.tokenizer_folder)

    def keep_vocabulary(self) -> None:
        """Writes a vocabulary that was trained to the workdir, if it is not there."""
        config, folder = self._config, self._workdir / _VOCABULARY
        given = self.has_teacher or config.vocabulary or config.init_from
        if not given and not folder.is_dir() and processes.first():
            write_vocabulary(folder, self.tokenizer.pieces)

    @property
    def vocab_size(self) -> int:
        """Rows of the word tables of all models of the run."""
        return self.given.config.vocab_size if self.has_teacher else self.tokenizer.vocab_size

    @property
    def teacher_is_finetuned(self) -> bool:
        """Whether the given teacher comes with a classifier."""
        return self.has_teacher and "classifier" in self.given.params

    def foreign(self, model: Model) -> Tokenizer | None:
        """The tokenizer of a model that has another than the run; None where they are the same."""
        if not model.folder.is_dir():  # of random weights, made by this run and written nowhere
            return None
        tokenizer = load_tokenizer(model.folder)
        return None if tokenizer.fingerprint == self.tokenizer.fingerprint else tokenizer

    def check(self, *, make: bool = True) -> list[UserError]:
        """What is wrong with the models that the run starts from and learns from.

        Args:
          make: whether students that are cut out of their teacher are, which compiles.
        """
        errors: list[UserError] = []
        if self.has_teacher:
            errors += self._check_teacher(self.given, self._config.teacher, self.tokenizer)
        for reference in self._config.references:
            try:
                model = self.get(reference)
                tokenizer = load_tokenizer(model.folder)
                errors += self._check_teacher(model, reference, tokenizer)
            except UserError as error:
                errors.append(error)
        errors += self._check_copies() + self._check_trained_teachers()
        starts = {phase.start for phase in self._config.sections.values()}
        for name in ("student", "initial_student", "initial_assistant"):
            if name not in starts:
                continue
            who = name.removeprefix("initial_")
            try:
                if self._config.init_from and who == "student":
                    self._check_shape(self._inherited(name))
                elif make and self.shapes.section(name).init == "teacher":
                    self._checked[who] = self._fresh(who)
            except UserError as error:
                errors.append(error)
        return errors

    def _check_copies(self) -> list[UserError]:
        """Whether copies can be labelled, by a classifier that is there when they are first read.

        Whether the classes of a given one are the task's is seen where all heads are checked.
        """
        config, copies = self._config, self._config.augmentation
        phases = list(config.sections.values())
        first = next((i for i, phase in enumerate(phases) if phase.data == "augmentation"), None)
        if first is None:
            return []
        errors = []
        try:
            check_labelling(copies, describe_task(**dataclasses.asdict(config.task)))
        except UserError as error:
            errors.append(error)
        trained = any(phase.trains == "teacher" for phase in phases[:first])
        if (copies.relabel or copies.filter) and not (trained or self.teacher_is_finetuned):
            what = "the teacher that labels copies has no classifier, and no earlier phase "
            where = f"config key augmentation.{'relabel' if copies.relabel else 'filter'}"
            fix = "give false, or fine-tune it first"
            errors.append(UserError(f"{what}fine-tunes it", where, fix))
        return errors

    def _check_trained_teachers(self) -> list[UserError]:
        """Whether a phase trains what nobody would read: ``teacher`` is the given one."""
        if not self.teacher_is_finetuned:
            return []
        return [
            UserError(
                "the given teacher has a classifier, so that it is the one that 'teacher' names",
                f"config key {name}.trains",
                "give another name, and the phases that read it the same",
            )
            for name, phase in self._config.sections.items()
            if phase.trains == "teacher" and phase.objective != "finetune"
        ]

    def _check_teacher(self, model: Model, reference: str, tokenizer: Tokenizer) -> list[UserError]:
        errors: list[UserError] = []
        pieces, rows = tokenizer.vocab_size, model.config.vocab_size
        if pieces > rows:
            what = f"the tokenizer has {pieces} pieces, the teacher {rows}"
            fix = "put the tokenizer that the teacher was trained with into its folder"
            errors.append(UserError(what, f"teacher {reference}", fix))
        return errors + self._check_length(model, f"the teacher {reference}")

    @functools.cached_property
    def shapes(self) -> Shapes:
        """The shapes of all models of the run."""
        given = self.given.config if self.has_teacher else None
        return Shapes(self._config, given, self.vocab_size, lambda name: self.get(name).config)

    def start(self, phase: PhaseConfig) -> Model:
        """The model that a phase starts from.

        A student that no earlier phase trains is the one before this run, also where a later phase
        has trained it already. A projection into another width than that of the model it learns
        from is left out.
        """
        phases = self._config.sections.values()
        earlier = itertools.takewhile(lambda other: other is not phase, phases)
        trained = any(other.trains == phase.start for other in earlier)
        model = self.get(phase.start) if trained or phase.start != "student" else self.before()
        width = self.shapes.of(phase.teachers[0]).hidden_size if phase.teachers else 0
        if width in (0, model.config.projection_size):
            return model
        params = {group: v for group, v in model.params.items() if group != "projection"}
        return dataclasses.replace(model, params=params)

    def get(self, name: str) -> Model:
        """The model of a name, or of a reference."""
        if name == "given_teacher" or (name == "teacher" and self.teacher_is_finetuned):
            return self.given
        if is_reference(name):
            if name not in self._references:
                self._references[name] = self._outside(name)
            return self._references[name]
        folder = self.folder(name)
        how, _, who = name.partition("_")
        if how == "random" and who in MADE:
            shape = self.shapes.of(name)
            return Model(shape, init_params(shape, jax.random.key(self._config.seed)), (), folder)
        if is_whole(folder):
            return read_model(folder)
        if name == "student":
            return self.before()
        if name == "initial_student" and self._config.init_from:
            return self._inherited(name)
        if how == "initial" and who in MADE:
            fresh = self._checked.pop(who, None) or self._fresh(who)
            self.write(name, self.shapes.of(name), fresh)
        return read_model(folder)

    def before(self) -> Model:
        """The student that the run starts from, also where a phase has trained it meanwhile."""
        inherits = bool(self._config.init_from)
        return self._inherited("student") if inherits else self.get("initial_student")

    def _inherited(self, name: str) -> Model:
        reference = self._config.init_from
        if name == "initial_student":
            folder = reference.removeprefix("run:").partition("#")[0]
            if not hub.is_workdir(as_path(folder).expanduser()):
                raise UserError(
                    f"{reference} is not a run, so that its initial student is not known",
                    "config key init_from",
                    "give the workdir of a run, or leave out the phases that start from "
                    "initial_student",
                )
            reference = f"run:{folder}#initial_student"
        model = read_model(hub.resolve(reference))
        tokenizer = load_tokenizer(model.folder)
        if tokenizer.fingerprint != self.tokenizer.fingerprint:
            whose, other = "config's", self._config.vocabulary
            if self.has_teacher:
                whose, other = "teacher's", str(self.given.folder)
            raise UserError(
                f"the student's vocabulary is not the {whose} "
                f"({difference(tokenizer, self.tokenizer)})",
                f"{model.folder} and {other}",
                f"give a {whose[:-2]} with the vocabulary that the student was made with",
            )
        return model

    def _check_shape(self, student: Model) -> None:
        """Raises a UserError unless an inherited student is the one that the config describes."""
        wanted = self.shapes.of("student")
        fields = ["hidden_size", "num_layers", "num_heads", "intermediate_size", "position"]
        # What the student does not have yet, it gets as the config says.
        fields += ["classifier"] * ("classifier" in student.params)
        fields += ["projection_rank"] * ("projection" in student.params)
        inherited, whose = student.config, f"the student of {self._config.init_from}"
        pairs = {field: (getattr(wanted, field), getattr(inherited, field)) for field in fields}
        errors = []
        if "projection" in student.params:
            pairs["projection"] = _projection(wanted), _projection(inherited)
            width = wanted.projection_size
            if width not in (0, inherited.projection_size):
                what = f"its projection leads into a width of {inherited.projection_size}, and the "
                what += f"model that it learns from is {width} wide"
                fix = "give the teacher that it was made for, or another init_from"
                errors.append(UserError(what, whose, fix))
        errors += [
            UserError(
                f"{field} is {mine!r}, and in {whose} {theirs!r}",
                f"config key student.{field} ({self._config.teacher} is the teacher)",
                f"give {theirs!r}, or another init_from",
            )
            for field, (mine, theirs) in pairs.items()
            if mine != theirs
        ]
        errors += self._check_length(student, whose)
        if errors:
            raise UserErrors(errors)

    def _check_length(self, model: Model, name: str) -> list[UserError]:
        length, positions = self._config.max_length, model.config.max_position_embeddings
        if length <= positions:
            return []
        what = f"max_length = {length} is beyond the {positions} positions"
        return [UserError(what, f"config key max_length and {name}", f"give at most {positions}")]

    def _fresh(self, who: str) -> Params:
        """The parameters of a student or an assistant before any training."""
        shape, wanted = self.shapes.of(f"initial_{who}"), self.shapes.section(f"initial_{who}")
        key = jax.random.key(self._config.seed)
        if wanted.init == "random":
            return init_params(shape, key)
        given = self.given
        try:
            layers = layer_map(wanted.init_layers, given.config.num_layers, shape.num_layers)
        except UserError as error:
            raise UserError(error.what, f"config key {who}.init_layers", error.fix) from error
        return init_from_teacher(
            shape, given.config, given.params, tuple(layer - 1 for layer in layers), key
        )

    def folder(self, name: str) -> Path:
        """Where a model that this run writes lies."""
        return self._workdir / "models" / name

    def write(
        self,
        name: str,
        config: BertConfig,
        params: Params,
        labels: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Writes a model in the plain layout where that can hold it, else in TinyBERT's.

        Of several processes the first one writes it.

        Args:
          name: what phases call it.
          config: its shape.
          params: its parameter groups.
          labels: the classes' names.
          extra: further files of its folder, name -> text.
        """
        if not processes.first():
            return
        # The rates of its training are the phase's; what stays is what BERT is fine-tuned with.
        config = config.replace(hidden_dropout=0.1, attention_dropout=0.1)
        layout = layout_for(config, params)
        folder, tokenizer = self.folder(name), self.tokenizer
        write_model(folder, config, params, labels, tokenizer, layout=layout, extra=extra)


def _projection(config: BertConfig) -> str:
    """What a config calls a model's projection."""
    if not config.projection_size:
        return "none"
    return "layer" if config.projection_per_layer else "shared"


def _in_order(model: Model, classes: Sequence[str]) -> Model:
    """The same model with its classes in another order, if they are the same by name."""
    order = model.class_order(classes)
    if model.labels == tuple(classes) or order is None:
        return model
    dense = {k: np.take(v, order, axis=-1) for k, v in model.params["classifier"]["dense"].items()}
    params = model.params | {"classifier": model.params["classifier"] | {"dense": dense}}
    return dataclasses.replace(model, params=params, labels=tuple(classes))
