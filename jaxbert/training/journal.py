"""What a run says while it works: metrics.jsonl, TensorBoard and the progress on the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxbert import processes
from jaxbert.errors import warn
from jaxbert.files import whole

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


class Journal:
    """metrics.jsonl and tensorboard/ of a workdir, which process 0 alone writes.

    Args:
      workdir: the run's folder.
    """

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / "metrics.jsonl"
        self._folder = workdir / "tensorboard"
        self._writers: dict[str, Any] = {}
        self._starts: dict[str, int] = {}

    def rewind(self, phase: str, step: int, evaluated: bool = False) -> bool:
        """Forgets what was written of a phase after a step, and any half-written last line.

        Args:
          phase: the phase that continues.
          step: the step it continues from.
          evaluated: whether the step's evaluation is to be kept, too.

        Returns:
          Whether the step's evaluation is there.
        """
        self._starts[phase] = step
        if not processes.first() or not self._path.exists():
            return False
        kept, found, bad = [], False, list[int]()
        lines = self._path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode()
                entry = json.loads(text)
                mine, at = entry["phase"] == phase, int(entry["step"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                if number < len(lines):  # behind the last line break lies nothing, or half a line
                    bad.append(number)
                continue
            if mine and (at > step or (at == step and "dev" in entry and not evaluated)):
                continue
            found |= mine and at == step and "dev" in entry
            kept.append(text + "\n")
        if bad:
            many = f" and {len(bad) - 1} more" * (len(bad) > 1)
            warn(
                f"{self._path}:{bad[0]} is not as it was written{many}, and is left out from here "
                "on; training does not read it"
            )
        with whole(self._path) as file:
            file.writelines(kept)
        return found

    def write(self, phase: str, step: int, values: Mapping[str, float | None]) -> None:
        """Adds one object: phase, step and the values."""
        if not processes.first():
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, "step": step, **values}) + "\n")
        if phase not in self._writers:
            from tensorboardX import SummaryWriter  # slow to import

            first = self._starts.get(phase, 0) + 1  # what a killed process wrote beyond is hidden
            self._writers[phase] = SummaryWriter(str(self._folder / phase), purge_step=first)
        for name, value in values.items():
            if value is not None:
                self._writers[phase].add_scalar(name, value, step)

    def close(self) -> None:
        """Writes out what TensorBoard still holds."""
        for writer in self._writers.values():
            writer.close()


class PhaseProgress:
    """A progress bar on a terminal, plain lines elsewhere; a context manager.

    Args:
      name: the phase.
      start: steps made before.
      steps: steps in all.
    """

    def __init__(self, name: str, start: int, steps: int) -> None:
        self._name, self._step, self._steps = name, start, steps
        self._began, self._start = time.monotonic(), start
        self._said = 0.0
        console = Console()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(name, total=steps, completed=start, text="compiling")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        self._step = step
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(
        self,
        step: int,
        values: Mapping[str, float],
        tokens_per_second: float,
        flops_per_second: float,
        mfu: float | None = None,
    ) -> None:
        """Says how it goes: loss, its terms, speed, time left.

        Args:
          step: that has been made.
          values: the means of loss and terms.
          tokens_per_second: real ones.
          flops_per_second: of all devices.
          mfu: model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B), the share of the
            devices' peak; None if that is not known.
        """
        terms = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = f"{terms} · {tokens_per_second:,.0f} real tokens/s"
        text += f" · {flops_per_second / 1e12:.3g} TFLOP/s"
        if mfu is not None:
            text += f" · MFU {mfu:.1%}"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._said < PLAIN_EVERY and step < self._steps:
            return
        self._said = now
        rate = (now - self._began) / max(step - self._start, 1)
        left = rate * (self._steps - step)
        print(f"{self._name} {step}/{self._steps} · {text} · {left / 60:.1f} min left", flush=True)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)
