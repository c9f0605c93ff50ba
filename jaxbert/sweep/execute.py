"""Runs the cells of a sweep, each as a user would: train.py, then eval.py."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jaxbert.errors import UserError
from jaxbert.stopping import was_stopped
from jaxbert.sweep.plan import Cell
from jaxbert.sweep.results import Record, ResultsFile, training_seconds
from jaxbert.workdir import count_cores, decisive, processor

_TAIL = 5  # lines of a failed run that are shown


class Sweeper:
    """Runs cells and writes down what came of them.

    Args:
      name: the sweep's.
      cells: all of the sweep's, in order.
      root: the folder of the runs.
      places: name -> place.
      results: what is finished, and where more is added.
      keep: leave checkpoints, and models that no other cell needs.
      jobs: cells that run at once, for a device that one of them does not fill.
    """

    def __init__(
        self,
        name: str,
        cells: Sequence[Cell],
        root: str,
        places: Mapping[str, str],
        results: ResultsFile,
        *,
        keep: bool = False,
        jobs: int = 1,
    ) -> None:
        self._name, self._root, self._places = name, root, places
        self._results, self._keep, self._jobs = results, keep, jobs
        self._processes = _Processes(jobs)
        self._writing = threading.Lock()
        self._cells = {(cell.name, cell.seed): cell for cell in cells}
        self._needed = {need for cell in cells for need in cell.needs}

    def todo(self, chosen: Sequence[Cell]) -> list[Cell]:
        """The chosen cells without a result, and before them what they need and is not there.

        Raises:
          UserError: they read places that are not given.
        """
        wanted = {cell for cell in chosen if self._results.find(cell) is None}
        for cell in reversed(self._cells.values()):  # a cell needs earlier ones alone
            if cell in wanted:
                wanted |= {need for need in self._needs(cell) if not self._is_there(need)}
        places = {name: None for cell in wanted for name in cell.places}
        lacking = [name for name in places if name not in self._places]
        if lacking:
            fix = "give " + " ".join(f"--set={name}=PLACE" for name in sorted(lacking))
            raise UserError(f"the sweep reads {', '.join(sorted(lacking))}", "flag --set", fix)
        return [cell for cell in self._cells.values() if cell in wanted]

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Runs cells, each when what it needs is there; one that fails holds up what needs it.

        Returns:
          Those without a result.

        Raises:
          KeyboardInterrupt: the sweep, or one of its runs, was told to stop; all have been.
        """
        failed: list[Cell] = []
        waiting = dict(zip(cells, range(1, len(cells) + 1), strict=True))
        running: dict[concurrent.futures.Future[bool], Cell] = {}
        pool = concurrent.futures.ThreadPoolExecutor(self._jobs)
        try:
            while waiting or running:
                for cell, number in list(waiting.items()):
                    title = f"[{number}/{len(cells)}] {cell.name}, seed {cell.seed}"
                    needs = self._needs(cell)
                    broken = [need.name for need in needs if need in failed]
                    if broken:
                        print(f"{title}: left out, it needs {', '.join(broken)}", flush=True)
                        failed.append(cell)
                        del waiting[cell]
                    elif len(running) < self._jobs and not any(
                        need in waiting or need in running.values() for need in needs
                    ):
                        running[pool.submit(self._finish, cell, title)] = cell
                        del waiting[cell]
                done, _ = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    cell = running.pop(future)
                    if not future.result():
                        failed.append(cell)
        except BaseException:
            self._processes.stop()
            raise
        finally:
            pool.shutdown()
        return failed

    def _finish(self, cell: Cell, title: str) -> bool:
        """Runs a cell and writes down what came of it; whether it did."""
        print(f"{title}: {self._log(cell)}", flush=True)
        with self._open_log(cell) as file:
            _hold(file, self._processes, fcntl.LOCK_SH)  # whoever trains it comes to an end first
            if not self._is_done(cell):
                _hold(file, self._processes, fcntl.LOCK_EX)  # until the folder is tidy
            problem = self._train(cell, file)
            if problem:
                print(f"{title}: FAILED, {problem}", flush=True)
                return False
            record = make_record(self._name, cell, Path(cell.folder(self._root)))
            with self._writing:
                if self._results.find(cell) is None:
                    self._results.add(record)
            self._tidy(cell, file)
        print(f"{title}: {_told(cell, record)}", flush=True)
        return True

    def _needs(self, cell: Cell) -> list[Cell]:
        return [self._cells[name, cell.seed] for name in cell.needs]

    def _is_there(self, cell: Cell) -> bool:
        folder = Path(cell.folder(self._root))
        # A finished phase has a record; a run that was begun again has models before it has one.
        finished = any((folder / "models").glob("*/phase.json"))
        return (folder / "summary.json").is_file() and finished

    def _log(self, cell: Cell) -> Path:
        return Path(cell.folder(self._root) + ".log")

    def _open_log(self, cell: Cell) -> IO[str]:
        self._log(cell).parent.mkdir(parents=True, exist_ok=True)
        return self._log(cell).open("a", encoding="utf-8")

    def _is_done(self, cell: Cell) -> bool:
        record = "eval.json" if cell.has_task else "summary.json"
        done = (Path(cell.folder(self._root)) / record).is_file()
        return done and (cell.name not in self._needed or self._is_there(cell))

    def _train(self, cell: Cell, log: IO[str]) -> str:
        """Trains and evaluates a cell, if it is not there; returns what went wrong."""
        if self._is_done(cell):
            return self._outdated(cell)
        with contextlib.ExitStack() as stack:
            read = {need: stack.enter_context(self._open_log(need)) for need in self._needs(cell)}
            for need, file in read.items():
                _hold(file, self._processes, fcntl.LOCK_SH)  # so that no sweep removes its models
                if not self._is_there(need):
                    return f"the models of {need.name} were removed meanwhile: run it again"
                if problem := self._outdated(need):
                    return problem
            return self._call(cell, log, list(read.values()))

    def _outdated(self, cell: Cell) -> str:
        """Why a finished run is none of its cell, whose key leaves defaults out; empty if it is."""
        folder = Path(cell.folder(self._root))
        was = decisive(_read(folder / "summary.json").get("config", {}))
        for key, value in cell.defaults.items():
            if was.get(key, value) != value:
                return f"its run has {key}={was[key]}, no longer the default: remove {folder}"
        return ""

    def _call(self, cell: Cell, log: IO[str], read: Sequence[IO[str]]) -> str:
        """Runs the commands of a cell, which inherit logs; returns what went wrong."""
        folders = {need.name: need.folder(self._root) for need in self._needs(cell)}
        commands = [[*cell.command(self._root, {**self._places, **folders}), "--no-report"]]
        if cell.has_task:
            # Beside other cells a time would say nothing.
            flags = ["--no-latency", "--no-report", f"--workdir={cell.folder(self._root)}"]
            commands.append(["eval.py", *flags])
        for words in commands:
            print(f"$ python {shlex.join(words)}", file=log, flush=True)
            if code := self._processes.call(words, log, read):
                text = self._log(cell).read_text(encoding="utf-8", errors="replace")
                return "\n    ".join(
                    [f"{words[0]} ended with {code}:", *text.splitlines()[-_TAIL:]]
                )
        return ""

    def _tidy(self, cell: Cell, log: IO[str]) -> None:
        """Removes what is large and no longer read, be it by a run of another sweep."""
        if not self._keep:
            folder = Path(cell.folder(self._root))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            if cell.name not in self._needed:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder / "models", ignore_errors=True)


def _hold(log: IO[str], processes: _Processes, mode: int) -> None:
    """Waits until no other process holds a log against this one.

    A run inherits its log, and with it the hold: where it outlives a killed sweep, or another sweep
    has the same cell, the two are not trained in one folder at once. It inherits those of the cells
    that it reads, too.

    Args:
      log: of a cell.
      processes: of the sweep.
      mode: LOCK_EX for whoever trains the cell or removes its models, LOCK_SH for who reads them.
    """
    try:
        fcntl.flock(log, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waits for the run that holds {log.name}", flush=True)
        while True:
            processes.check()
            try:
                return fcntl.flock(log, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(1)


class _Processes:
    """The Python commands that are under way.

    Args:
      jobs: as many at once; they share a device's memory.
    """

    def __init__(self, jobs: int) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = threading.Lock(), False
        share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3f}"} if jobs > 1 else {}
        self._environment = {**share, **os.environ}

    def call(self, words: Sequence[str], log: IO[str], read: Sequence[IO[str]]) -> int:
        """Runs a command; its exit code.

        Args:
          words: behind ``python``.
          log: what it writes to.
          read: further files that it inherits.

        Raises:
          KeyboardInterrupt: it was told to stop.
        """
        with self._lock:
            self.check()
            process = subprocess.Popen(
                [sys.executable, *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[file.fileno() for file in read],
                start_new_session=True,  # Ctrl-C is the sweep's to pass on
            )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
            stopped = self._stopped
        if stopped or was_stopped(code):
            raise KeyboardInterrupt
        return code

    def check(self) -> None:
        """Raises KeyboardInterrupt if all were told to stop."""
        if self._stopped:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Tells all to stop and waits for them; each goes on from its newest checkpoint."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def make_record(sweep: str, cell: Cell, folder: Path) -> Record:
    """What is written of a finished cell.

    Args:
      sweep: the sweep's name.
      cell: the cell.
      folder: of its run.

    Returns:
      ``sweep``, ``cell``, ``seed``, ``key`` and ``overrides``; ``command``, with folders as they
      are by default and places in braces; ``metric`` and ``models``, as eval.json has them;
      ``phases``, of each its steps, seconds, real tokens and last losses; ``parameter_hash``,
      ``machine``, ``dtype``, which it may have chosen, ``versions``, ``git_revision`` and ``date``.
    """
    summary = _read(folder / "summary.json")
    found = _read(folder / "eval.json") if cell.has_task else {}
    kept = ("steps", "selected_step", "seconds", "real_tokens", "final")
    return {
        "sweep": sweep,
        "cell": cell.name,
        "seed": cell.seed,
        "key": cell.key,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "overrides": dict(cell.overrides),
        "command": shlex.join(["python", *cell.command("runs/sweeps", {})]),
        "metric": found.get("metric"),
        "models": found.get("models", {}),
        "phases": {
            name: {key: phase[key] for key in kept} for name, phase in summary["phases"].items()
        },
        "parameter_hash": summary["parameter_hash"],
        "machine": {"cpu": processor(), "cores": count_cores(), **summary["devices"]},
        "dtype": summary["config"]["dtype"],
        "versions": summary["versions"],
        "git_revision": summary["git_revision"],
    }


def _told(cell: Cell, record: Record) -> str:
    said = [f"{training_seconds(record) / 60:.1f} min of training"]
    metric = cell.metric or record["metric"]
    for model in cell.models:
        value = record["models"].get(model, {}).get(metric)
        said.append(f"no {model} {metric}" if value is None else f"{model} {metric} {value:.4f}")
    return ", ".join(said)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
