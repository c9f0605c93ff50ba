"""Other devices, bad numbers, two runs in one folder, dead workers: no wrong number, no hanging."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from stages import Given, assert_same_run, same_run, values_of
from test_kills import step_reached

from jaxbert.training.stored import Stored

pytestmark = pytest.mark.chaos
SECONDS = 30.0  # in which a process ends that cannot go on


def test_a_run_goes_on_with_other_numbers_of_devices(
    given: Given, whole_general, tmp_path, tally, within
):
    workdir, counted = tmp_path / "run", tally("resume on other device counts")
    for devices, step in ((1, 3), (2, 6), (4, 9)):
        run = given.general(workdir, devices)
        with run.start() as struck:
            assert struck.wait_for(step_reached(workdir, "general", step)) and struck.kill()
    given.general(workdir, 8).run()
    # More devices have more empty rows, and operations on them; all else is the same.
    mine, theirs = (
        {key: value for key, value in values_of(run).items() if key[2] not in ("tokens", "flops")}
        for run in (workdir, whole_general)
    )
    assert mine.keys() == theirs.keys()
    close = all(abs(mine[k] - x) <= 1e-5 * max(1, abs(x)) for k, x in theirs.items())
    counted.count(close, silent=not close, times=3)
    within(mine, theirs)


def test_a_learning_rate_beyond_all_numbers_stops_the_run_and_spoils_no_checkpoint(
    given: Given, tmp_path, tally
):
    run = given.general(tmp_path / "run", general__learning_rate=1e30)
    said = run.run(code=2).stderr
    lines = [line for line in said.splitlines() if line.startswith("jaxbert: error: ")]
    told = len(lines) == 1 and "not finite" in lines[0] and "step" in lines[0]
    told = told and any(term in lines[0] for term in ("loss", "hidden", "scores", "gradient"))
    folders = [path for path in run.workdir.glob("checkpoints/general/*") if path.name.isdigit()]
    checkpoints = [Stored(folder) for folder in folders]
    leaves = [each.read(name) for each in checkpoints for name in each.leaves]
    finite = all(np.isfinite(leaf).all() for leaf in leaves)
    counted = tally("numbers that are not finite")
    counted.count(told and finite, silent=not finite)
    assert told, said
    assert not (run.workdir / "models" / "student").exists()
    counted.check()


@pytest.mark.quick
def test_a_second_run_in_the_same_folder_is_refused(given: Given, whole_general, tmp_path, tally):
    run, counted = given.general(tmp_path / "run"), tally("second run in one workdir")
    with run.start() as struck:
        assert struck.wait_for((run.workdir / "config.json").exists)
        os.kill(struck.process.pid, signal.SIGSTOP)
        try:
            said = run.run(code=2).stderr
        finally:
            os.kill(struck.process.pid, signal.SIGCONT)
        code, _ = struck.end()
    counted.count(str(struck.process.pid) in said and code == 0, silent=code != 0)
    assert str(struck.process.pid) in said and len(said.splitlines()) == 1, said
    assert_same_run(run.workdir, whole_general)


def children(pid: int) -> list[int]:
    """The worker processes of data that a process has started."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            found += [child] * (b"spawn_main" in words)
    return found


@pytest.mark.quick
def test_a_dead_data_worker_ends_the_run_or_changes_nothing(
    given: Given, whole_general, tmp_path, tally
):
    run, counted = given.general(tmp_path / "run"), tally("dead data worker")
    workers = "--config.data_workers=2"
    with run.start(workers) as struck:
        assert struck.wait_for(lambda: len(children(struck.process.pid)) == 2)
        os.kill(children(struck.process.pid)[0], signal.SIGKILL)
        try:
            code, said = struck.end(SECONDS)
        except subprocess.TimeoutExpired:
            code, said = None, struck.said
    if code != 0:
        run.run(workers)
    counted.count(code in (0, 2) and same_run(run.workdir, whole_general))
    assert code in (0, 2), said[-2000:]
    assert code == 0 or "a process that makes batches has died" in said, said[-2000:]
    assert_same_run(run.workdir, whole_general)
