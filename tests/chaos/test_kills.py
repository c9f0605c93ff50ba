"""Runs that are killed, with SIGKILL, and gone on with: they end with the same bits."""

from __future__ import annotations

import collections
import contextlib
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stages import Command, Given, assert_same_run, same_run

Reached = Callable[[], bool]


def after(seconds: float) -> Reached:
    """At some moment from now."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def step_reached(workdir: Path, phase: str, step: int) -> Reached:
    """Once metrics.jsonl has a line of a step of a phase."""
    path, start = workdir / "metrics.jsonl", f'{{"phase": "{phase}", "step": {step},'
    return lambda: path.exists() and start in path.read_text(encoding="utf-8")


def one_more(folder: Path, pattern: str) -> Reached:
    """Once a pattern matches a path that it does not match now."""
    before = set(folder.glob(pattern))
    return lambda: bool(set(folder.glob(pattern)) - before)


def to_be_evaluated(workdir: Path) -> Reached:
    """Once a step is saved that is to be evaluated, and is not yet."""

    def reached() -> bool:
        for record in workdir.glob("checkpoints/*/[0-9]*/record/metadata"):
            with contextlib.suppress(FileNotFoundError):  # a step that is given up
                due = '"due": true' in record.read_text(encoding="utf-8")
                if due and not record.with_name("judgement").exists():
                    return True
        return False

    return reached


# Moments of a run, by what can be seen of them in its folder.
MOMENTS: dict[str, Callable[[Path], Reached]] = {
    "inside a save": lambda workdir: one_more(workdir, "checkpoints/*/*.orbax-checkpoint-tmp*"),
    "behind a save": lambda workdir: one_more(workdir, "checkpoints/*/[0-9]*"),
    "before an evaluation": to_be_evaluated,
    "while a model is written": lambda workdir: one_more(workdir, "models/.*.partial"),
    "between phases": lambda workdir: one_more(workdir, "models/*/phase.json"),
    "in the stage hand-over": lambda workdir: one_more(workdir, "config.json"),
    "while copies or answers are kept": lambda workdir: one_more(workdir, "cache/.*"),
}
RANDOM = "at a random moment"
EVERY = 2  # steps between saves
LEAST = 7  # processes of both stages that are killed, at least; the others end before


def saved(workdir: Path) -> dict[str, int]:
    """The newest checkpoint of each phase that has one."""
    names = [
        path.parts[-2:] for path in workdir.glob("checkpoints/*/[0-9]*") if path.name.isdigit()
    ]
    return {phase: max(int(s) for p, s in names if p == phase) for phase, _ in names}


def lost(said: str, before: dict[str, int]) -> list[str]:
    """Phases that were begun more than a save behind where they had been saved."""
    found = []
    for phase, step in before.items():
        begun = re.search(rf"^{phase}: continues at step (\d+)$", said, re.MULTILINE)
        kept = f"{phase}: finished before" in said or (begun and int(begun[1]) >= step - EVERY)
        found += [] if kept else [phase]
    return found


def kill(run: Command, moment: str, rng: random.Random) -> bool:
    """Starts a run and kills it at or a little behind a moment; False if it ended before that."""
    reached = MOMENTS[moment](run.workdir) if moment in MOMENTS else None
    with run.start() as struck:
        # Two seconds are what Python takes to import jax.
        if not struck.wait_for(reached or after(rng.uniform(2, 12))):
            code, said = struck.end()
            assert code == 0, said
            return False
        if reached:
            time.sleep(rng.choice((0, rng.uniform(0, 0.03))))
        return struck.kill()


@pytest.mark.quick
def test_the_second_stage_killed_in_and_between_its_phases_ends_with_the_same_bits(
    given: Given, whole_general, tmp_path, tally
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given.task(whole, whole_general, baseline=False, intermediate__data="task").run()
    run = given.task(broken, whole_general, baseline=False, intermediate__data="task")
    counted = tally("kill -9 in and between phases")
    for reached in (
        one_more(broken, "checkpoints/finetune/*.orbax-checkpoint-tmp*"),  # inside a save
        # Between two phases, while the teacher is asked what the last one is to learn.
        (broken / "cache" / ".taught_prediction.partial" / "logits.values.npy").exists,
        step_reached(broken, "prediction", 3),
    ):
        with run.start() as struck:
            assert struck.wait_for(reached) and struck.kill(), "it ended before it could be killed"
        assert not (broken / "summary.json").exists()
    said = run.run().stdout
    assert "finetune: finished before" in said and "intermediate: finished before" in said
    assert "what the teacher says" not in said  # that was kept
    counted.count(same_run(broken, whole), silent=not same_run(broken, whole), times=3)
    assert_same_run(broken, whole)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_both_stages_killed_again_and_again_end_with_the_same_bits(
    given: Given, whole_general, whole_task, tmp_path, tally, seed
):
    rng = random.Random(seed)
    general = given.general(tmp_path / "general")
    task = given.task(tmp_path / "task", general.workdir)
    refused = tally("second stage before the first is finished")
    struck: collections.Counter[str] = collections.Counter()
    killed = 0
    for run, whole in ((general, whole_general), (task, whole_task)):
        moments = [RANDOM] * 4 + list(MOMENTS)
        first = "in the stage hand-over"
        rng.shuffle(moments)
        for moment in sorted(moments, key=lambda name: name != first):
            struck[f"kill -9 {moment}"] += kill(run, moment, rng)
            unfinished = not (general.workdir / "models" / "student").exists()
            if moment == first and unfinished and general.workdir.exists():
                said = task.run(code=2).stderr
                refused.count("Traceback" not in said and not task.workdir.exists())
        if not (run.workdir / "summary.json").exists():
            # As if it had been killed in the middle of a line.
            with (run.workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write('{"phase": "general", "step": 13, "lo')
        before = saved(run.workdir)
        # The rest with batches from two processes: where they are made changes nothing.
        said = run.run(*(["--config.data_workers=2"] if seed == 0 else [])).stdout
        assert not lost(said, before), (said, before)
        left = [*run.workdir.rglob("*.orbax-checkpoint-tmp*"), *run.workdir.rglob(".*.partial")]
        equal = same_run(run.workdir, whole)
        for fault, times in struck.items():
            tally(fault).count(equal and not left, silent=not equal, times=times)
        killed += struck.total()
        struck.clear()
        assert not left
        assert_same_run(run.workdir, whole)
    refused.check()
    assert killed >= LEAST, "too few were killed for this to say anything"
