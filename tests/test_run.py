"""Runs that are killed and run again, runs on more devices, and runs of some phases only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import commands
import pytest

from jaxbert.interop.huggingface import read_model

GENERAL_FLAGS = (
    *commands.SMALL,
    "--config.general.steps=12",
    "--config.general.checkpoint_every=3",
    "--config.general.batch_size=32",
    "--config.general.dropout=0.1",
)
TASK_FLAGS = (
    *commands.SMALL,
    "--config.finetune.steps=6",
    "--config.finetune.dropout=0.1",
    "--config.finetune.eval_every=3",
    "--config.finetune.checkpoint_every=2",
    "--config.intermediate.steps=4",
    "--config.prediction.steps=6",
    "--config.prediction.eval_every=3",
    "--config.prediction.checkpoint_every=2",
    "--config.phases=finetune,intermediate,prediction",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return commands.shared_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return commands.write_small_teacher(tmp_path_factory.mktemp("given") / "teacher")


@pytest.fixture(scope="module")
def general(tmp_path_factory, teacher, cache):
    """An unbroken first stage."""
    workdir = tmp_path_factory.mktemp("runs") / "general"
    flags = [f"--config.teacher={teacher}", *GENERAL_FLAGS]
    commands.train(f"{commands.GENERAL}:smoke", workdir, *flags, cache=cache)
    return workdir


def kill_when(
    reached: Callable[[], bool], config: str, workdir: Path, *flags: str, cache: Path
) -> None:
    """Starts ``train.py`` and kills it, with SIGKILL, once something is so."""
    process = subprocess.Popen(
        commands.command("train.py", config, workdir, *flags),
        cwd=commands.ROOT,
        env=commands.environment(cache=cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 300
    try:
        while not reached() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (workdir / "summary.json").exists()


def step_reached(workdir: Path, phase: str, step: int) -> Callable[[], bool]:
    """Whether metrics.jsonl has a line of a step of a phase."""
    path = workdir / "metrics.jsonl"
    start = f'{{"phase": "{phase}", "step": {step},'
    return lambda: path.exists() and start in path.read_text(encoding="utf-8")


def values_of(workdir: Path) -> dict[tuple[str, int, str], float]:
    """metrics.jsonl by (phase, step, key), each there once; without the times."""
    found: dict[tuple[str, int, str], float] = {}
    for line in commands.metrics(workdir):
        for key in set(line) - {"phase", "step", "seconds"}:
            place = (line["phase"], line["step"], key)
            assert place not in found, f"{place} is there twice"
            found[place] = line[key]
    return found


def assert_same_run(broken: Path, whole: Path) -> None:
    """Asserts that two runs left the same bits, but for times."""
    mine, theirs = commands.read(broken / "summary.json"), commands.read(whole / "summary.json")
    assert mine["parameter_hash"] == theirs["parameter_hash"]
    for name, phase in theirs["phases"].items():
        for key in set(phase) - {"seconds", "compilations"}:
            assert mine["phases"][name][key] == phase[key], (name, key)
    assert values_of(broken) == values_of(whole)


def test_the_first_stage_killed_again_and_again_ends_with_the_same_bits(
    general, teacher, cache, tmp_path
):
    workdir = tmp_path / "broken"
    run = (f"{commands.GENERAL}:smoke", workdir, f"--config.teacher={teacher}", *GENERAL_FLAGS)
    # Before the first checkpoint; between two; and while the last one may be under way.
    for step in (2, 7, 12):
        kill_when(step_reached(workdir, "general", step), *run, cache=cache)
    # As if it had been killed in the middle of a line.
    with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"phase": "general", "step": 13, "lo')
    said = commands.train(*run, cache=cache).stdout
    assert "general: continues at step" in said
    assert_same_run(workdir, general)


def test_the_second_stage_killed_in_and_between_its_phases_ends_with_the_same_bits(
    general, teacher, cache, tmp_path
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = (f"--config.teacher={teacher}", f"--config.init_from={general}", *TASK_FLAGS)
    config = f"{commands.TASK}:smoke"
    commands.train(config, whole, *given, cache=cache)
    for reached in (
        step_reached(broken, "finetune", 5),
        (broken / "models" / "teacher" / "phase.json").exists,  # finetune is finished
        step_reached(broken, "prediction", 3),
    ):
        kill_when(reached, config, broken, *given, cache=cache)
    said = commands.train(config, broken, *given, cache=cache).stdout
    assert "finetune: finished before" in said and "intermediate: finished before" in said
    assert_same_run(broken, whole)


def test_the_first_fifty_losses_are_the_same_on_one_and_eight_devices(
    teacher, cache, tmp_path, within
):
    flags = [
        f"--config.teacher={teacher}",
        *commands.SMALL,
        "--config.general.steps=50",
        "--config.general.checkpoint_every=50",
        "--config.general.batch_size=16",
        "--config.general.packing=false",
    ]
    losses = []
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        commands.train(f"{commands.GENERAL}:smoke", workdir, *flags, cache=cache, devices=devices)
        summary = commands.read(workdir / "summary.json")
        assert summary["devices"]["count"] == devices
        assert summary["phases"]["general"]["rows"] == 16
        assert summary["phases"]["general"]["compilations"] == 1
        losses.append([line["loss"] for line in commands.metrics(workdir)])
    assert len(losses[0]) == 50 and losses[0][-1] < losses[0][0]
    within(losses[1], losses[0])


@pytest.mark.slow
def test_a_run_of_one_phase_needs_no_other(teacher, cache, tmp_path):
    flags = (f"--config.teacher={teacher}", *commands.SMALL, "--config.phases=finetune")
    commands.train(f"{commands.TASK}:smoke", tmp_path / "run", *flags, cache=cache)
    summary = commands.read(tmp_path / "run" / "summary.json")
    assert list(summary["phases"]) == ["finetune"]
    assert summary["parameter_hash"] == summary["phases"]["finetune"]["parameter_hash"]
    assert "classifier" in read_model(tmp_path / "run" / "models" / "teacher").params
