"""What a run says, said to Weights & Biases or trackio, too: whatever these do, the run goes on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxbert.errors import UserError, warn
from jaxbert.files import scratch, whole

_FILE = "tracking.json"  # of the workdir: the id of the run there
_PROJECT = "jaxbert"  # where WANDB_PROJECT, or TRACKIO_PROJECT, names none
# Seconds that a run stands still for a server out of reach, where WANDB_INIT_TIMEOUT and
# WANDB_FINISH_TIMEOUT name no others.
_LIMITS = {"init_timeout": 15.0, "finish_timeout": 60.0}


def check_tracking(tracking: str) -> list[UserError]:
    """What is wrong with a config's choice before a run begins."""
    spec = importlib.util.find_spec(tracking) if tracking else None
    # A mere folder of that name, such as wandb makes, is found too, and has no origin.
    if not tracking or (spec is not None and spec.origin is not None):
        return []
    fix = f"pip install {tracking}, which jaxbert[tracking] brings, or leave it out"
    return [UserError(f"{tracking} is not installed", "config key tracking", fix)]


class Tracker:
    """One run of a tracker, which a run that goes on continues.

    The first failure is said, and nothing is sent after it.

    Args:
      kind: ``wandb`` or ``trackio``, or empty for none.
      workdir: the run's folder, which keeps the id.
      config: as JSON has it; shown beside the curves.
    """

    def __init__(self, kind: str, workdir: Path, config: Mapping[str, Any]) -> None:
        self._kind, self._workdir, self._config = kind, workdir, config
        self._run: Any = None

    def write(self, phase: str, step: int, values: Mapping[str, float | None]) -> None:
        """Sends ``PHASE/NAME`` for each value, over ``PHASE/step``."""
        named = {f"{phase}/{name}": value for name, value in values.items() if value is not None}

        def send() -> None:
            if self._run is None:
                self._run = self._begin()
            self._run.log({**named, f"{phase}/step": step})

        self._try(send)

    def close(self) -> None:
        """Waits until all is sent; wandb is waited for within a limit."""
        if self._run is not None:
            self._try(self._run.finish)

    def _try(self, act: Callable[[], Any]) -> None:
        if not self._kind:
            return
        try:
            act()
        except Exception as error:  # of other people's code and of a network
            warn(f"{self._kind} is told nothing more: {type(error).__name__}: {error}")
            self._kind = ""

    def _begin(self) -> Any:
        key, name = self._id(), self._workdir.name
        project = os.environ.get(f"{self._kind.upper()}_PROJECT") or _PROJECT
        if self._kind == "trackio":
            import trackio

            # It knows a run by its name.
            return trackio.init(
                project, f"{name}-{key}", config=dict(self._config), resume="allow", embed=False
            )
        import wandb

        limits: dict[str, Any] = {
            key: seconds
            for key, seconds in _LIMITS.items()
            if not os.environ.get(f"WANDB_{key.upper()}")
        }
        here = scratch(self._workdir)
        here.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=project,
            id=key,
            name=name,
            dir=str(here),
            config=dict(self._config),
            resume="allow",
            settings=wandb.Settings(console="off", finish_timeout_raises=True, **limits),
        )
        # Each phase counts its steps from 1.
        for phase in self._config.get("phases", ()):
            run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        return run

    def _id(self) -> str:
        """The id of the run there: kept in the workdir, so that any machine continues it."""
        path = self._workdir / _FILE
        known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        if self._kind not in known:
            known[self._kind] = uuid.uuid4().hex[:12]
            with whole(path) as file:
                file.write(json.dumps(known) + "\n")
        return str(known[self._kind])
