"""The whole job from Python: the recipes of the commands, and the function that runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbert.data.tasks import describe_task
from jaxbert.evaluation.evaluate import evaluate_run
from jaxbert.evaluation.report import print_table
from jaxbert.files import as_path
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import quieten, run
from jaxbert.serving import TextModel, load
from jaxbert.stopping import resumable

GENERAL, TASK = "tinybert_general", "tinybert_task"


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What came of a distillation.

    Attributes:
      student: the model, ready to be asked.
      results: what eval.json of the run holds.
      workdir: the run on the task; ``jaxbert export`` takes it.
    """

    student: TextModel
    results: dict[str, Any]
    workdir: Path


def distill(
    teacher: str | Path = "",
    data: str | Mapping[str, Any] = "",
    student: str | Mapping[str, Any] = "tinybert4",
    workdir: str | Path = "runs/distilled",
    *,
    corpus: str | None = None,
    argument: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> Distilled:
    """Distils a student, first on plain text and then on a task, evaluates and loads it.

    This is ``jaxbert train --config=tinybert_general``, ``jaxbert train --config=tinybert_task``
    and ``jaxbert eval``, in the folders ``general`` and ``task`` of the workdir. Called again, it
    goes on where it was stopped; what is finished is not done again. SIGINT, as a notebook's
    Interrupt sends it, and SIGTERM are heard in the main thread alone.

    Args:
      teacher: a model reference; empty = the recipes' own.
      data: the task: the name of a known one, or keys of the config section ``task``, such as
        ``{"name": "reviews", "source": "tsv:reviews.tsv", "columns": ("text",), "labels":
        ("negative", "positive")}``; empty = the recipe's own.
      student: a preset, or keys of the config section ``student``.
      workdir: where everything is written.
      corpus: plain text, a reference; None = the recipe's own, empty = none: the student is then
        distilled on the task alone.
      argument: of both recipes, such as ``smoke``.
      overrides: further config keys, dotted, and their values, for both recipes; those of a phase
        for the recipe that has it, those of ``task`` and ``augmentation`` for the task's, those of
        ``assistant`` for the general one.

    Raises:
      UserError: what the user can fix.
      KeyboardInterrupt: it was interrupted, and a phase under way has saved within two steps.
      SystemExit: with 75, after SIGTERM, likewise.
    """
    shape = {"preset": student} if isinstance(student, str) else dict(student)
    named = "source" if ":" in data else "name"
    described = {named: data} if isinstance(data, str) and data else dict(data or {})
    given = {"teacher": teacher} if teacher else {}
    given |= {f"student.{key}": value for key, value in shape.items()} | dict(overrides or {})
    general, task = (f"{name}:{argument}" for name in (GENERAL, TASK))
    recipes = {GENERAL: load_recipe(general), TASK: load_recipe(task)}
    if described:
        recipes[TASK]["task"] = described
    texts: dict[str, Any] = {} if corpus is None else {"corpus": corpus}
    folders = {name: as_path(workdir) / name.partition("_")[2] for name in recipes}
    start = {"init_from": folders[GENERAL]} if corpus != "" else {}
    stages = {GENERAL: given | texts} if corpus != "" else {}
    stages[TASK] = given | start
    own = {GENERAL: {"assistant"}, TASK: {"task", "augmentation"}}
    own = {name: own[name] | set(recipes[name]["phases"]) for name in stages}
    configs = {}
    for name, words in stages.items():
        others = set().union(*own.values()) - own[name]
        mine = {key: _text(v) for key, v in words.items() if key.split(".")[0] not in others}
        configs[name] = resolve(recipes[name], mine)
    describe_task(**dataclasses.asdict(configs[TASK].task))  # before hours of the first stage
    quieten()
    with resumable(alone=False):
        for name, config in configs.items():
            run(config, folders[name])
        results = evaluate_run(folders[TASK])
    print_table(results)
    return Distilled(load(folders[TASK]), results, folders[TASK])


def _text(value: Any) -> str:
    """A value as the command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
