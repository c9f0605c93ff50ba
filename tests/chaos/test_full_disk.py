"""A file system without room: said in one line, nothing lost, gone on with once there is some."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stages import Given, assert_same_run, same_run
from test_kills import Reached, one_more, step_reached

pytestmark = pytest.mark.chaos
MEGABYTES = 32  # four checkpoints and two models take 20
LARGEST = 256  # KiB of a file: less than a checkpoint's
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own.

    Where only root may mount one, it is that of a process with a user's name space of its own, and
    is seen through that process.
    """
    place = tmp_path / "disk"
    place.mkdir()
    mount = f"mount -t tmpfs -o size={MEGABYTES}m tmpfs {shlex.quote(str(place))}"
    script = f"{mount} && echo mounted && exec sleep infinity"
    refused = []
    for alone in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            process = subprocess.Popen([*alone, "sh", "-c", script], text=True, **PIPES)
        except OSError as error:
            refused.append(str(error))
            continue
        with process:
            try:
                if process.stdout.readline() == "mounted\n":
                    yield Path(f"/proc/{process.pid}/root{place}")
                    return
                refused.append(process.stderr.read().strip())
            finally:
                process.kill()
    pytest.skip(f"no file system can be mounted here: {'; '.join(refused)}")


def fill(disk: Path, leave: int = 0) -> Path:
    """Takes all the room but some bytes."""
    ballast = disk / "ballast"
    with ballast.open("ab") as file:
        free = shutil.disk_usage(disk).free - leave
        with contextlib.suppress(OSError):  # the run may have taken some meanwhile
            os.posix_fallocate(file.fileno(), file.tell(), max(free, 1))
    return ballast


def test_a_disk_that_is_full_from_the_start_is_said_before_anything_compiles(
    given: Given, whole_general, disk, tally
):
    run, counted = given.general(disk / "run"), tally("full disk at the start")
    ballast = fill(disk, leave=1_000_000)
    done = run.run(code=2)
    lines = done.stderr.strip().splitlines()
    said = len(lines) == 1 and str(disk) in lines[0] and "make room" in lines[0]
    ballast.unlink()
    run.run()
    counted.count(said and same_run(run.workdir, whole_general))
    assert said, done.stderr
    assert_same_run(run.workdir, whole_general)


@pytest.mark.parametrize("moment", ["between saves", "inside a save", "as a model is written"])
def test_a_disk_that_fills_up_loses_nothing(given: Given, whole_general, disk, tally, moment):
    run = given.general(disk / "run")
    for _ in range(5):  # a write of milliseconds may be over before there is no room for it
        stepped = step_reached(run.workdir, "general", 3)
        saved = run.workdir / "checkpoints" / "general" / "2"  # beside the steps: maybe later
        reached: dict[str, Reached] = {
            "between saves": lambda stepped=stepped, saved=saved: stepped() and saved.is_dir(),
            "inside a save": one_more(run.workdir, "checkpoints/*/6.orbax-checkpoint-tmp*"),
            "as a model is written": one_more(run.workdir, "checkpoints/*/12"),
        }
        with run.start() as struck:
            assert struck.wait_for(reached[moment])
            while struck.process.poll() is None:  # what it gives back is taken, too
                ballast = fill(disk)
                time.sleep(0.001)
            code, _ = struck.end()
            said = struck.err.read_text(encoding="utf-8")
        ballast.unlink()
        if code:
            break
        shutil.rmtree(run.workdir)
    told = code == 2 and len(said.splitlines()) == 1 and "make room" in said
    told = told and said.startswith("jaxbert: error: ")
    again = run.run().stdout
    went_on = "continues at step" in again
    left = [*run.workdir.rglob("*.orbax-checkpoint-tmp*"), *run.workdir.rglob(".*.partial")]
    good = told and went_on and not left
    tally(f"full disk {moment}").count(good and same_run(run.workdir, whole_general))
    assert told, said
    assert went_on and not left, again
    assert_same_run(run.workdir, whole_general)


def test_a_file_that_may_not_grow_is_said_and_what_was_saved_stands(
    given: Given, whole_general, tmp_path, tally
):
    """Wherever it runs: writes fail by a limit of the process, as behind a quota."""
    run, counted = given.general(tmp_path / "run"), tally("a file that may not grow")
    with run.start() as struck:
        saved = run.workdir / "checkpoints" / "general" / "2"
        assert struck.wait_for(saved.is_dir) and struck.kill()
    with run.limited(f"ulimit -f {LARGEST}").start() as struck:
        code, _ = struck.end()
        said = struck.err.read_text(encoding="utf-8")
    told = code == 2 and len(said.splitlines()) == 1 and "make room" in said
    again = run.run().stdout
    good = told and "continues at step" in again and same_run(run.workdir, whole_general)
    counted.count(good)
    assert told, said
    assert "continues at step" in again
    assert_same_run(run.workdir, whole_general)
