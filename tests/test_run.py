"""Runs that are refused, killed and run again, on more devices, and of some phases only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import commands
import pytest

from jaxbert.errors import UserError
from jaxbert.interop.huggingface import read_model
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import run

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
    "--config.prediction.teacher_cache=layers",  # too few steps for it to be kept by itself
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


# --- what is refused before anything is written --------------------------------------------------


def refusals(recipe: str, teacher: Path, workdir: Path, **overrides: str) -> list[str]:
    """What a run says before it claims its folder; a double underscore stands for a dot."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    config = resolve(load_recipe(f"{recipe}:smoke"), keys | {"teacher": str(teacher)})
    with pytest.raises(UserError) as error:
        run(config, workdir)
    assert not workdir.exists()
    return error.value.lines


def test_a_missing_corpus_is_said_with_all_else_before_the_folder_is_made(teacher, tmp_path):
    missing = f"parquet:{tmp_path}/none-*.parquet:text"
    sizes = {"max_length": "65", "corpus": missing}
    found = refusals(commands.GENERAL, teacher, tmp_path / "run", **sizes)
    assert any("none-*.parquet" in line for line in found)
    assert any("max_length = 65 is beyond the 64 positions" in line for line in found)


def test_a_teacher_without_a_classifier_cannot_teach_predictions(teacher, tmp_path):
    (line,) = refusals(
        commands.TASK,
        teacher,
        tmp_path / "run",
        max_length="48",
        phases="intermediate,prediction",
        intermediate__teacher="given_teacher",
        prediction__teacher="given_teacher",
    )
    assert line.startswith("'given_teacher' has no classifier, so that it predicts nothing")
    assert "config key prediction.teacher; give a model that is fine-tuned" in line


def test_a_student_of_another_task_is_refused(teacher, tmp_path):
    shape = commands.TEACHER.replace(num_layers=2, num_labels=3)
    given = commands.write_small_teacher(tmp_path / "other", shape, ("no", "perhaps", "yes"))
    flags = {
        "init_from": str(given),
        "phases": "finetune,intermediate,prediction",
        "max_length": "48",
    }
    (line,) = refusals(commands.TASK, teacher, tmp_path / "run", **flags)
    assert "the student's labels ('no', 'perhaps', 'yes') are not the task's" in line
    assert f"config key init_from ({given})" in line


def test_padded_means_refuse_rows_that_the_devices_cannot_share(teacher, tmp_path):
    flags = {"general__compat": "huawei", "general__packing": "false", "max_length": "48"}
    (line,) = refusals(commands.GENERAL, teacher, tmp_path / "run", **flags)
    assert "padded means over 4 rows cannot be cut into 8" in line


def test_what_several_checks_meet_is_said_once(teacher, tmp_path):
    flags = {"init_from": "nowhere", "phases": "finetune,intermediate,prediction"}
    (line,) = refusals(commands.TASK, teacher, tmp_path / "run", max_length="48", **flags)
    assert "no such model folder" in line


# --- killed and run again ------------------------------------------------------------------------


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


TIMES = {"seconds", "data_wait", "data_wait_fraction", "teacher_seconds"}


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


@pytest.mark.slow
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
    # The rest with batches from two processes: where they are made changes nothing.
    said = commands.train(*run, "--config.data_workers=2", cache=cache).stdout
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
        # Between two phases, while the teacher is asked what the last one is to learn.
        (broken / "cache" / ".taught_prediction.partial" / "logits.values.npy").exists,
        step_reached(broken, "prediction", 3),
    ):
        kill_when(reached, config, broken, *given, cache=cache)
    said = commands.train(config, broken, *given, cache=cache).stdout
    assert "finetune: finished before" in said and "intermediate: finished before" in said
    assert "what the teacher says" not in said  # that was kept
    assert_same_run(broken, whole)


@pytest.mark.slow
def test_the_first_fifty_losses_of_packed_rows_are_the_same_on_one_and_eight_devices(
    teacher, cache, tmp_path, within
):
    flags = [
        f"--config.teacher={teacher}",
        *commands.SMALL,
        "--config.general.steps=50",
        "--config.general.checkpoint_every=50",
        "--config.general.batch_size=13",
    ]
    losses, rows = [], []
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        commands.train(f"{commands.GENERAL}:smoke", workdir, *flags, cache=cache, devices=devices)
        summary = commands.read(workdir / "summary.json")
        assert summary["devices"]["count"] == devices
        rows.append(summary["phases"]["general"]["rows"])
        assert summary["phases"]["general"]["compilations"] == 1
        losses.append([line["loss"] for line in commands.metrics(workdir)])
    # The eight share rows that do not divide by eight: the missing ones are empty.
    assert rows[0] % 8 and rows[1] == rows[0] + -rows[0] % 8
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
