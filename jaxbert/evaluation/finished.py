"""A finished run: its folder, read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbert.config import is_reference, split_teachers
from jaxbert.data.rows import TaskData, load_task
from jaxbert.data.tasks import Task, describe_task
from jaxbert.errors import UserError
from jaxbert.files import check_seal, fetched, read_object
from jaxbert.interop import hub

_RESTORE = "restore the file"


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run with a labelled task that has come to its end.

    Attributes:
      workdir: the folder that ``train.py`` wrote.
      config: what its config.json holds.
      summary: what its summary.json holds.
      task: its task, as it was described.
    """

    workdir: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    task: Task

    def load_task(self) -> TaskData:
        """The rows that it was trained and chosen on.

        Raises:
          UserError: they are not there, or no longer the same.
        """
        data = load_task(self.task, self.config.get("data_dir") or "")
        for reference, rows in self.summary.get("task", {}).get("rows", {}).items():
            if data.rows.get(reference, {}).get("sha256") != rows["sha256"]:
                fix = "put the old rows back, or train again in another --workdir"
                raise UserError("its rows have changed since the run", reference, fix)
        return data

    def folders(self) -> dict[str, Path]:
        """Its models that are there: the teacher (see `held_against`), then as their phases are.

        Raises:
          UserError: it has trained none, or a teacher from outside is gone.
        """
        places = {folder.name: fetched(folder) for folder in self._trained()}
        if given := held_against(self.workdir, self.config):
            places = {"teacher": hub.resolve(given)} | places
        return places

    def answering(self) -> Path:
        """The one model that it is asked by: the student, or else the last one that it trained.

        Raises:
          UserError: it has trained none.
        """
        trained = self._trained()
        return fetched(next((f for f in trained if f.name == "student"), trained[-1]))

    def _trained(self) -> list[Path]:
        """Where its trained models lie, in the order of `folders`."""
        phases = [self.config.get(name) for name in self.config.get("phases", ())]
        trained = [phase.get("trains", "") for phase in phases if isinstance(phase, dict)]
        found = [folder.parent for folder in (self.workdir / "models").glob("*/config.json")]
        # Those that are made before any training are no result.
        found = [f for f in found if not f.name.startswith((".", "initial_"))]

        def place(folder: Path) -> tuple[bool, int, str]:
            name = folder.name
            order = trained.index(name) if name in trained else len(trained)
            return name != "teacher", order, name

        if not found:
            raise UserError(
                "this run left no model",
                f"{self.workdir}/models",
                "run its train.py command again",
            )
        return sorted(found, key=place)


def given_teacher(workdir: Path, config: Mapping[str, Any]) -> str:
    """The reference to a run's teacher where that is no model of its own; else empty.

    Given fine-tuned, it was not trained there and stays where it is.

    Args:
      workdir: the run's folder.
      config: what its config.json holds.
    """
    return "" if _has_teacher(workdir) else config.get("teacher") or ""


def held_against(workdir: Path, config: Mapping[str, Any]) -> str:
    """The reference to what a run's models are compared with, if that is none of its own.

    The one model from outside that the student learnt from last, or else the given teacher.
    Arguments as for `given_teacher`.
    """
    phases = [config.get(name) for name in config.get("phases", ())]
    of_student = [p for p in phases if isinstance(p, dict) and p.get("trains") == "student"]
    named = [phase.get("teacher") or "" for phase in of_student]
    last = next((teachers for text in reversed(named) if (teachers := split_teachers(text))), ())
    if _has_teacher(workdir) or len(last) != 1 or not is_reference(last[0]):
        return given_teacher(workdir, config)
    return last[0]


def _has_teacher(workdir: Path) -> bool:
    return (workdir / "models" / "teacher" / "config.json").is_file()


def read_run(workdir: Path) -> FinishedRun:
    """Reads what a finished run says of itself.

    Args:
      workdir: the folder that ``train.py`` wrote.

    Raises:
      UserError: not a run, an unfinished one, one without a task, or files that are not as the run
        left them.
    """
    check_seal(workdir, "run its train.py command again, which writes it anew")
    path = workdir / "config.json"
    if not path.is_file():
        what = "is not a run's folder: it has no config.json" if workdir.exists() else "is missing"
        raise UserError(f"{workdir} {what}", "--workdir", "give the --workdir train.py was given")
    config = read_object(path, _RESTORE)
    task = config.get("task")
    if not isinstance(task, dict) or not (task.get("name") or task.get("source")):
        raise UserError(
            "this run has no labelled task",
            f"{path}, key task",
            "give the --workdir of a task run, such as one of configs/tinybert_task.py",
        )
    if not (workdir / "summary.json").is_file():
        raise UserError(
            "this run is not finished",
            f"{workdir}/summary.json is missing",
            "run its train.py command again, which continues it",
        )
    try:
        described = describe_task(**task)
    except (AttributeError, TypeError, ValueError) as error:  # a value of another kind
        fix = "evaluate it with the version that trained it"
        raise UserError(f"not understood: {error}", f"{path}", fix) from error
    return FinishedRun(workdir, config, read_object(workdir / "summary.json", _RESTORE), described)
