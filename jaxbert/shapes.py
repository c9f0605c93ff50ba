"""The shape of every model of a run, known before there is one."""

from __future__ import annotations

from collections.abc import Callable

from jaxbert.config import RunConfig, StudentConfig, is_reference
from jaxbert.models.bert import PRESETS, BertConfig

MADE = ("student", "assistant")  # whose shape a section of the config gives
_SIZES = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
_SHARED = ("vocab_size", "type_vocab_size", "max_position_embeddings")  # with the given teacher
_COMPUTED = ("activation", "layer_norm_eps")  # as in the teacher that a model is cut out of


class Shapes:
    """Shapes by the names that phases use.

    A model has the shape of what its phases go back to: that of the given teacher, or of what the
    section ``student`` or ``assistant`` describes.

    Args:
      config: the run's.
      given: the given teacher's shape; None = there is none.
      vocab_size: rows of the word tables of all models of the run.
      outside: gives the shape of a reference.
    """

    def __init__(
        self,
        config: RunConfig,
        given: BertConfig | None,
        vocab_size: int,
        outside: Callable[[str], BertConfig],
    ) -> None:
        self._config, self._given, self._vocab_size = config, given, vocab_size
        self._outside = outside
        self._origins = {f"{how}_{who}": who for who in MADE for how in ("initial", "random")}
        self._origins |= {"given_teacher": "given_teacher", "student": "student"}
        for phase in config.sections.values():
            self._origins.setdefault(phase.trains, self._origin(phase.start))

    def section(self, name: str) -> StudentConfig:
        """The section that says how a model is made; the student's of one that is given."""
        assistant = self._origin(name) == "assistant"
        return self._config.assistant if assistant else self._config.student

    def of(self, name: str) -> BertConfig:
        """The shape of a model, trained or not, or of a reference.

        A projection leads into the width of the first model that the first phase learns from, of
        the phases with a teacher that train it.
        """
        if is_reference(name):
            return self._outside(name)
        origin, wanted = self._origin(name), self.section(name)
        base, teacher = self._plain(origin), self._teacher(origin)
        if origin == "given_teacher" or not teacher or wanted.projection == "none":
            return base
        outside = is_reference(teacher)
        other = self._outside(teacher) if outside else self._plain(self._origin(teacher))
        return base.replace(
            projection_size=other.hidden_size,
            projection_per_layer=wanted.projection == "layer",
            projection_rank=wanted.projection_rank,
        )

    def _origin(self, name: str) -> str:
        return self._origins.get(name, "student")

    def _teacher(self, origin: str) -> str:
        """What the first phase learns from that goes back to ``origin`` and has a teacher."""
        for phase in self._config.sections.values():
            if phase.teachers and self._origin(phase.start) == origin:
                return phase.teachers[0]
        return "given_teacher" if self._given else ""

    def _plain(self, origin: str) -> BertConfig:
        """The shape without a projection.

        What is cut out of the given teacher computes as that does, whatever its preset. Without a
        given teacher a model has a row for each piece of the tokenizer and for each position up to
        the run's length: rows that no training reaches would be random for ever.
        """
        if origin == "given_teacher":
            assert self._given is not None
            return self._given.replace(projection_size=0, projection_rank=0)
        wanted: StudentConfig = getattr(self._config, origin)
        changes = {key: value for key in _SIZES if (value := getattr(wanted, key))}
        changes |= {"position": wanted.position, "classifier": wanted.classifier}
        if self._given:
            kept = _SHARED + _COMPUTED * (wanted.init == "teacher")
            changes |= {key: getattr(self._given, key) for key in kept}
        else:
            length = self._config.max_length
            changes |= {"vocab_size": self._vocab_size, "max_position_embeddings": length}
        return PRESETS[wanted.preset].replace(**changes)
