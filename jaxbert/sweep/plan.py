"""A sweep file and the runs that it names, every mistake in them at once."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxbert.config import TASK_METRICS, PhaseConfig, RunConfig, TermConfig
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError, UserErrors
from jaxbert.recipe import load_recipe, resolve, run_file
from jaxbert.workdir import decisive

Overrides = Mapping[str, Any]
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Runs of one recipe: one for each variant and each point of the grid, once a seed.

    In a value ``{NAME}`` is the folder of an earlier cell's run with the same seed, or a place of
    the sweep.

    Attributes:
      name: of its only cell; else the cells are ``NAME/VARIANT``, ``NAME/KEY=VALUE,KEY=VALUE`` or
        ``NAME/VARIANT/KEY=VALUE``.
      recipe: as ``train.py --config`` takes it.
      overrides: config key -> value, of all its cells.
      variants: name -> overrides, for what is no product.
      grid: config key -> values; the cells are their product.
      models: rows of eval.json that the table shows; none for a run without a task.
      metric: of these rows; empty = the one that the task is chosen by.
    """

    name: str
    recipe: str
    overrides: Overrides = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Overrides] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    models: Sequence[str] = ()
    metric: str = ""

    def cells(self) -> Iterator[tuple[str, Overrides]]:
        """Names and overrides of its cells."""
        points = [
            dict(zip(self.grid, p, strict=True)) for p in itertools.product(*self.grid.values())
        ]
        for variant, own in (self.variants or {"": {}}).items():
            for point in points:
                told = ",".join(f"{key}={_text(value)}" for key, value in point.items())
                name = "/".join(filter(None, (self.name, variant, told)))
                yield re.sub(r"[^\w.,=+/-]+", "_", name), {**self.overrides, **own, **point}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file's ``get_sweep`` returns.

    Attributes:
      stages: in an order in which each refers to earlier ones alone.
      seeds: of every cell.
      places: name -> what it is; given with ``--set=NAME=PLACE``. What lies there tells no cells
        apart: the same data in another folder are the same data.
    """

    stages: Sequence[Stage]
    seeds: Sequence[int]
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep.

    Attributes:
      name: shared by the cells of all seeds.
      seed: the run's.
      recipe: as ``train.py --config`` takes it.
      overrides: config key -> text, the seed among them, names still in braces.
      key: the hash of everything that the result depends on; the keys of the cells that it starts
        from are part of it, places and values that are the config's defaults are not, so that a
        config key that is new leaves finished cells finished.
      defaults: config key -> value, of those that are at their default and not part of the key.
      needs: the cells that it refers to.
      places: the places that it refers to.
      has_task: whether there is something to evaluate.
      models: rows of eval.json for the table.
      metric: of these rows; empty = the task's.
    """

    name: str
    seed: int
    recipe: str
    overrides: Mapping[str, str]
    key: str
    defaults: Mapping[str, Any]
    needs: tuple[str, ...]
    places: tuple[str, ...]
    has_task: bool
    models: tuple[str, ...]
    metric: str

    def folder(self, root: str) -> str:
        """Its run's folder: another one for another config, one for all sweeps that have it."""
        return f"{root}/{self.name}/seed{self.seed}-{self.key[:8]}"

    def command(self, root: str, names: Mapping[str, str]) -> list[str]:
        """The words behind ``python`` that train it.

        Args:
          root: the folder of all runs.
          names: what names in braces stand for; others stay as they are.
        """
        flags = [f"--config.{key}={_filled(text, names)}" for key, text in self.overrides.items()]
        return ["train.py", f"--config={self.recipe}", f"--workdir={self.folder(root)}", *flags]


def load_sweep(reference: str) -> Sweep:
    """Runs a sweep file's ``get_sweep``.

    Args:
      reference: ``PATH.py`` or ``PATH.py:ARGUMENT``.

    Raises:
      UserError: if there is no such file, it does not run, or returns something else.
    """
    path, _, argument = reference.partition(":")
    sweep = run_file(
        path,
        lambda module: module.get_sweep(argument),
        "sweep",
        where="the command line",
        example="a sweep such as benchmarks/sweeps/glue.py",
    )
    if not isinstance(sweep, Sweep):
        what = f"get_sweep returns a {type(sweep).__name__}"
        raise UserError(what, path, "return a jaxbert.sweep.plan.Sweep")
    return sweep


def expand(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, in the order in which they run: all of a seed, then the next seed.

    Raises:
      UserErrors: with every key, value and name that cannot be, each once.
    """
    errors: dict[str, UserError] = {}
    seeds = _seeds(sweep)
    if twice := [str(seed) for seed in seeds if sweep.seeds.count(seed) > 1]:
        what = f"seeds are named twice: {', '.join(twice)}"
        errors[what] = UserError(what, "the sweep", "give each once")

    def say(error: UserError, name: str) -> None:  # once, in whatever cells and seeds it is
        where = f"cell {name}, {error.where}".removesuffix(", ")
        errors.setdefault(error.line, UserError(error.what, where, error.fix))

    recipes: dict[str, Mapping[str, Any]] = {}
    found: list[Cell] = []
    for seed in seeds:
        keys: dict[str, str] = {}
        for stage in sweep.stages:
            for name, overrides in stage.cells():
                if name in keys or name in sweep.places:
                    say(UserError(f"{name!r} names two", "", "give each a name of its own"), name)
                keys[name] = ""
                try:
                    if stage.recipe not in recipes:
                        recipes[stage.recipe] = load_recipe(stage.recipe)
                    known = {n: key for n, key in keys.items() if n != name}
                    cell = _cell(stage, name, overrides, seed, recipes[stage.recipe], known, sweep)
                except UserError as error:
                    for one in getattr(error, "errors", (error,)):
                        say(one, name)
                else:
                    keys[name] = cell.key
                    found.append(cell)
    if errors:
        raise UserErrors(list(errors.values()))
    return found


def _seeds(sweep: Sweep) -> list[int]:
    """The seeds, each once. What is no whole number no line of the results could be found by."""
    fix = "give whole numbers, such as [0, 1, 2]"
    if not isinstance(sweep.seeds, Sequence):
        raise UserError(f"{sweep.seeds!r} is no list of seeds", "the sweep", fix)
    for seed in sweep.seeds:
        if type(seed) is not int:  # NumPy's are none that JSON has
            raise UserError(f"{seed!r} is no whole number", "the sweep", fix)
    return list(dict.fromkeys(sweep.seeds))


def _cell(
    stage: Stage,
    name: str,
    overrides: Overrides,
    seed: int,
    recipe: Mapping[str, Any],
    keys: Mapping[str, str],
    sweep: Sweep,
) -> Cell:
    texts = {key: _text(value) for key, value in overrides.items()} | {"seed": str(seed)}
    names = list(dict.fromkeys(n for text in texts.values() for n in _BRACES.findall(text)))
    known = [*keys, *sweep.places]
    errors = [
        UserError(f"'{{{n}}}' is no earlier cell and no place", "", near_fix(n, known))
        for n in names
        if n not in known
    ]
    config = None
    try:
        chained = {n: f"{{{n}@{keys[n]}}}" for n in names if n in keys}
        config = resolve(recipe, {k: _filled(text, chained) for k, text in texts.items()})
    except UserErrors as error:
        errors += error.errors
    errors += _unshown(stage, config) if config else []
    if errors or config is None:
        raise UserErrors(errors)
    return Cell(
        name=name,
        seed=seed,
        recipe=stage.recipe,
        overrides=texts,
        key=identity(config),
        defaults=_defaults(config),
        needs=tuple(n for n in names if n in keys),
        places=tuple(n for n in names if n in sweep.places),
        has_task=bool(config.task),
        models=tuple(stage.models),
        metric=stage.metric,
    )


def _unshown(stage: Stage, config: RunConfig) -> list[UserError]:
    """What the table is to show of a run, and the run does not have."""
    if not config.task:
        what = "a run without a task has no models to show"
        return [UserError(what, "", "remove them")] if stage.models else []
    trained = (phase.trains for phase in config.sections.values())
    rows = list(dict.fromkeys(("teacher", *trained, "tfidf")))
    errors = [
        UserError(f"no phase trains {name!r}", "models", near_fix(name, rows))
        for name in stage.models
        if name not in rows
    ]
    if stage.metric:
        metrics: Sequence[str] = TASK_METRICS
        if not config.task.source.startswith("{"):  # a place, which may say the kind
            metrics = describe_task(**dataclasses.asdict(config.task)).reported
        if stage.metric not in metrics:
            what = f"{stage.metric!r} is no metric of the task"
            errors.append(UserError(what, "metric", near_fix(stage.metric, metrics)))
    return errors


def identity(config: RunConfig) -> str:
    """A hash (SHA-256, hexadecimal) of what a config's result depends on, defaults left out.

    Of ``dtype`` that is ``bfloat16``, which was the default: results of then are of cells that ask
    for it, and what the devices choose is another matter.
    """
    usual = {**_defaults(config), "dtype": "bfloat16"}
    mine = decisive(config.to_dict()) | {"dtype": config.dtype}
    told = {k: v for k, v in mine.items() if usual.get(k) != v}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _defaults(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, of what a config's result depends on and is at its default."""
    sections = {}
    for name, phase in config.sections.items():
        # No term is all defaults: that it is there is said by its feature.
        terms = {term: TermConfig(feature="") for term in phase.terms}
        sections[name] = PhaseConfig(terms=terms)
    usual = decisive(RunConfig(sections=sections).to_dict())
    mine = decisive(config.to_dict())
    return {k: v for k, v in mine.items() if k in usual and usual[k] == v}


def choose(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match one of the patterns, such as ``sst2/*``; without any, all.

    Raises:
      UserErrors: naming each pattern that matches none.
    """
    names = list(dict.fromkeys(cell.name for cell in cells))
    errors = [
        UserError(f"no cell is named {pattern}", "flag --only", near_fix(pattern, names))
        for pattern in patterns
        if not fnmatch.filter(names, pattern)
    ]
    if errors:
        raise UserErrors(errors)
    return [c for c in cells if not patterns or any(fnmatch.fnmatch(c.name, p) for p in patterns)]


def near_fix(name: str, known: Sequence[str]) -> str:
    """What to write instead of a name that is not known."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"


def _text(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _filled(text: str, names: Mapping[str, str]) -> str:
    return _BRACES.sub(lambda match: names.get(match[1], match[0]), text)
