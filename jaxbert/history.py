"""What is known of the run that made a model, for the model's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbert.config import is_reference, split_teachers
from jaxbert.errors import UserError
from jaxbert.evaluation.seeds import ScoredRun, other_circumstances, read_seeds
from jaxbert.files import as_path, read_object
from jaxbert.interop import hub
from jaxbert.interop.licence import origin, read_licence
from jaxbert.sweep.table import Row, render


def read_history(workdir: Path, seeds: Sequence[str] = ()) -> dict[str, Any] | None:
    """Reads what a run's files say of it.

    Args:
      workdir: of a run, or some other place.
      seeds: workdirs of runs that differ from it in their seed alone.

    Returns:
      What `jaxbert.interop.card.model_card` takes; None where no finished run is.

    Raises:
      UserError: a file is not readable, or a run of `seeds` is none of the same recipe.
    """
    if not (hub.is_workdir(workdir) and (workdir / "summary.json").is_file()):
        if seeds:
            fix = "give the workdir of its run, or leave --seeds out"
            raise UserError("it is not known which run made it", str(workdir), fix)
        return None
    names = ["config", "summary", *["eval"] * (workdir / "eval.json").is_file()]
    found = {name: read_object(workdir / f"{name}.json", "restore the file") for name in names}
    history = {"eval": None, "seeds": "", **found, "origins": _origins(found["config"])}
    if seeds:
        runs = read_seeds([workdir, *(as_path(seed).expanduser() for seed in seeds)])
        history["seeds"] = _over_seeds(runs, found["config"]["seed"])
    return history


def _origins(config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The models from elsewhere that a run starts from: where each comes from, and its licence."""
    phases = [config.get(name) for name in config.get("phases", ())]
    named = [phase.get("teacher", "") for phase in phases if isinstance(phase, dict)]
    teachers = [name for text in named for name in split_teachers(text)]
    given = [config.get("teacher"), config.get("init_from"), *filter(is_reference, teachers)]
    found = {name: origin(name) for name in given if name}
    return {name: (source, read_licence(source)) for name, source in found.items()}


def _over_seeds(runs: Sequence[ScoredRun], seed: int) -> str:
    """What runs of one recipe scored, as Markdown.

    Args:
      runs: a run a seed.
      seed: that of the model.
    """
    seconds = {one.seed: one.seconds for one in runs}
    rows = []
    for model, columns in runs[0].scores["models"].items():
        each = {one.seed: one.scores["models"].get(model, {}) for one in runs}
        for metric in filter(columns.__contains__, runs[0].run.task.reported):
            test, dev = (
                {one: said[key] for one, said in each.items() if key in said}
                for key in (metric, f"dev_{metric}")
            )
            rows.append(Row(model, metric, test, dev, seconds))
    said = (
        f"{len(runs)} runs that differ in their seed alone, and in what they start from as far as "
        f"that does; sd is the standard deviation of a sample, dev the mean on the development "
        f"part, minutes those of training. The model here is that of seed {seed}."
    )
    if told := other_circumstances(runs):
        said += f" Compared with seed {runs[0].seed}: {'; '.join(told)}."
    return f"{render(rows, [one.seed for one in runs], markdown=True)}\n\n{said}"
