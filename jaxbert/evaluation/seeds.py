"""Finished runs of one recipe that differ in their seed alone, and what each of them scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbert.config import split_teachers
from jaxbert.errors import UserError
from jaxbert.evaluation.finished import FinishedRun, read_run
from jaxbert.files import read_object
from jaxbert.interop import hub
from jaxbert.workdir import decisive

# Of eval.json, what has to be the same for scores to be of one thing.
_MEASURED = ("task", "metric", "split", "splits", "examples")
_FIX = "give runs of one recipe that differ in their seed alone, from where train.py ran"


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A finished run and what ``eval.py`` wrote of it.

    Attributes:
      run: the run.
      scores: what its eval.json holds.
    """

    run: FinishedRun
    scores: dict[str, Any]

    @property
    def seed(self) -> int:
        """The run's."""
        return self.run.config["seed"]

    @property
    def seconds(self) -> float:
        """Wall seconds in the loops of its phases."""
        return sum(phase["seconds"] for phase in self.run.summary["phases"].values())


def read_seeds(workdirs: Sequence[Path]) -> list[ScoredRun]:
    """Reads runs of one recipe.

    Args:
      workdirs: of finished, evaluated runs. What a run starts from may differ, too, as far as that
        are runs for which the same holds. A run that is there twice, or was run again, counts once.

    Returns:
      A run for each seed, by seed.

    Raises:
      UserError: one is not finished or not evaluated, or not like the first but for its seed.
    """
    found: dict[int, ScoredRun] = {}
    first: ScoredRun | None = None
    for workdir in workdirs:
        if not (workdir / "config.json").is_file():
            fix = "give the workdirs of finished runs"
            raise UserError("there is no run", f"{workdir}, flag --seeds", fix)
        run = read_run(workdir)
        path = workdir / "eval.json"
        if not path.is_file():
            fix = f"python eval.py --workdir={workdir}"
            raise UserError("the run is not evaluated", f"{path} is missing", fix)
        scored = ScoredRun(run, read_object(path, f"python eval.py --workdir={workdir}"))
        first = first or scored
        if told := _differences(first, scored):
            what = f"not the same recipe as {first.run.workdir}: {told[0]}"
            what += f", and {len(told) - 1} more" if told[1:] else ""
            raise UserError(what, str(workdir), _FIX)
        other = found.setdefault(scored.seed, scored)
        mine, theirs = (one.run.summary.get("parameter_hash") for one in (scored, other))
        if mine != theirs:
            what = f"it has the seed {scored.seed} of {other.run.workdir}, and other parameters"
            raise UserError(what, str(workdir), "give one run a seed")
    return [found[seed] for seed in sorted(found)]


def other_circumstances(runs: Sequence[ScoredRun]) -> list[str]:
    """In which runs something differs from the first that no config says: a line each."""
    keys, lines = ("versions", "devices", "git_revision"), []

    def told(one: ScoredRun) -> dict[str, Any]:
        dtype = {"dtype": one.run.config.get("dtype")}  # which its devices may have chosen
        return {key: one.run.summary.get(key) for key in keys} | dtype

    before = told(runs[0])
    for one in runs[1:]:
        if others := [key for key, value in told(one).items() if value != before[key]]:
            lines.append(f"seed {one.seed}: other {', '.join(others)}")
    return lines


def _differences(first: ScoredRun, other: ScoredRun) -> list[str]:
    """What is not the same in two runs, but for their seed."""
    told = _recipes(first.run.config, other.run.config)
    told += [
        f"{key} of eval.json is {first.scores.get(key)!r} there and {other.scores.get(key)!r} here"
        for key in _MEASURED
        if first.scores.get(key) != other.scores.get(key)
    ]
    if _rows(first.run) != _rows(other.run):
        told.append("the rows of the task are others")
    return told


def _recipes(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys of two configs that say something else."""
    one, two = decisive(first), decisive(other)
    return [
        f"{key} is {one.get(key)!r} there and {two.get(key)!r} here"
        for key in [*one, *(key for key in two if key not in one)]
        if key not in ("seed", "dtype")
        and one.get(key) != two.get(key)
        and not _alike(one.get(key), two.get(key))
    ]


def _alike(first: Any, other: Any) -> bool:
    """Whether two values of a config name runs of one recipe."""
    if not (isinstance(first, str) and isinstance(other, str)):
        return False
    pair = [split_teachers(value) for value in (first, other)]  # of other keys, the value itself
    if len(pair[0]) != len(pair[1]):
        return False
    for references in zip(*pair, strict=True):
        configs, models = zip(*map(_named_run, references), strict=True)
        if references[0] == references[1]:
            continue
        if not all(configs) or models[0] != models[1] or _recipes(*configs):
            return False
    return True


def _named_run(reference: str) -> tuple[dict[str, Any], str]:
    """The config of the run that a reference names, if it does, and the model that is meant."""
    try:
        workdir, model = hub.split_run(reference)
        if reference and hub.is_workdir(workdir):
            return read_object(workdir / "config.json", ""), model
    except UserError:
        pass
    return {}, ""


def _rows(run: FinishedRun) -> list[str]:
    """The hashes of the rows that a run has read."""
    return [rows["sha256"] for rows in run.summary.get("task", {}).get("rows", {}).values()]
