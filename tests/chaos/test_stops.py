"""Commands that are told to stop: 75, nothing lost, and the same bits in the end."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from stages import Given, assert_same_run, same_run, started
from test_kills import MOMENTS, RANDOM, after, one_more, step_reached

pytestmark = pytest.mark.chaos
SECONDS = 30.0  # in which what is told to stop has stopped
AGAIN = "run the same command again"
LEAST = 3  # commands that are told to stop before they have ended


def newest(workdir: Path) -> int:
    """The step of the newest checkpoint of the first stage; -1 without any."""
    saved = workdir.glob("checkpoints/general/*")
    return max((int(path.name) for path in saved if path.name.isdigit()), default=-1)


@pytest.mark.parametrize("seed", range(2))
def test_both_stages_told_to_stop_again_and_again_end_with_the_same_bits(
    given: Given, whole_general, whole_task, tmp_path, tally, seed
):
    rng = random.Random(100 + seed)
    general = given.general(tmp_path / "general")
    task = given.task(tmp_path / "task", general.workdir)
    told_in_all = 0
    for run, whole in ((general, whole_general), (task, whole_task)):
        moments = [RANDOM] * 4 + ["inside a save", "behind a save", "while a model is written"]
        rng.shuffle(moments)
        struck_by = []
        for moment in moments:
            number = rng.choice((signal.SIGTERM, signal.SIGINT))
            with run.start() as struck:
                # Later than for kills: before jaxbert is imported, a signal is Python's own.
                wait = after(rng.uniform(5, 12))
                reached = MOMENTS[moment](run.workdir) if moment in MOMENTS else wait
                if not struck.wait_for(reached):
                    break
                struck.signal(number)
                code, said = struck.end(SECONDS)
            if code == 0:  # it was at its end
                break
            fault = f"{number.name} {moment}"
            told = code == 75 and AGAIN in said
            struck_by.append((fault, told or said))
        run.run()
        equal = same_run(run.workdir, whole)
        for fault, told in struck_by:
            tally(fault).count(told is True and equal, silent=not equal)
        assert all(told is True for _, told in struck_by), struck_by
        assert_same_run(run.workdir, whole)
        told_in_all += len(struck_by)
    assert told_in_all >= LEAST, "too few were told to stop for this to say anything"


@pytest.mark.quick
def test_what_was_trained_is_saved_within_the_step(given: Given, tmp_path, tally):
    """A run that would save at its end alone."""
    steps = {"general__steps": 3000, "general__checkpoint_every": 0}
    run, counted = given.general(tmp_path / "run", **steps), tally("stop far from any save")
    with run.start() as struck:
        assert struck.wait_for(step_reached(run.workdir, "general", 30))
        struck.signal(signal.SIGTERM)
        code, said = struck.end(SECONDS)
    assert code == 75 and AGAIN in said, said
    counted.count(newest(run.workdir) >= 30)
    counted.check()


def test_a_stop_of_the_whole_group_of_processes_saves(given: Given, tmp_path, tally):
    """As whoever ends a job does it: the processes that make batches hear of it, too."""
    steps = {"general__steps": 3000, "general__checkpoint_every": 0, "data_workers": 1}
    run, counted = given.general(tmp_path / "run", **steps), tally("stop of the whole group")
    with run.start() as struck:
        assert struck.wait_for(step_reached(run.workdir, "general", 10))
        os.killpg(struck.process.pid, signal.SIGTERM)
        code, said = struck.end(SECONDS)
    assert code == 75 and AGAIN in said, said
    counted.count(newest(run.workdir) >= 10)
    counted.check()


def test_signals_at_once_are_one_stop(given: Given, tmp_path, tally):
    """As of a machine that shuts down; one that comes later ends at once (test_stopping.py)."""
    run = given.general(tmp_path / "run", general__steps=3000, general__checkpoint_every=0)
    counted = tally("two signals at once")
    with run.start() as struck:
        assert struck.wait_for(step_reached(run.workdir, "general", 5))
        struck.signal(signal.SIGTERM)
        struck.signal(signal.SIGTERM)
        code, said = struck.end(SECONDS)
    counted.count(code == 75 and newest(run.workdir) >= 5)
    assert AGAIN in said, said
    counted.check()


def test_a_script_that_distils_saves_and_leaves_with_75(given: Given, tmp_path, tally):
    """By Ctrl-C as any script of Python does, once it has saved."""
    more = {"dtype": "float32", "max_length": 48, "num_documents": 40}
    more |= {"general.steps": 3000, "general.checkpoint_every": 0}
    code = f"""
import jaxbert
jaxbert.distill(
    {str(given.folder / "teacher")!r}, workdir={str(tmp_path)!r}, argument="smoke", overrides={more}
)
"""
    counted, step = tally("SIGTERM and SIGINT to a script that calls jaxbert.distill"), 0
    for number, ended in ((signal.SIGTERM, 75), (signal.SIGINT, -signal.SIGINT)):
        with started([sys.executable, "-c", code], given.cache) as struck:
            step += 20
            assert struck.wait_for(step_reached(tmp_path / "general", "general", step)), struck.said
            struck.signal(number)
            left_with, said = struck.end(SECONDS)
        assert left_with == ended, said
        assert ("Traceback" if number == signal.SIGINT else AGAIN) in said, said
        saved = newest(tmp_path / "general")
        counted.count(saved >= step)
        step = saved
    counted.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_text_that_is_prepared_is_the_same_after_a_stop(given: Given, tmp_path, tally, number):
    text = tmp_path / "text.txt"
    lines = (
        f"A film of {i} people, number {i * 7919 % 10007}, and a long line.\n\n"
        for i in range(400_000)
    )
    text.write_text("".join(lines))
    counted, rng = tally(f"{number.name} while text is prepared"), random.Random(number)

    def words(out: str) -> list[str]:
        flags = [f"--corpus=text:{text}", f"--tokenizer={given.folder / 'teacher'}"]
        flags += ["--shard-size=1", "--workers=1", f"--out={tmp_path / out}"]
        return [sys.executable, "-m", "jaxbert", "prepare", *flags]

    told = []
    for _ in range(3):
        with started(words("broken"), given.cache) as struck:
            if not struck.wait_for(one_more(tmp_path, "*broken*/**/*")):
                break
            time.sleep(rng.uniform(0, 1))
            struck.signal(number)
            code, said = struck.end(SECONDS)
        if code == 0:
            break
        told.append(code == 75 and AGAIN in said)
    for out in ("broken", "whole"):
        with started(words(out), given.cache) as struck:
            code, said = struck.end()
            assert code == 0, said

    def content(out: str) -> dict[str, bytes]:
        folder = tmp_path / out
        return {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }

    equal = content("broken") == content("whole")
    for each in told:
        counted.count(each and equal, silent=not equal)
    assert told, "none was told to stop before it had ended"
    counted.check()
