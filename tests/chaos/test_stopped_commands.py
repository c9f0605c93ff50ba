"""Commands beside training that are told to stop: 75, nothing half, nothing lost, whole again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stages import Given, Struck, started
from test_kills import RANDOM, Reached, after, one_more
from test_stops import AGAIN, SECONDS

from jaxbert.export import FORMATS

pytestmark = pytest.mark.chaos
CHILD = "its child is told first"
# Moments of a command, by what can be seen of them beside what it makes.
MOMENTS: dict[str, dict[str, Callable[[Path], Reached]]] = {
    "eval": {"while the page is made": lambda folder: one_more(folder, "made/eval.json")},
    "predict": {"while it writes": lambda folder: one_more(folder, "made/.*.partial")},
    "export": {
        "while ONNX is written": lambda folder: one_more(folder, ".made.export/onnx"),
        "while it is compared": lambda folder: one_more(folder, ".made.export/stablehlo/*"),
    },
    "prune": {"while it writes": lambda folder: one_more(folder, ".made.partial")},
    "bench": {"while it is timed": lambda folder: one_more(folder, "tmp/*/spec.json")},
    "doctor": {},
}
TIMED = ("--lengths=16,32", "--rounds=20", "--backends=jax,onnxruntime")
PARENTS = ("eval", "export", "bench")
HINTS = ("warning: ", "task mine: ")  # what doctor --json says on the way, too
LEAST = 2  # of each that are told to stop before they have ended


@dataclasses.dataclass(frozen=True)
class Job:
    """A command in a folder of its own, in whose ``made`` lies what it makes.

    Attributes:
      name: the command's.
      words: of it, for Python.
      folder: the folder; ``tmp`` in it is for what the command makes in passing.
      given: what all start from.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    given: Given

    def start(self, *more: str):
        """Starts it."""
        return started([sys.executable, *self.words, *more], self.given.cache)

    def run(self, *more: str) -> str:
        """Runs it to its end; its stdout."""
        with self.start(*more) as struck:
            code, said = struck.end()
            assert code == 0, said
            return struck.out.read_text(encoding="utf-8")

    def content(self) -> dict[str, bytes]:
        """What it has made, but for times."""
        made = self.folder / "made"
        paths = [p for p in made.rglob("*") if p.is_file() and "/." not in str(p)]
        if self.name == "eval":
            paths = [p for p in paths if p.name in ("eval.json", "report.html")]
        return {str(p.relative_to(made)): without_times(p) for p in paths}

    def left(self, *more: str) -> list[Path]:
        """What it makes in passing and is there, beside what it makes or by other patterns."""
        patterns = (".made*", "made/.*.partial", *more)
        return [path for pattern in patterns for path in self.folder.glob(pattern)]

    def at_work(self) -> list[int]:
        """The processes that are its own, or its children's."""
        mark, found = f"TMPDIR={self.folder / 'tmp'}\0".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # another's, or gone
                found += [int(path.name)] * (mark in (path / "environ").read_bytes())
        return found


def without_times(path: Path) -> bytes:
    """A file's bytes; of those of an evaluation what does not depend on the clock."""
    if path.name == "eval.json":
        text = re.sub(r'"milliseconds": [^,}\n]*', "", path.read_text(encoding="utf-8"))
        return json.dumps(json.loads(re.sub(r",(\s*[,}])", r"\1", text))).encode()
    if path.name == "report.html":
        return path.read_bytes()[-8:]  # that it is whole
    return path.read_bytes()


def make_job(name: str, folder: Path, given: Given, general: Path, task: Path) -> Job:
    """A command, and what it reads."""
    (folder / "tmp").mkdir(parents=True)
    made, teacher, rows = folder / "made", given.folder / "teacher", folder.parent / "rows.tsv"
    texts = (f"a {('dull', 'moving')[i % 2]} film of {i * 7919 % 10007}" for i in range(4000))
    rows.write_text("\n".join(["text", *texts]) + "\n", encoding="utf-8")
    if name == "eval":
        shutil.copytree(task, made)
    stage = given.task(folder / "run", general)
    words = {
        "eval": ["eval.py", f"--workdir={made}"],
        "predict": [f"--workdir={task}", f"--source=tsv:{rows}", f"--out={made / 'rows.jsonl'}"],
        "export": [str(task), f"--to={made}", f"--format={','.join(FORMATS)}", "--force"],
        "prune": [str(teacher), f"--corpus=text:{rows}", f"--out={made}"],
        "bench": [str(teacher), *TIMED, "--json"],
        "doctor": [f"--config={stage.config}", *stage.flags, "--json"],
    }[name]
    head = [] if name == "eval" else ["-m", "jaxbert", name]
    return Job(name, (*head, *words), folder, given)


def earlier(job: Job) -> dict[str, bytes]:
    """Makes what a stop must not touch, and gives it."""
    if job.name == "predict":
        (job.folder / "made").mkdir()
        (job.folder / "made" / "rows.jsonl").write_text("of an earlier time\n", encoding="utf-8")
    if job.name == "export":
        job.run("--format=huggingface")
    return job.content()


def heeds(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in paths for child in path.read_text().split()]


def tell(struck: Struck, moment: str, rng: random.Random) -> str:
    """Tells a process to stop, or all of its group, or its child alone; what that was."""
    number = rng.choice((signal.SIGTERM, signal.SIGINT))
    if moment == CHILD:
        os.kill(children(struck.process.pid)[0], number)
    elif rng.random() < 0.5:
        os.killpg(struck.process.pid, number)
    else:
        struck.signal(number)
    return f"{number.name} {moment}"


@pytest.mark.parametrize("name", MOMENTS)
def test_a_command_that_is_told_to_stop_leaves_what_was_there_and_makes_it_whole_again(
    given: Given, whole_general, whole_task, tmp_path, tally, monkeypatch, name
):
    rng = random.Random(name)
    whole, job = (
        make_job(name, tmp_path / folder, given, whole_general, whole_task)
        for folder in ("whole", "broken")
    )
    monkeypatch.setenv("TMPDIR", str(whole.folder / "tmp"))
    began = time.monotonic()
    said_whole = whole.run()
    lasts = time.monotonic() - began
    monkeypatch.setenv("TMPDIR", str(job.folder / "tmp"))
    before, after_all = earlier(job), whole.content()
    moments = [RANDOM] * 3 + list(MOMENTS[name]) + [CHILD] * (name in PARENTS)
    rng.shuffle(moments)
    told = []
    for moment in ["as soon as it heeds", *moments]:
        # It refuses to replace a folder, so that what is whole all the same is not made twice.
        if name == "prune" and job.content() == after_all:
            break
        with job.start() as struck:
            pid = struck.process.pid
            assert struck.wait_for(lambda pid=pid: heeds(pid))
            reached = {
                "as soon as it heeds": lambda: True,
                RANDOM: after(rng.uniform(0, lasts)),
                CHILD: lambda pid=pid: bool(children(pid)),
            } | {key: make(job.folder) for key, make in MOMENTS[name].items() if key == moment}
            if not struck.wait_for(reached[moment]):
                continue  # it was at its end
            fault = tell(struck, moment, rng)
            code, said = struck.end(SECONDS)
            err = struck.err.read_text(encoding="utf-8")
        if code == 0:
            continue
        lines = [line for line in err.splitlines() if not line.startswith(HINTS)]
        until = time.monotonic() + SECONDS
        while job.at_work() and time.monotonic() < until:
            time.sleep(0.1)
        good = code == 75 and len(lines) == 1 and AGAIN in lines[0] and not job.at_work()
        # What a compiler was at work on is left, hidden, until the command is run again.
        left = job.left("tmp/[!.]*")  # .ses is onnxruntime's
        good = good and (not left or "what was saved last stands" in err)
        found = job.content()
        kept = found in (before, after_all) or name == "eval"
        kept = kept and all(
            content in (before.get(key), after_all.get(key)) for key, content in found.items()
        )
        told.append((fault, good, kept, code, said, left, job.at_work()))
    said = "" if name == "prune" and job.content() == after_all else job.run()
    equal = job.content() == after_all and not job.left()
    if name == "doctor":
        assert json.loads(said)["findings"] == json.loads(said_whole)["findings"]
    if name == "bench":
        assert json.loads(said)["models"] == json.loads(said_whole)["models"]
    counted = tally(f"told to stop: {name}")
    for _, good, kept, *_ in told:
        counted.count(good and kept and equal, silent=not (kept and equal))
    assert all(good and kept for _, good, kept, *_ in told), "\n".join(map(str, told))
    assert equal and len(told) >= LEAST, told
