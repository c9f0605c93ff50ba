"""Two stages of a small run, what they leave, and processes that are struck while they work."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import commands
import masked_lm

PATIENCE = 300.0  # seconds until a process counts as hung
GENERAL = {
    "general.steps": 12,
    "general.checkpoint_every": 2,
    "general.batch_size": 32,
    "general.dropout": 0.1,
}
# Dropout in every phase that can have it; the intermediate layers learn from augmented rows.
TASK = {
    "finetune.steps": 6,
    "finetune.dropout": 0.1,
    "finetune.eval_every": 3,
    "finetune.checkpoint_every": 2,
    "intermediate.steps": 6,
    "intermediate.dropout": 0.1,
    "intermediate.data": "augmentation",
    "intermediate.eval_every": 0,
    "intermediate.select": "last",
    "intermediate.checkpoint_every": 2,
    "prediction.steps": 6,
    "prediction.dropout": 0.1,
    "prediction.eval_every": 3,
    "prediction.checkpoint_every": 2,
    "prediction.teacher_cache": "layers",  # too few steps for it to be kept by itself
    "baseline.steps": 6,
    "baseline.dropout": 0.1,
    "baseline.eval_every": 3,
    "baseline.checkpoint_every": 2,
    "augmentation.copies": 2,
    "augmentation.candidates": 5,
    "task.name": "mine",
    "task.columns": "text",
    "task.labels": "bad,good",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of train.py, which the same workdir is given again and again.

    Attributes:
      config: the recipe.
      workdir: the run's folder.
      flags: the rest.
      cache: of compiled programs and tokenised text.
      devices: that it sees.
      limits: on what its process may have: words of bash that set them, ``ulimit -d 4000000``.
    """

    config: str
    workdir: Path
    flags: tuple[str, ...]
    cache: Path
    devices: int = 1
    limits: str = ""

    def run(self, *more: str, code: int = 0) -> subprocess.CompletedProcess:
        """Runs it to its end and checks its exit code."""
        options = {"code": code, "cache": self.cache, "devices": self.devices}
        return commands.train(self.config, self.workdir, *self.flags, *more, **options)

    def start(self, *more: str) -> contextlib.AbstractContextManager[Struck]:
        """Starts it; at the end of the context it is gone, however it fared."""
        words = commands.command("train.py", self.config, self.workdir, *self.flags, *more)
        if self.limits:
            words = ["bash", "-c", f'{self.limits} && exec "$@"', "bash", *words]
        return started(words, self.cache, self.devices)

    def on(self, cache: Path) -> Command:
        """The same with a cache of its own."""
        return dataclasses.replace(self, cache=cache)

    def limited(self, limits: str) -> Command:
        """The same with less than it needs."""
        return dataclasses.replace(self, limits=limits)

    @property
    def hash(self) -> str:
        """The parameter hash of its summary."""
        return commands.read(self.workdir / "summary.json")["parameter_hash"]


@dataclasses.dataclass
class Struck:
    """A process at work.

    Attributes:
      process: it.
      out: the file that has its stdout.
      err: the file that has its stderr.
    """

    process: subprocess.Popen
    out: Path
    err: Path

    @property
    def said(self) -> str:
        """What it has said so far, stderr behind stdout."""
        return self.out.read_text(encoding="utf-8") + self.err.read_text(encoding="utf-8")

    def wait_for(self, reached: Callable[[], bool]) -> bool:
        """Waits until something is so, or the process has ended; whether it still works."""
        until = time.monotonic() + PATIENCE
        while not reached():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, self.said
            time.sleep(0.001)
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Sends a signal."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> bool:
        """Kills it with SIGKILL; False if it had ended before."""
        os.kill(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def end(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """Its exit code and what it said, once it has ended by itself.

        Raises:
          subprocess.TimeoutExpired: it does not end.
        """
        return self.process.wait(seconds), self.said


@contextlib.contextmanager
def started(words: Sequence[str], cache: Path, devices: int = 1) -> Iterator[Struck]:
    """Starts a command; at the end of the context it is gone, and its children with it."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        process = subprocess.Popen(
            words,
            cwd=commands.ROOT,
            env=commands.environment(devices, cache),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            yield Struck(process, Path(out.name), Path(err.name))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclasses.dataclass(frozen=True)
class Given:
    """What all runs start from.

    Attributes:
      folder: of these things.
      cache: that all commands share.
    """

    folder: Path
    cache: Path

    @classmethod
    def make(cls, folder: Path, cache: Path) -> Given:
        """Writes a teacher, a masked language model and labelled rows."""
        commands.write_small_teacher(folder / "teacher")
        masked_lm.write(folder / "mlm" / "model")
        rows = [
            f"a {('dull', 'moving')[i % 2]} film of people, number {i}\t{i % 2}" for i in range(240)
        ]
        (folder / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
        return cls(folder, cache)

    def general(self, workdir: Path, devices: int = 1, **more: object) -> Command:
        """The first stage; a double underscore stands for a dot."""
        said = {"teacher": self.folder / "teacher"} | GENERAL
        return self._command(f"{commands.GENERAL}:smoke", workdir, devices, said, more)

    def task(
        self,
        workdir: Path,
        general: Path,
        devices: int = 1,
        baseline: bool = True,
        **more: object,
    ) -> Command:
        """The second stage, with or without its last phase."""
        said = {
            "teacher": self.folder / "teacher",
            "init_from": general,
            "task.source": f"tsv:{self.folder / 'rows.tsv'}",
            "augmentation.model": self.folder / "mlm" / "model",
        } | TASK
        if not baseline:
            said = {key: value for key, value in said.items() if not key.startswith("baseline.")}
            said["phases"] = "finetune,intermediate,prediction"
        if more.get("intermediate__data") == "task":  # nobody reads copies
            said = {key: x for key, x in said.items() if not key.startswith("augmentation.")}
        return self._command(f"{commands.TASK}:smoke", workdir, devices, said, more)

    def finetuning(self, workdir: Path, folder: Path | str = "", **more: object) -> Command:
        """The first phase of the second stage, with teacher and rows in a folder."""
        folder = folder or self.folder
        said = {"phases": "finetune", "teacher": f"{folder}/teacher"}
        said["task.source"] = f"tsv:{folder}/rows.tsv"
        said |= {k: v for k, v in TASK.items() if k.startswith(("finetune.", "task."))}
        return self._command(f"{commands.TASK}:smoke", workdir, 1, said, more)

    def _command(
        self, config: str, workdir: Path, devices: int, said: dict[str, object], more: dict
    ) -> Command:
        said = said | {key.replace("__", "."): value for key, value in more.items()}
        flags = (*commands.SMALL, *(f"--config.{key}={value}" for key, value in said.items()))
        return Command(config, workdir, flags, self.cache, devices)


# --- what two runs have in common ----------------------------------------------------------------

TIMES = {"seconds", "data_wait", "data_wait_fraction", "saving", "teacher_seconds"}
TIMES |= {"first_step_seconds", "flops_per_second", "mfu"}


def values_of(workdir: Path) -> dict[tuple[str, int, str], float]:
    """metrics.jsonl by (phase, step, key), each there once; without the times."""
    found: dict[tuple[str, int, str], float] = {}
    for line in commands.metrics(workdir):
        for key in set(line) - {"phase", "step"} - TIMES:
            place = (line["phase"], line["step"], key)
            assert place not in found, f"{place} is there twice"
            found[place] = line[key]
    return found


def assert_same_run(broken: Path, whole: Path) -> None:
    """Asserts that two runs left the same bits, but for times."""
    mine, theirs = commands.read(broken / "summary.json"), commands.read(whole / "summary.json")
    assert mine["parameter_hash"] == theirs["parameter_hash"]
    for name, phase in theirs["phases"].items():
        for key in set(phase) - {"compilations"} - TIMES:
            assert mine["phases"][name][key] == phase[key], (name, key)
    assert values_of(broken) == values_of(whole)


def same_run(broken: Path, whole: Path) -> bool:
    """Whether two runs left the same bits, but for times."""
    try:
        assert_same_run(broken, whole)
    except AssertionError as error:
        print(error)
        return False
    return True
