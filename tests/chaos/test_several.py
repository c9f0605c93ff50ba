"""Several processes that train one run: what one does, stopped and gone on with together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from stages import Command, Given, Struck, assert_same_run, same_run, values_of
from test_kills import step_reached

SECONDS = 30.0  # in which all have ended when one has
GONE = (
    "another process of this run is not there any more: run the same command again, in all of them"
)
LONG = {"general__steps": 400, "general__checkpoint_every": 0}


@contextlib.contextmanager
def several(run: Command, *more: str, count: int = 2) -> Iterator[list[Struck]]:
    """Starts the processes of a group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=localhost:{port}", f"--processes={count}", *more]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(run.start(*flags, f"--process={i}")) for i in range(count)]


def run_in_two(run: Command) -> list[str]:
    """Runs a command in two processes to its end; what each has said."""
    with several(run) as group:
        ends = [struck.end() for struck in group]
    assert [code for code, _ in ends] == [0, 0], ends
    return [said for _, said in ends]


def worker(struck: Struck) -> int:
    """The process that trains, a child of the one that was started."""
    pid = struck.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def newest(run: Command) -> int:
    """The step of the newest checkpoint."""
    return max(int(p.name) for p in run.workdir.glob("checkpoints/*/*") if p.name.isdigit())


def assert_same_losses(broken: Path, whole: Path, within) -> None:
    """Asserts that two runs have the same lines in metrics.jsonl, to 1e-5."""
    mine, theirs = (
        # Rows that are left empty, for a second device, are positions seen.
        {
            "|".join(map(str, key)): v
            for key, v in values_of(run).items()
            if key[2] not in ("tokens", "flops")
        }
        for run in (broken, whole)
    )
    within(mine, theirs)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({}, id="data", marks=pytest.mark.chaos),
        # What each holds a part of is gathered from both, and a checkpoint has parts of both.
        pytest.param({"mesh__fsdp": 8}, id="fsdp", marks=pytest.mark.chaos),
        # Both hold every row, and a part of each width.
        pytest.param({"mesh__model": 8}, id="model", marks=pytest.mark.chaos),
        pytest.param({"mesh__fsdp": 2, "mesh__model": 2}, id="all", marks=pytest.mark.slow),
    ],
)
def test_two_processes_of_four_devices_train_what_one_device_does(
    given: Given, whole_general, tmp_path, within, mesh
):
    run = given.general(tmp_path / "run", devices=4, **mesh)
    first, second = run_in_two(run)
    assert "general: 12 steps" in first and "general" not in second
    assert_same_losses(run.workdir, whole_general, within)
    summary = commands.read(run.workdir / "summary.json")
    assert summary["devices"]["count"] == 8
    assert not list(run.workdir.rglob(".*"))  # no lock, nothing half written


@pytest.mark.chaos
def test_two_processes_train_a_task_as_one_does(given, whole_general, whole_task, tmp_path, within):
    """Evaluations, copies and a teacher that is asked before: made once, read by both."""
    run = given.task(tmp_path / "task", whole_general)
    run_in_two(run)
    assert_same_losses(run.workdir, whole_task, within)


@pytest.fixture(scope="module")
def whole_in_two(given: Given, tmp_path_factory) -> Path:
    """An unbroken run of two processes."""
    run = given.general(tmp_path_factory.mktemp("whole") / "two", general__steps=40)
    run_in_two(run)
    return run.workdir


@pytest.mark.chaos
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("fault", ["SIGTERM", "SIGINT", "SIGKILL", "shutdown"])
def test_what_befalls_one_ends_all_and_they_go_on_to_the_same_bits(
    given: Given, whole_in_two, tmp_path, tally, fault, index
):
    run = given.general(tmp_path / "run", general__steps=40)
    counted = tally(f"{fault} to one process of two")
    with several(run) as group:
        assert group[0].wait_for(step_reached(run.workdir, "general", 5))
        if fault == "SIGKILL":
            os.kill(worker(group[index]), signal.SIGKILL)
        elif fault == "shutdown":  # every process of one machine is told, as systemd does it
            child = worker(group[index])
            group[index].signal(signal.SIGTERM)
            os.kill(child, signal.SIGTERM)
        else:
            group[index].signal(signal.Signals[fault])
        ends = [struck.end(SECONDS) for struck in group]
    if fault == "SIGKILL":
        assert ends[index][0] == 128 + signal.SIGKILL
        code, said = ends[1 - index]
        # Gloo itself prints to stdout, which comes when it likes.
        assert code == 75 and GONE in said.splitlines(), said
    else:
        for code, said in ends:
            assert code == 75 and "interrupted and saved" in said, said
        assert newest(run) >= 5
    assert not any("Traceback" in said for _, said in ends), ends
    run_in_two(run)
    equal = same_run(run.workdir, whole_in_two)
    counted.count(equal, silent=not equal)
    assert_same_run(run.workdir, whole_in_two)


@pytest.mark.chaos
def test_a_run_goes_on_in_one_in_two_and_in_one_process(
    given: Given, whole_in_two, tmp_path, tally, within
):
    run = given.general(tmp_path / "run", general__steps=40)
    with run.start() as struck:
        assert struck.wait_for(step_reached(run.workdir, "general", 3))
        struck.signal(signal.SIGTERM)
        assert struck.end(SECONDS)[0] == 75
    first = newest(run)
    left = "--config.dtype="  # to what the run began with
    with several(run, left) as group:
        assert group[0].wait_for(step_reached(run.workdir, "general", first + 3))
        group[1].signal(signal.SIGTERM)
        assert [struck.end(SECONDS)[0] for struck in group] == [75, 75]
    assert 3 <= first < newest(run) < 40
    run.run(left)
    assert_same_losses(run.workdir, whole_in_two, within)
    tally("1, then 2 processes, then 1: losses within 1e-5").count(True)


@pytest.mark.chaos
def test_a_parent_that_is_killed_takes_its_process_with_it(given: Given, tmp_path, tally):
    run = given.general(tmp_path / "run", **LONG)
    with several(run) as group:
        assert group[0].wait_for(step_reached(run.workdir, "general", 5))
        child = worker(group[1])
        assert group[1].kill()
        code, said = group[0].end(SECONDS)
        assert code == 75 and "run the same command again" in said, said
        until = time.monotonic() + SECONDS
        while Path(f"/proc/{child}").exists() and time.monotonic() < until:
            time.sleep(0.1)
        tally("SIGKILL to a parent").count(not Path(f"/proc/{child}").exists())
    assert newest(run) >= 5
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.chaos
def test_a_process_that_does_not_come_is_said(given: Given, tmp_path, tally):
    run = given.general(tmp_path / "run")
    with several(run) as group:
        group[1].kill()
        code, said = group[0].end(120)
    assert code in (2, 75) and "Traceback" not in said, said
    assert not (run.workdir / "config.json").exists()
    tally("a process of two that does not come").count(True)


@pytest.mark.chaos
def test_a_group_has_a_workdir_for_itself(given: Given, tmp_path, tally):
    run = given.general(tmp_path / "run", **LONG)
    with run.start() as struck:
        assert struck.wait_for(step_reached(run.workdir, "general", 2))
        with several(run) as group:
            (first, said), (second, _) = [struck.end() for struck in group]
        assert (first, second) == (2, 75) and "trains there" in said, said
        struck.signal(signal.SIGTERM)
        assert struck.end(SECONDS)[0] == 75
    tally("a second run in the folder").count(True)
