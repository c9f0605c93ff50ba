"""What a run says while it works: metrics.jsonl, TensorBoard, a tracker, and its progress."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxbert import processes
from jaxbert.errors import warn
from jaxbert.files import scratch, whole
from jaxbert.objects import put
from jaxbert.training.tracking import Tracker

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal
CURVES_EVERY = 30.0  # seconds after which TensorBoard sees what was written


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """As if torch were not installed: tensorboardX imports it where it is, which takes seconds and
    hundreds of megabytes, for what is not used here.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


class _Curves:
    """TensorBoard's file of a phase, written by who asks for it.

    tensorboardX's own ``SummaryWriter`` writes in a thread. One that has met a full disk is gone,
    and the next write but ten waits for it without end.

    Args:
      folder: is made, and gets the file.
      first: step from which on earlier files of the folder are hidden: what a killed process wrote
        beyond its last checkpoint.
    """

    def __init__(self, folder: Path, first: int) -> None:
        with _without_torch():
            from tensorboardX.proto import event_pb2, summary_pb2  # slow to import
            from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"  # read in this order
        self._file, self._flushed = RecordWriter(str(folder / name)), time.monotonic()
        self._add(file_version="brain.Event:2")
        begins = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=first, session_log=begins)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds a point to the curve of each value that there is."""
        points = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        self._add(step=step, summary=self._summary(value=points))
        if time.monotonic() - self._flushed > CURVES_EVERY:
            self.flush()

    def _add(self, **event: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **event).SerializeToString())

    def flush(self) -> None:
        """Brings what was written to the disk."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """The same, and closes the file."""
        self._file.close()


class Journal:
    """metrics.jsonl and tensorboard/ of a workdir, which process 0 alone writes.

    Nothing can be appended to an object: of a workdir in an object store both are written on this
    machine, and ``keep`` brings them there.

    Args:
      workdir: the run's folder.
      tracker: is told the same.
    """

    def __init__(self, workdir: Path, tracker: Tracker | None = None) -> None:
        self._tracker = tracker
        self._workdir, self._here = workdir, scratch(workdir)
        self._path = self._here / "metrics.jsonl"
        self._folder = self._here / "tensorboard"
        self._curves: dict[str, _Curves] = {}
        self._starts: dict[str, int] = {}
        self._restored = self._here is workdir
        # Of each file the bytes that are there, or are nothing of this run's.
        self._kept = {} if self._restored else dict(self._files())

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
        if not processes.first():
            return False
        if not self._restored:
            self._restore()
        if not self._path.exists():
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
        self._kept.pop(self._path, None)
        return found

    def write(self, phase: str, step: int, values: Mapping[str, float | None]) -> None:
        """Adds one object: phase, step and the values."""
        if not processes.first():
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": phase, "step": step, **values}) + "\n")
        if phase not in self._curves:
            self._curves[phase] = _Curves(self._folder / phase, self._starts.get(phase, 0) + 1)
        self._curves[phase].write(step, values)
        if self._tracker is not None:
            self._tracker.write(phase, step, values)

    def keep(self) -> None:
        """Brings what was written to the workdir, where that is not where it was written.

        Called before a checkpoint is saved: what a checkpoint goes on from is there with it.
        """
        if self._here is self._workdir or not processes.first() or not self._restored:
            return
        for curves in self._curves.values():
            curves.flush()
        for path, size in self._files():
            if self._kept.get(path) != size:
                put(self._workdir / path.relative_to(self._here).as_posix(), path.read_bytes())
                self._kept[path] = size

    def _restore(self) -> None:
        """Takes metrics.jsonl as it is in the workdir: what this machine has may be older."""
        there = self._workdir / self._path.name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        if there.exists():
            self._path.write_bytes(there.read_bytes())
        self._kept[self._path] = -1
        self._restored = True

    def _files(self) -> Iterator[tuple[Path, int]]:
        """The files of this machine, and their bytes."""
        for path in (self._path, *sorted(self._folder.glob("*/*"))):
            if path.is_file():
                yield path, path.stat().st_size

    def close(self) -> None:
        """Writes out what TensorBoard still holds."""
        for curves in self._curves.values():
            curves.close()
        self._curves.clear()
        self.keep()
        if self._tracker is not None:
            self._tracker.close()


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
