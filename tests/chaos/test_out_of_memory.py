"""Too little memory: said in one line with what needs half of it, and gone on with that way."""

from __future__ import annotations

import os
import re

import pytest
from stages import Command, Given

pytestmark = pytest.mark.chaos
ROOM = 4.5  # GB


def ended(run: Command, room: float) -> tuple[int, str]:
    """The exit code of a run that may have so many GB of data, and what it said.

    On one core, since XLA evaluates as many batches at once as it has.
    """
    one = f"taskset --pid --cpu-list {min(os.sched_getaffinity(0))} $$ > /dev/null"
    with run.limited(f"ulimit -d {round(room * 1e9) >> 10} && {one}").start() as struck:
        return struck.end()


def advised(said: str, where: str, key: str) -> str:
    """The value of a key that the one line of an error gives; empty where there is none."""
    # XLA itself may say beside it that it compiled slowly, or which allocation failed.
    lines = [line for line in said.splitlines() if line.startswith("jaxbert: error: ")]
    told = rf"jaxbert: error: out of memory: .*, {where}; give --config\.{key}=(\d+)[, ].*"
    found = re.fullmatch(told, lines[0]) if len(lines) == 1 else None
    return found[1] if found and "Traceback" not in said else ""


def test_a_step_that_does_not_fit_names_the_accumulation_that_does(given: Given, tmp_path, tally):
    """It takes 3.9 GB beside 0.8; half of it 2.0 and, for a moment, what its products need."""
    sizes = {"general__batch_size": 2560, "general__steps": 2, "general__dropout": 0}
    counted = tally("out of memory in a step")
    run = given.general(tmp_path / "run", **sizes)
    code, said = ended(run, ROOM)
    where = "phase general, 2560 examples in 1 micro-batches"
    accumulation = advised(said, where, "general.accumulation")
    assert (code, accumulation) == (2, "2"), said
    # Nothing was saved, nothing is half written, and nobody holds it.
    assert not [*run.workdir.glob("checkpoints/*/*"), *run.workdir.rglob(".*")]
    sizes["general__accumulation"] = accumulation
    code, said = ended(given.general(tmp_path / "again", **sizes), ROOM)
    counted.count(code == 0)
    assert code == 0, said


def test_an_evaluation_that_does_not_fit_names_a_size_that_does(given: Given, tmp_path, tally):
    """It takes 2.7 GB beside 0.9. Each time half as much is named; the step before is saved."""
    counted, rows = tally("out of memory in an evaluation"), tmp_path / "dev.tsv"
    lines = (f"{'a long film of people, by the sea ' * 5}{i}\t{i % 2}\n" for i in range(8192))
    rows.write_text("text\tlabel\n" + "".join(lines), encoding="utf-8")
    files = {"task__dev": f"tsv:{rows}", "task__test": f"tsv:{given.folder / 'rows.tsv'}"}
    steps = {"finetune__eval_every": 2, "finetune__steps": 2}
    size, code, said = 8192, 2, ""
    while code == 2 and size > 512:
        run = given.finetuning(tmp_path / "run", eval_batch_size=size, **files, **steps)
        code, said = ended(run, 3.0)
        assert size < 8192 or code == 2, said
        if code == 2:
            where = f"evaluation in phase finetune, {size} examples at once"
            assert advised(said, where, "eval_batch_size") == str(size // 2), said
            assert [path.name for path in run.workdir.glob("checkpoints/finetune/*")] == ["2"]
            assert not [*run.workdir.rglob(".*")]
            size //= 2
    went_on = code == 0 and "finetune: continues at step 2" in said
    counted.count(went_on)
    assert went_on, said
