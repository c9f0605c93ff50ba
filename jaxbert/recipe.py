"""Recipes and overrides to a config: every mistake in them at once, before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.errors import UserError, UserErrors
from jaxbert.presets import PRESETS

T = TypeVar("T")


def load_recipe(reference: str) -> dict[str, Any]:
    """Runs a recipe file's ``get_config``.

    Args:
      reference: ``PATH.py`` or ``PATH.py:ARGUMENT``.

    Raises:
      UserError: if there is no such file, or it does not run.
    """
    path, _, argument = reference.partition(":")
    return run_file(
        path,
        lambda module: dict(module.get_config(argument).to_dict()),
        "config",
        where="flag --config",
        example="a recipe such as configs/tinybert_general.py",
    )


def run_file(path: str, read: Callable[[Any], T], kind: str, *, where: str, example: str) -> T:
    """Runs a Python file for what it defines.

    Args:
      path: of the file.
      read: what is wanted of the module that the file makes.
      kind: what the file is to the user.
      where: what named it.
      example: such a file, for who gave none.

    Raises:
      UserError: if there is no such file, or it does not run.
    """
    if not Path(path).is_file():
        near = difflib.get_close_matches(path, map(str, Path(path).parent.glob("*.py")), 1)
        fix = f"did you mean {near[0]}?" if near else f"give the path of {example}"
        raise UserError(f"there is no {kind} file {path}", where, fix)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file", where, f"give {example}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return read(module)
    except UserError:
        raise
    except Exception as error:
        what = f"the {kind} file does not run: {type(error).__name__}: {error}"
        raise UserError(what, path, "mend it") from error


def parse_argument(argument: str, **defaults: Any) -> dict[str, Any]:
    """Reads a recipe's argument, ``paper,task=sst2``.

    Args:
      argument: comma-separated; a bare word is True.
      defaults: the words that the recipe knows, and their values when not given.

    Raises:
      UserErrors: naming every word that the recipe does not know.
    """
    given, errors = dict(defaults), []
    for item in filter(None, argument.split(",")):
        name, equals, value = item.partition("=")
        if name not in defaults or bool(equals) == isinstance(defaults[name], bool):
            what = f"the recipe does not know the argument {item!r}"
            fix = f"it knows {', '.join(_argument_form(k, v) for k, v in defaults.items())}"
            errors.append(UserError(what, "flag --config", fix))
        given[name] = value if equals else True
    if errors:
        raise UserErrors(errors)
    return given


def _argument_form(name: str, default: Any) -> str:
    return name if isinstance(default, bool) else f"{name}=..."


def read_overrides(words: Sequence[str], flags: str) -> dict[str, str]:
    """The words ``--config.KEY=VALUE`` of a command line as dotted key -> text.

    Args:
      words: what no flag has taken.
      flags: those that the command has beside these, for the message.

    Raises:
      UserErrors: naming every word that is none.
    """
    overrides, errors = {}, []
    for word in words:
        key, equals, value = word.partition("=")
        if not key.startswith("--config.") or not equals:
            fix = f"flags are {flags} and --config.KEY=VALUE"
            errors.append(UserError(f"{word!r} is not understood", "the command line", fix))
        overrides[key.removeprefix("--config.")] = value
    if errors:
        raise UserErrors(errors)
    return overrides


def resolve(recipe: Mapping[str, Any], overrides: Mapping[str, str]) -> RunConfig:
    """Checks a recipe and the overrides of the command line, and makes them one config.

    Args:
      recipe: as ``load_recipe`` returns it.
      overrides: dotted key -> text, such as ``{"general.steps": "100"}``.

    Raises:
      UserErrors: with every unknown key, wrong type and value out of range.
    """
    errors: list[UserError] = []
    merged = _deep_copy(recipe)
    phases = _override_phases(merged, overrides)
    # A recipe's own phases may be left out by overriding ``phases``; their sections then lie idle.
    idle = set(_override_phases(merged, {})) - set(phases)
    known = {field.name: field for field in dataclasses.fields(RunConfig)}
    known.pop("sections")
    hints = typing.get_type_hints(RunConfig)
    plain = {name for name in known if not dataclasses.is_dataclass(hints[name])}
    for key, text in overrides.items():
        *parents, name = key.split(".")
        inside: Any = None if parents and parents[0] in plain else merged
        for parent in parents:
            inside = inside.setdefault(parent, {}) if isinstance(inside, dict) else None
        if isinstance(inside, dict):
            inside[name] = _Text(text)
        else:
            what = f"{'.'.join(parents)} has no keys"
            errors.append(UserError(what, f"config key {key}", "remove it"))
        idle.discard(parents[0] if parents else name)
    top = {k: v for k, v in merged.items() if k in known}
    values = _read(RunConfig, top, "", errors)
    sections = {}
    for name in phases:
        if name in known or not name.isidentifier():
            where = "config key phases"
            errors.append(
                UserError(f"{name!r} cannot name a phase", where, "give a plain new name")
            )
        elif name not in merged:
            where = "config key phases"
            errors.append(UserError(f"the phase {name!r} has no section", where, "add it"))
        elif not isinstance(merged[name], dict):
            errors.append(UserError("a phase is a section", f"config key {name}", "give its keys"))
        else:
            sections[name] = _read(PhaseConfig, _with_terms(merged[name]), f"{name}.", errors)
    for key in set(merged) - set(known) - set(phases) - idle:
        errors.append(_unknown(key, [*known, *phases]))
    if not phases:
        errors.append(UserError("there are no phases", "config key phases", "name at least one"))
    unread = {error.where.removeprefix("config key ") for error in errors}
    config = RunConfig(**values, sections={k: PhaseConfig(**v) for k, v in sections.items()})
    errors += _phase_errors(config, unread)
    if errors:
        raise UserErrors(sorted(errors, key=lambda error: error.where))
    return config


def read_section(cls: Any, texts: Mapping[str, str], name: str) -> Any:
    """A section of a config from texts of the command line.

    Args:
      cls: the section's class.
      texts: field -> text.
      name: what the section is called.

    Raises:
      UserErrors: with every value that cannot be.
    """
    errors: list[UserError] = []
    given = {key: _Text(text) for key, text in texts.items()}
    values = _read(cls, given, f"{name}.", errors)
    if errors:
        raise UserErrors(errors)
    return cls(**values)


# Names that metrics.jsonl has for something else.
RESERVED = (
    *("loss", "accuracy", "mlm_accuracy", "gradient_norm", "dev", "phase", "step", "seconds"),
    *("tokens", "real_tokens", "data_wait", "data_wait_fraction"),
)


class _Text(str):
    """A value from the command line, still to be read as its field's type."""


def _deep_copy(node: Any) -> Any:
    return {k: _deep_copy(v) for k, v in node.items()} if isinstance(node, Mapping) else node


def _override_phases(merged: dict[str, Any], overrides: Mapping[str, str]) -> tuple[str, ...]:
    if "phases" in overrides:
        return tuple(filter(None, overrides["phases"].split(",")))
    phases = merged.get("phases", ())
    return tuple(phases) if isinstance(phases, list | tuple) else ()


def _with_terms(phase: Mapping[str, Any]) -> Mapping[str, Any]:
    """A phase with its preset's terms under those that it changes."""
    given, named = phase.get("terms", {}), phase.get("preset", "")
    preset = PRESETS.get(named, {}) if isinstance(named, str) else {}
    if not preset or not isinstance(given, Mapping):
        return phase
    terms = {name: _deep_copy(term) for name, term in (*preset.items(), *given.items())}
    for name, term in preset.items():
        if isinstance(terms[name], Mapping):
            terms[name] = {**term, **terms[name]}
    return {**phase, "terms": terms}


def _unknown(key: str, known: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in known])
    fix = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
    return UserError("there is no such key", f"config key {key}", fix)


def _read(
    cls: Any, given: Mapping[str, Any], prefix: str, errors: list[UserError]
) -> dict[str, Any]:
    """The values of one section that are what they should be, as keyword arguments of ``cls``."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in given.items():
        if key not in fields:
            errors.append(_unknown(prefix + key, list(fields)))
            continue
        kind = hints[key]
        section = dataclasses.is_dataclass(kind) or typing.get_origin(kind) is Mapping
        if isinstance(value, Mapping) and not section:
            errors.append(_unknown(f"{prefix}{key}.{next(iter(value), '')}", list(fields)))
            continue
        if section:
            if isinstance(value, Mapping):
                default = fields[key].default
                values[key] = _section(kind, value, f"{prefix}{key}.", errors, default)
            else:
                where = f"config key {prefix}{key}"
                errors.append(UserError("it is a section", where, "give the keys inside it"))
            continue
        try:
            typed = _typed(value, kind)
        except ValueError as error:
            what = f"{str(value)!r} is not {error}"
            errors.append(UserError(what, f"config key {prefix}{key}", f"give {error}"))
            continue
        problem = _out_of_range(typed, fields[key].metadata)
        if problem:
            what = f"{typed!r} is out of range"
            errors.append(UserError(what, f"config key {prefix}{key}", f"give {problem}"))
        else:
            values[key] = typed
    return values


def _section(
    kind: Any, given: Mapping[str, Any], prefix: str, errors: list[UserError], default: Any
) -> Any:
    """A section, or the sections of a mapping by their names; ``default`` is that of a section."""
    if dataclasses.is_dataclass(kind):
        return dataclasses.replace(default, **_read(kind, given, prefix, errors))
    inner = typing.get_args(kind)[1]
    sections = {}
    for name, value in given.items():
        where = f"config key {prefix}{name}"
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
            errors.append(UserError(f"{name!r} cannot name a term", where, "give a plain new name"))
        elif isinstance(value, Mapping):
            sections[name] = _section(inner, value, f"{prefix}{name}.", errors, inner())
        else:
            errors.append(UserError("it is a section", where, "give the keys inside it"))
    return sections


def _typed(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``; raises ValueError naming what is wanted."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if isinstance(value, _Text):
            text = value.strip()
            text = text[1:-1] if text.startswith("(") and text.endswith(")") else text
            value = [_Text(item.strip()) for item in text.split(",") if item.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError(f"a list of {_NAMES[inner]}s")
        return tuple(_typed(item, inner) for item in value)
    if isinstance(value, _Text):
        return _parsed(value, kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(_NAMES[kind])
    return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _parsed(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(_NAMES[bool])
        return text.lower() == "true"
    try:
        return kind(str(text))
    except ValueError:
        raise ValueError(_NAMES[kind]) from None


def _out_of_range(value: Any, limits: Mapping[str, Any]) -> str:
    """What to give instead, or an empty string if the value is fine."""
    if isinstance(value, tuple):
        return next(filter(None, (_out_of_range(item, limits) for item in value)), "")
    low, high, among = (limits.get(key) for key in ("low", "high", "among"))
    if among and value not in among:
        return "one of " + ", ".join(repr(choice) for choice in among)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if low is not None and value < low:
        return f"at least {low}"
    if high is not None and value > high:
        return f"at most {high}"
    return ""


def _starts_from_nothing(config: RunConfig) -> bool:
    """Whether a run pre-trains its model itself and has no use for another."""
    phases = config.sections.values()
    learns = all(phase.objective in ("pretrain", "finetune") for phase in phases)
    own = config.student.init == "random" and all(p.start != "given_teacher" for p in phases)
    return learns and own and any(phase.objective == "pretrain" for phase in phases)


def _term_errors(name: str, phase: PhaseConfig, unread: Collection[str]) -> list[UserError]:
    """What is wrong with a phase's terms, whatever the models."""
    errors = []
    decides = tuple(f"{name}.{key}" for key in ("terms", "preset", "objective"))
    broken = any(key.startswith(decides) for key in unread)
    if phase.objective != "distill" and phase.terms:
        what, where = f"{phase.objective} has no terms", f"config key {name}.terms"
        errors.append(UserError(what, where, "remove them, and preset, or give distill"))
    elif phase.objective == "distill" and not any(phase.terms.values()) and not broken:
        fix = f"give a preset, one of {', '.join(PRESETS)}, or terms"
        errors.append(UserError("nothing is distilled", f"config key {name}.terms", fix))
    for key, term in phase.terms.items():
        near = difflib.get_close_matches(key, PRESETS.get(phase.preset, {}))
        where, fix = f"config key {name}.terms.{key}", f"did you mean {near[0]}?" if near else ""
        if not term.feature:
            fix = fix or f"give {name}.terms.{key}.feature"
            errors.append(UserError("the term has no feature", where, fix))
        if -1 < term.final_weight < 0:
            fix = "give a weight from 0, or -1 for a weight that does not move"
            errors.append(UserError(f"{term.final_weight} is no weight", where, fix))
        if term.loss == "dist" and phase.accumulation > 1:
            what = "dist correlates over a whole batch, which accumulation cuts"
            where = f"config key {name}.terms.{key}.loss"
            errors.append(UserError(what, where, f"give {name}.accumulation=1"))
    return errors


def _phase_errors(config: RunConfig, unread: Collection[str]) -> list[UserError]:
    """Every problem that one field alone cannot show.

    Args:
      config: has its default where a value could not be read.
      unread: those keys; nothing is said of what follows from them.
    """
    errors: list[UserError] = []

    def check(good: bool, what: str, fix: str, key: str, *others: str) -> None:
        if not good and not {key, *others} & set(unread):
            errors.append(UserError(what, f"config key {key}", fix))

    deciding = ["phases", "student.init"]  # the keys that decide whether a teacher is needed
    deciding += [f"{name}.{key}" for name in config.sections for key in ("objective", "start")]
    good, fix = bool(config.teacher) or _starts_from_nothing(config), "give a model reference"
    check(good, "there is no teacher", fix, "teacher", *deciding)
    what = "the teacher has a vocabulary of its own"
    check(not (config.teacher and config.vocabulary), what, "remove it", "vocabulary", "teacher")
    reserved = [f"{how}_{who}" for who in ("student", "assistant") for how in ("initial", "random")]
    reserved.append("given_teacher")
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
    made = [name for name in reserved if config.assistant or not name.endswith("_assistant")]
    made.append("student")
    trained: list[str] = []
    named = ["phases", *config.phases]  # the keys that decide what is in ``made``
    for name, phase in config.sections.items():
        objective, data = f"{name}.objective", f"{name}.data"
        fix = f"give one of {', '.join(made)}"
        what = f"no earlier phase trains {phase.start!r}"
        check(phase.start in made, what, fix, f"{name}.start", *named)
        errors += _term_errors(name, phase, unread)
        deciding = [objective, f"{name}.preset", f"{name}.terms"]
        taught = phase.objective == "distill" and any(t and t.taught for t in phase.terms.values())
        if not taught:
            what, fix = f"{phase.objective} has no teacher", "remove it"
            check(not phase.teacher, what, fix, f"{name}.teacher", *deciding)
        for teacher in phase.teachers or ("",) * taught:
            what = f"no earlier phase trains {teacher!r}"
            good = teacher in made or ":" in teacher
            fix = f"give one of {', '.join(made)}, or a reference"
            check(good, what, fix, f"{name}.teacher", *deciding, *named)
        good, cache = phase.teacher_cache in ("auto", "none"), f"{name}.teacher_cache"
        lone = taught and not phase.masks and not phase.compat and len(phase.teachers) == 1
        what = "outputs are kept of one teacher, of text that is not masked, without padded means"
        check(good or lone, what, "give auto or none", cache, *deciding, f"{name}.teacher")
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
        good = phase.data != "augmentation" or not labels or "teacher" in made
        what, key = "no earlier phase trains the teacher that labels copies", "augmentation.relabel"
        check(good, what, "give false, and filter, or fine-tune it first", key, data, *named)
        what = "the authors' padded means need one example a row"
        packing = f"{name}.packing"
        check(not (phase.compat and phase.packing), what, "give false", packing, f"{name}.compat")
        what = f"a batch of {phase.batch_size} cannot be cut into {phase.accumulation}"
        good = phase.batch_size >= phase.accumulation
        size = f"{name}.batch_size"
        check(good, what, "give at most batch_size", f"{name}.accumulation", size)
        what = "a phase without a classifier is measured on a task, and there is none"
        good = phase.objective != "distill" or not phase.eval_every or bool(config.task)
        check(good, what, "name one, or give 0", f"{name}.eval_every", *deciding, "task")
        what, good = "nothing is evaluated to select by", phase.select != "best"
        fix, evaluation = "give eval_every, or last", f"{name}.eval_every"
        check(good or phase.eval_every > 0, what, fix, f"{name}.select", evaluation)
        trains = f"{name}.trains"
        good = phase.trains not in reserved and bool(re.fullmatch(r"\w[\w.-]*", phase.trains))
        check(good, f"{phase.trains!r} cannot name a trained model", "give a plain name", trains)
        # A model is written once: its folder is how a phase is known to be finished.
        what = f"an earlier phase trains {phase.trains!r}"
        check(phase.trains not in trained, what, "give a name of its own", trains, *named)
        made += [phase.trains] * (phase.trains not in made)
        trained.append(phase.trains)
        named.append(trains)
    return errors
