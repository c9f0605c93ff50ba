"""Recipes and overrides to a config: every mistake in them at once, before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxbert.coherence import find_problems
from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.errors import UserError, UserErrors
from jaxbert.presets import PRESETS

T = TypeVar("T")


def load_recipe(reference: str) -> dict[str, Any]:
    """Runs a recipe file's ``get_config``.

    Args:
      reference: a path or the name of one of `named_recipes`, and ``:ARGUMENT`` behind it.

    Raises:
      UserError: if there is no such file, or it does not run.
    """
    name, _, argument = reference.partition(":")
    known = named_recipes()
    if name == Path(name).stem and not Path(name).is_file() and name not in known:
        near = difflib.get_close_matches(name, known, 1)
        fix = f"did you mean {near[0]}? " if near else ""
        fix += f"The recipes are {', '.join(known)}; any other is given by its path"
        raise UserError(f"there is no recipe {name!r}", "flag --config", fix)
    path = name if Path(name).is_file() else str(known.get(name, name))
    return run_file(
        path,
        lambda module: dict(module.get_config(argument).to_dict()),
        "config",
        where="flag --config",
        example="a recipe such as configs/tinybert_general.py",
    )


def named_recipes() -> dict[str, Path]:
    """The recipes that come with jaxbert, name -> file: installed with it, or in its checkout."""
    here = Path(__file__).parent
    installed, checkout = here / "configs", here.parent / "configs"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


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
    left = set(_override_phases(merged, {})) - set(phases)
    idle = set(left)
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
        if key in left:
            fix = "name it there, or remove its keys"
            errors.append(UserError("phases leaves it out", f"config key {key}", fix))
        else:
            errors.append(_unknown(key, [*known, *phases]))
    if not phases:
        errors.append(UserError("there are no phases", "config key phases", "name at least one"))
    unread = {error.where.removeprefix("config key ") for error in errors}
    config = RunConfig(**values, sections={k: PhaseConfig(**v) for k, v in sections.items()})
    errors += find_problems(config, unread)
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
    *("tokens", "real_tokens", "data_wait", "data_wait_fraction", "saving", "bad_steps"),
    *("flops", "flops_per_second", "mfu", "spike"),
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
