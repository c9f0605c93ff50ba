"""What no field of a config shows alone: whether its models, data and phases go together."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection

from jaxbert.config import (
    AugmentationConfig,
    PhaseConfig,
    RunConfig,
    StudentConfig,
    is_reference,
)
from jaxbert.errors import UserError
from jaxbert.presets import PRESETS


def find_problems(config: RunConfig, unread: Collection[str]) -> list[UserError]:
    """Every problem that one field alone cannot show.

    Args:
      config: has its default where a value could not be read.
      unread: those keys; nothing is said of what follows from them.
    """
    found = _Problems(frozenset(unread), [])
    _check_models(config, found)
    known = _Known.of(config)
    for name, phase in config.sections.items():
        _check_start(name, phase, known, found)
        _check_terms(name, phase, found)
        _check_teacher(name, phase, known, found)
        _check_data(name, phase, config, known, found)
        _check_masks(name, phase, found)
        _check_steps(name, phase, config, found)
        _check_trained(name, phase, known, found)
        known.add(name, phase)
    return found.errors


@dataclasses.dataclass(frozen=True)
class _Problems:
    """What is wrong, but for what follows from keys that could not be read."""

    unread: frozenset[str]
    errors: list[UserError]

    def check(self, good: bool, what: str, fix: str, key: str, *others: str) -> None:
        """Says ``what`` of ``key`` unless it is good, or it or another key could not be read."""
        if not good and not {key, *others} & self.unread:
            self.errors.append(UserError(what, f"config key {key}", fix))


@dataclasses.dataclass
class _Known:
    """The models that a phase can name.

    Attributes:
      reserved: names of models that no phase trains.
      made: those and what earlier phases train.
      trained: what earlier phases train.
      deciding: the keys that decide what is in ``made``.
    """

    reserved: list[str]
    made: list[str]
    trained: list[str]
    deciding: list[str]

    @classmethod
    def of(cls, config: RunConfig) -> _Known:
        """What there is before the first phase."""
        who = ("student", "assistant")
        reserved = [f"{how}_{name}" for name in who for how in ("initial", "random")]
        reserved.append("given_teacher")
        made = [n for n in reserved if config.assistant or not n.endswith("_assistant")]
        return cls(reserved, [*made, "student"], [], ["phases", *config.phases])

    def add(self, name: str, phase: PhaseConfig) -> None:
        """What there is after a phase."""
        self.made += [phase.trains] * (phase.trains not in self.made)
        self.trained.append(phase.trains)
        self.deciding.append(f"{name}.trains")


def _check_models(config: RunConfig, found: _Problems) -> None:
    check = found.check
    deciding = ["phases", "student.init"]  # the keys that decide whether a teacher is needed
    deciding += [f"{name}.{key}" for name in config.sections for key in ("objective", "start")]
    good, fix = bool(config.teacher) or _starts_from_nothing(config), "give a model reference"
    check(good, "there is no teacher", fix, "teacher", *deciding)
    what = "the teacher has a vocabulary of its own"
    check(not (config.teacher and config.vocabulary), what, "remove it", "vocabulary", "teacher")
    for who in ("student", "assistant"):
        section = getattr(config, who)
        what, layers = "random weights are cut out of no layers", f"{who}.init_layers"
        good = section.init == "teacher" or section.init_layers == "uniform"
        check(good, what, f"give {who}.init=teacher, or remove it", layers, f"{who}.init")
        what = f"{section.init_layers!r} names no layers"
        good = re.fullmatch(r"uniform|top|bottom|\d+( *, *\d+)*", section.init_layers) is not None
        check(good, what, "give uniform, top, bottom, or numbers such as 1,2,4", layers)
        what, rank = "there is no projection that could have a rank", f"{who}.projection_rank"
        good = section.projection != "none" or not section.projection_rank
        check(good, what, "give 0, or another projection", rank, f"{who}.projection")
    check(bool(config.student), "the student has no shape", "give one", "student.preset")
    used = any(p.start.endswith("_assistant") for p in config.sections.values())
    what, fix = "no phase starts from the assistant", "give a phase start=initial_assistant"
    starts = [f"{name}.start" for name in config.sections]
    check(used or not config.assistant, what, fix, "assistant.preset", *starts)
    what = "what is said of the assistant is not read, as it has no shape"
    read = bool(config.assistant) or config.assistant == StudentConfig()
    check(read, what, "give a preset, or remove the section", "assistant.preset")
    _check_augmentation(config, found)


def _check_augmentation(config: RunConfig, found: _Problems) -> None:
    """Whether a phase reads what the section makes."""
    if any(phase.data == "augmentation" for phase in config.sections.values()):
        return
    mine, usual = config.augmentation, AugmentationConfig()
    keys = [field.name for field in dataclasses.fields(mine)]
    given = [key for key in keys if getattr(mine, key) != getattr(usual, key)]
    data = ["phases", *config.phases, *(f"{name}.data" for name in config.sections)]
    for key in given[:1]:
        fix = "give a phase data=augmentation, or remove the section"
        found.check(False, "no phase reads copies", fix, f"augmentation.{key}", *data)


def _starts_from_nothing(config: RunConfig) -> bool:
    """Whether a run pre-trains its model itself and has no use for another."""
    phases = config.sections.values()
    learns = all(phase.objective in ("pretrain", "finetune") for phase in phases)
    own = config.student.init == "random" and all(p.start != "given_teacher" for p in phases)
    return learns and own and any(phase.objective == "pretrain" for phase in phases)


def _check_start(name: str, phase: PhaseConfig, known: _Known, found: _Problems) -> None:
    fix = f"give one of {', '.join(known.made)}"
    what = f"no earlier phase trains {phase.start!r}"
    found.check(phase.start in known.made, what, fix, f"{name}.start", *known.deciding)


def _check_terms(name: str, phase: PhaseConfig, found: _Problems) -> None:
    errors = found.errors
    broken = not found.unread.isdisjoint(_deciding(name, found))
    if phase.objective != "distill" and phase.terms:
        what, where = f"{phase.objective} has no terms", f"config key {name}.terms"
        errors.append(UserError(what, where, "remove them, and preset, or give distill"))
    elif phase.objective == "distill" and not any(phase.terms.values()) and not broken:
        fix = f"give a preset, one of {', '.join(PRESETS)}, or terms"
        errors.append(UserError("nothing is distilled", f"config key {name}.terms", fix))
    for key, term in phase.terms.items():
        near = difflib.get_close_matches(key, PRESETS.get(phase.preset, {}))
        where, fix = f"config key {name}.terms.{key}", f"did you mean {near[0]}?" if near else ""
        if not term.feature and f"{name}.terms.{key}.feature" not in found.unread:
            fix = fix or f"give {name}.terms.{key}.feature"
            errors.append(UserError("the term has no feature", where, fix))
        if -1 < term.final_weight < 0:
            fix = "give a weight from 0, or -1 for a weight that does not move"
            errors.append(UserError(f"{term.final_weight} is no weight", where, fix))
        if term.loss == "dist" and phase.accumulation > 1:
            what = "dist correlates over a whole batch, which accumulation cuts"
            where = f"config key {name}.terms.{key}.loss"
            errors.append(UserError(what, where, f"give {name}.accumulation=1"))


def _deciding(name: str, found: _Problems) -> list[str]:
    """The keys that decide what a phase minimises, and those of its terms that are not read."""
    keys = [f"{name}.{key}" for key in ("objective", "preset", "terms")]
    return keys + [key for key in found.unread if key.startswith(f"{name}.terms.")]


def _check_teacher(name: str, phase: PhaseConfig, known: _Known, found: _Problems) -> None:
    check, deciding = found.check, _deciding(name, found)
    distils = phase.objective == "distill"
    taught = distils and any(t and t.taught for t in phase.terms.values())
    if distils and not taught and any(phase.terms.values()):
        fix = "remove it, or give a term another loss than labels"
        check(not phase.teacher, "the terms need no teacher", fix, f"{name}.teacher", *deciding)
    elif not distils:
        what = f"{phase.objective} has no teacher"
        check(not phase.teacher, what, "remove it", f"{name}.teacher", *deciding)
    for teacher in phase.teachers or ("",) * taught:
        what = f"no earlier phase trains {teacher!r}"
        good = teacher in known.made or is_reference(teacher)
        fix = f"give one of {', '.join(known.made)}, or a reference (of a folder here, ./NAME)"
        fix = "put blanks around the +" if "+" in teacher else fix
        check(good, what, fix, f"{name}.teacher", *deciding, *known.deciding)
    good, cache = phase.teacher_cache in ("auto", "none"), f"{name}.teacher_cache"
    lone = taught and not phase.masks and not phase.compat and len(phase.teachers) == 1
    what = "outputs are kept of one teacher, of text that is not masked, without padded means"
    check(good or lone, what, "give auto or none", cache, *deciding, f"{name}.teacher")


def _check_data(
    name: str, phase: PhaseConfig, config: RunConfig, known: _Known, found: _Problems
) -> None:
    check, deciding = found.check, _deciding(name, found)
    objective, data = f"{name}.objective", f"{name}.data"
    what = f"the objective {phase.objective} needs labelled data"
    what = "terms of logits need labelled data" if phase.objective == "distill" else what
    check(phase.data != "corpus" or not phase.classifies, what, "give task", data, *deciding)
    good = phase.data == "corpus" or not phase.reads("mlm_logits")
    what = "terms of mlm_logits read unlabelled text"
    check(good, what, "give corpus", data, *deciding)
    what = f"a task of similarity trains no head, and {phase.objective} does"
    fix, key = "give regression, or leave the phase out", "task.kind"
    good = config.task.kind != "similarity" or not phase.classifies
    check(good, what, fix, key, *deciding)
    good = phase.data == "corpus" or phase.objective != "pretrain"
    check(good, "pretrain reads unlabelled text", "give corpus", data, objective)
    what, good = "pretrain has no padded means", phase.objective != "pretrain"
    check(good or not phase.compat, what, "remove it", f"{name}.compat", objective)
    what = f"the phase {name} reads it and it is empty"
    check(bool(getattr(config, phase.data)), what, "name one", phase.data, data)
    what = f"the phase {name} reads copies of its rows, and there is no task"
    check(phase.data != "augmentation" or bool(config.task), what, "name one", "task", data)
    labels = config.augmentation.relabel or config.augmentation.filter
    # Whether a given one comes with a classifier is seen when it is read.
    good = phase.data != "augmentation" or not labels or "teacher" in known.made
    key = "augmentation.relabel" if config.augmentation.relabel else "augmentation.filter"
    what, fix = "no earlier phase trains the teacher that labels copies", "fine-tune it first"
    deciding = ["teacher", data, *known.deciding]
    check(good or bool(config.teacher), what, f"give false, or {fix}", key, *deciding)


def _check_masks(name: str, phase: PhaseConfig, found: _Problems) -> None:
    usual, deciding = PhaseConfig(), _deciding(name, found)
    pretrains, masks = phase.objective == "pretrain", phase.masks
    for key, read, what in (
        ("freeze_encoder", pretrains, "pretrain alone can hold its encoder"),
        ("nsp", pretrains, "pretrain alone learns next sentences"),
        ("masking_rate", masks, "the phase masks no text"),
        ("whole_words", masks, "the phase masks no text"),
    ):
        good = read or getattr(phase, key) == getattr(usual, key)
        found.check(good, what, "remove it", f"{name}.{key}", *deciding)


def _check_steps(name: str, phase: PhaseConfig, config: RunConfig, found: _Problems) -> None:
    check, deciding = found.check, _deciding(name, found)
    what = "the authors' padded means need one example a row"
    packing = f"{name}.packing"
    check(not (phase.compat and phase.packing), what, "give false", packing, f"{name}.compat")
    what = f"a batch of {phase.batch_size} cannot be cut into {phase.accumulation}"
    good = phase.batch_size >= phase.accumulation
    size = f"{name}.batch_size"
    check(good, what, "give at most batch_size", f"{name}.accumulation", size)
    what = "the phase is measured on a task, and there is none"
    good = phase.objective != "distill" or not phase.eval_every or bool(config.task)
    check(good, what, "name one, or give 0", f"{name}.eval_every", *deciding, "task")
    what, good = "nothing is clipped", phase.clip != "none"
    usual = phase.clip_norm == PhaseConfig().clip_norm
    check(good or usual, what, "remove it, or give clip", f"{name}.clip_norm", f"{name}.clip")
    what, good = "nothing is evaluated to select by", phase.select != "best"
    fix, evaluation = "give eval_every, or last", f"{name}.eval_every"
    check(good or phase.eval_every > 0, what, fix, f"{name}.select", evaluation)


def _check_trained(name: str, phase: PhaseConfig, known: _Known, found: _Problems) -> None:
    check = found.check
    trains = f"{name}.trains"
    good = phase.trains not in known.reserved and bool(re.fullmatch(r"\w[\w.-]*", phase.trains))
    check(good, f"{phase.trains!r} cannot name a trained model", "give a plain name", trains)
    # A model is written once: its folder is how a phase is known to be finished.
    what = f"an earlier phase trains {phase.trains!r}"
    check(
        phase.trains not in known.trained, what, "give a name of its own", trains, *known.deciding
    )
