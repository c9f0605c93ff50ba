"""The models of a run by the names that phases use: given, inherited, fresh or trained."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxbert.config import PhaseConfig, RunConfig, StudentConfig
from jaxbert.data.tokenizer import Tokenizer, load_tokenizer
from jaxbert.data.vocabulary import read_sample, train_vocabulary, write_vocabulary
from jaxbert.errors import UserError, UserErrors
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, layout_for, read_model, write_model
from jaxbert.models.bert import PRESETS, BertConfig, Params, init_params
from jaxbert.models.reduction import init_from_teacher
from jaxbert.objectives.alignment import layer_map

_VOCABULARY = "vocabulary"  # of the workdir
_DOCUMENTS = 20_000  # at most, to train one
_MADE = ("student", "assistant")  # whose shape a section of the config gives


class Library:
    """Models by name.

    ``given_teacher`` is what the config's teacher names; ``initial_student`` a student before any
    training, ``random_student`` one of its shape with random weights, ``student`` the one to start
    from; ``initial_assistant`` and ``random_assistant`` are the like of an assistant; every other
    name is a model that a phase trained.

    Args:
      config: the run's.
      workdir: the run's folder.

    Attributes:
      has_teacher: whether the config names one.
    """

    def __init__(self, config: RunConfig, workdir: Path) -> None:
        self._config, self._workdir = config, workdir
        self.has_teacher = bool(config.teacher)

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

    def check(self) -> list[UserError]:
        """What is wrong with the models that the run starts from."""
        errors = self._check_teacher() if self.has_teacher else []
        starts = {phase.start for phase in self._config.sections.values()}
        for name in starts & {"student", "initial_student", "initial_assistant"}:
            who = name.removeprefix("initial_")
            try:
                if self._config.init_from and who == "student":
                    self._check_shape(self._inherited(name))
                elif self.section(name).init == "teacher":
                    self._fresh(who)  # made again when it is written: rather that than late
            except UserError as error:
                errors.append(error)
        return errors

    def _check_teacher(self) -> list[UserError]:
        errors: list[UserError] = []
        pieces, rows = self.tokenizer.vocab_size, self.given.config.vocab_size
        if pieces > rows:
            what = f"the tokenizer has {pieces} pieces, the teacher {rows}"
            fix = "put the tokenizer that the teacher was trained with into its folder"
            errors.append(UserError(what, f"teacher {self._config.teacher}", fix))
        return errors + self._check_length(self.given, f"the teacher {self._config.teacher}")

    def section(self, name: str) -> StudentConfig:
        """The section of the config that says how a model is made, the student's unless another."""
        assistant = self._origins.get(name) == "assistant"
        return self._config.assistant if assistant else self._config.student

    def shape(self, name: str) -> BertConfig:
        """The shape of a model, trained or not: the given teacher's, or that of its section.

        The section's preset and its overrides, and what it shares with the teacher. Without one it
        has a row for each piece of the tokenizer and for each position up to the run's length: rows
        that no training reaches would be random for ever. A projection leads into the width of the
        model that the first phase with a teacher, of those that train it, learns from.

        Raises:
          UserError: it has no projection, and the model it learns from another width.
        """
        origin = self._origins.get(name, "student")
        base = self._plain_shape(origin)
        teacher = "given_teacher" if self.has_teacher else ""
        for phase in reversed(list(self._config.sections.values())):
            if phase.teacher and self._origins.get(phase.start) == origin:
                teacher = phase.teacher
        if origin == "given_teacher" or not teacher:
            return base
        wanted = self.section(name)
        width = self._plain_shape(self._origins.get(teacher, "student")).hidden_size
        if wanted.projection != "none":
            return base.replace(
                projection_size=width,
                projection_per_layer=wanted.projection == "layer",
                projection_rank=wanted.projection_rank,
            )
        if base.hidden_size == width:
            return base
        raise UserError(
            f"the {origin}'s width {base.hidden_size} is not the {width} of the model that it "
            "learns from, so that hidden states cannot be compared",
            f"config key {origin}.projection",
            f"give shared or layer, or {origin}.hidden_size={width}",
        )

    def _plain_shape(self, origin: str) -> BertConfig:
        """The shape without a projection."""
        if origin == "given_teacher":
            return self.given.config.replace(projection_size=0, projection_rank=0)
        wanted: StudentConfig = getattr(self._config, origin)
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
        changed = {key: getattr(wanted, key) for key in sizes if getattr(wanted, key)}
        changed |= {"position": wanted.position, "classifier": wanted.classifier}
        if self.has_teacher:
            shared = ("vocab_size", "type_vocab_size", "max_position_embeddings")
            changed |= {key: getattr(self.given.config, key) for key in shared}
        else:
            length = self._config.max_length
            changed |= {"vocab_size": self.vocab_size, "max_position_embeddings": length}
        return PRESETS[wanted.preset].replace(**changed)

    @functools.cached_property
    def _origins(self) -> dict[str, str]:
        """What each name goes back to, through the phases: given_teacher, student, assistant."""
        origins = {f"{how}_{who}": who for who in _MADE for how in ("initial", "random")}
        origins |= {"given_teacher": "given_teacher", "student": "student"}
        for phase in self._config.sections.values():
            origins.setdefault(phase.trains, origins.get(phase.start, "student"))
        return origins

    def start(self, phase: PhaseConfig) -> Model:
        """The model that a phase starts from.

        A projection into another width than that of the model it learns from is left out.
        """
        model = self.get(phase.start)
        width = model.config.projection_size
        if not (width and phase.teacher) or width == self.shape(phase.teacher).hidden_size:
            return model
        none = {"projection_size": 0, "projection_per_layer": False, "projection_rank": 0}
        params = {group: v for group, v in model.params.items() if group != "projection"}
        return dataclasses.replace(model, config=model.config.replace(**none), params=params)

    def get(self, name: str) -> Model:
        """The model of a name."""
        if name == "given_teacher" or (name == "teacher" and self.teacher_is_finetuned):
            return self.given
        folder = self.folder(name)
        how, _, who = name.partition("_")
        if how == "random" and who in _MADE:
            shape = self.shape(name)
            return Model(shape, init_params(shape, jax.random.key(self._config.seed)), (), folder)
        if folder.is_dir():
            return read_model(folder)
        if name in ("student", "initial_student") and self._config.init_from:
            return self._inherited(name)
        if name == "student":
            return self.get("initial_student")
        if how == "initial" and who in _MADE:
            self.write(name, self.shape(name), self._fresh(who))
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
        wanted = self.shape("student")
        fields = ["hidden_size", "num_layers", "num_heads", "intermediate_size", "position"]
        # What the student does not have yet, it gets as the config says.
        fields += ["classifier"] * ("classifier" in student.params)
        sizes = ["projection_size", "projection_per_layer", "projection_rank"]
        fields += sizes * ("projection" in student.params)
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

    def _fresh(self, who: str) -> Params:
        """The parameters of a student or an assistant before any training."""
        shape, wanted = self.shape(f"initial_{who}"), self.section(f"initial_{who}")
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

        Args:
          name: what phases call it.
          config: its shape.
          params: its parameter groups.
          labels: the classes' names.
          extra: further files of its folder, name -> text.
        """
        # The rates of its training are the phase's; what stays is what BERT is fine-tuned with.
        config = config.replace(hidden_dropout=0.1, attention_dropout=0.1)
        layout = layout_for(config, params)
        folder, tokenizer = self.folder(name), self.tokenizer
        write_model(folder, config, params, labels, tokenizer, layout=layout, extra=extra)
