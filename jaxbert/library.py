"""The models of a run by the names that phases use: given, inherited, fresh or trained."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxbert.config import RunConfig
from jaxbert.data.tokenizer import Tokenizer, load_tokenizer
from jaxbert.data.vocabulary import read_sample, train_vocabulary, write_vocabulary
from jaxbert.errors import UserError, UserErrors
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, read_model, write_model
from jaxbert.models.bert import PRESETS, BertConfig, Params, init_params
from jaxbert.models.reduction import init_from_teacher
from jaxbert.objectives.alignment import align

_VOCABULARY = "vocabulary"  # of the workdir
_DOCUMENTS = 20_000  # at most, to train one


class Library:
    """Models by name.

    ``given_teacher`` is what the config's teacher names; ``initial_student`` a student before any
    training, ``random_student`` one of its shape with random weights, ``student`` the one to start
    from; a name with a colon is a reference; every other is a model that a phase trained.

    Args:
      config: the run's.
      workdir: the run's folder.

    Attributes:
      has_teacher: whether the config names one.
    """

    def __init__(self, config: RunConfig, workdir: Path) -> None:
        self._config, self._workdir = config, workdir
        self.has_teacher = bool(config.teacher)
        self._outside: dict[str, Model] = {}

    @functools.cached_property
    def given(self) -> Model:
        """The given teacher."""
        return read_model(hub.resolve(self._config.teacher))

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
            return kept
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
        if not given and not folder.is_dir():
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
        tokenizer = load_tokenizer(model.folder)
        return None if tokenizer.fingerprint == self.tokenizer.fingerprint else tokenizer

    def check(self) -> list[UserError]:
        """What is wrong with the models that the run starts from and learns from."""
        errors: list[UserError] = []
        if self.has_teacher:
            errors += self._check_teacher(self.given, self._config.teacher, self.tokenizer)
        for phase in self._config.sections.values():
            try:
                if phase.outside_teacher:
                    model = self.get(phase.teacher)
                    tokenizer = load_tokenizer(model.folder)
                    errors += self._check_teacher(model, phase.teacher, tokenizer)
            except UserError as error:
                errors.append(error)
        starts = {phase.start for phase in self._config.sections.values()}
        for name in ("student", "initial_student"):
            try:
                if self._config.init_from and name in starts:
                    self._check_shape(self._inherited(name))
                elif name in starts and self._config.student.init == "teacher":
                    self._fresh_student()  # made again when it is written: rather that than late
            except UserError as error:
                errors.append(error)
        return errors

    def _check_teacher(self, model: Model, reference: str, tokenizer: Tokenizer) -> list[UserError]:
        errors: list[UserError] = []
        pieces, rows = tokenizer.vocab_size, model.config.vocab_size
        if pieces > rows:
            what = f"the tokenizer has {pieces} pieces, the teacher {rows}"
            fix = "put the tokenizer that the teacher was trained with into its folder"
            errors.append(UserError(what, f"teacher {reference}", fix))
        return errors + self._check_length(model, f"the teacher {reference}")

    @functools.cached_property
    def student_config(self) -> BertConfig:
        """The student's shape: the preset, its overrides, and what it shares with the teacher.

        Without a teacher it has a row for each piece of the tokenizer and for each position up to
        the run's length: rows that no training reaches would be random for ever.
        """
        wanted = self._config.student
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
        changed = {key: getattr(wanted, key) for key in sizes if getattr(wanted, key)}
        base = PRESETS[wanted.preset].replace(
            **changed, position=wanted.position, classifier=wanted.classifier
        )
        if not self.has_teacher:
            length = self._config.max_length
            return base.replace(vocab_size=self.vocab_size, max_position_embeddings=length)
        teacher = self.given.config
        shared = ("vocab_size", "type_vocab_size", "max_position_embeddings")
        student = base.replace(
            **{key: getattr(teacher, key) for key in shared},
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

    def get(self, name: str) -> Model:
        """The model of a name."""
        if name == "given_teacher" or (name == "teacher" and self.teacher_is_finetuned):
            return self.given
        if ":" in name:
            if name not in self._outside:
                self._outside[name] = read_model(hub.resolve(name))
            return self._outside[name]
        folder = self.folder(name)
        if name == "random_student":
            fresh = init_params(self.student_config, jax.random.key(self._config.seed))
            return Model(self.student_config, fresh, (), folder)
        if not folder.is_dir() and name in ("student", "initial_student"):
            if self._config.init_from:
                return self._inherited(name)
            if name == "student":
                return self.get("initial_student")
            self.write(name, self.student_config, self._fresh_student())
        return read_model(folder)

    def _inherited(self, name: str) -> Model:
        reference = self._config.init_from
        if name == "initial_student":
            folder = reference.removeprefix("run:").partition("#")[0]
            if not hub.is_workdir(Path(folder).expanduser()):
                raise UserError(
                    f"{reference} is not a run, so that its initial student is not known",
                    "config key init_from",
                    "give the workdir of a run, or leave out the phases that start from "
                    "initial_student",
                )
            reference = f"run:{folder}#initial_student"
        model = read_model(hub.resolve(reference))
        if load_tokenizer(model.folder).fingerprint != self.tokenizer.fingerprint:
            whose, other = "config's", self._config.vocabulary
            if self.has_teacher:
                whose, other = "teacher's", str(self.given.folder)
            raise UserError(
                f"the student's vocabulary is not the {whose}",
                f"{model.folder} and {other}",
                f"give a {whose[:-2]} with the vocabulary that the student was made with",
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
                f"{field} is {mine!r}, and in the student of {self._config.init_from} {theirs!r}",
                f"config section student ({self._config.teacher} is the teacher)",
                f"make it {theirs!r}, or give another init_from",
            )
            for field in fields
            if (mine := getattr(wanted, field)) != (theirs := getattr(student.config, field))
        ]
        errors += self._check_length(student, f"the student of {self._config.init_from}")
        if errors:
            raise UserErrors(errors)

    def _check_length(self, model: Model, name: str) -> list[UserError]:
        length, positions = self._config.max_length, model.config.max_position_embeddings
        if length <= positions:
            return []
        what = f"max_length = {length} is beyond the {positions} positions"
        return [UserError(what, f"config key max_length and {name}", f"give at most {positions}")]

    def _fresh_student(self) -> Params:
        key = jax.random.key(self._config.seed)
        if self._config.student.init == "random":
            return init_params(self.student_config, key)
        layers = align(self.given.config, self.student_config).attention
        return init_from_teacher(
            self.student_config, self.given.config, self.given.params, layers, key
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

        Args:
          name: what phases call it.
          config: its shape.
          params: its parameter groups.
          labels: the classes' names.
          extra: further files of its folder, name -> text.
        """
        plain = "projection" not in params and config.position == "learned"
        plain &= "classifier" not in params or config.classifier == "bert"
        # The rates of its training are the phase's; what stays is what BERT is fine-tuned with.
        config = config.replace(hidden_dropout=0.1, attention_dropout=0.1)
        layout = "huggingface" if plain else "tinybert"
        folder, tokenizer = self.folder(name), self.tokenizer
        write_model(folder, config, params, labels, tokenizer, layout=layout, extra=extra)
