"""Runs that are refused, on more devices, and of some phases only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest

from jaxbert.config import PhaseConfig
from jaxbert.data.examples import Examples
from jaxbert.data.packing import PackedBatches
from jaxbert.errors import UserError
from jaxbert.files import SEAL
from jaxbert.interop.huggingface import read_model
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import Run, run, say_size, settled
from jaxbert.workdir import check_claim, claim


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return commands.write_small_teacher(tmp_path_factory.mktemp("given") / "teacher")


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


def test_a_student_that_cannot_be_is_refused_where_nothing_teaches_it(teacher, tmp_path):
    flags = {"phases": "finetune,baseline", "max_length": "48", "student__init": "random"}
    flags |= {"student__hidden_size": "100", "student__num_heads": "12"}
    (line,) = refusals(commands.TASK, teacher, tmp_path / "run", **flags)
    assert line.startswith("hidden_size = 100 is not valid")
    assert "phase baseline, the model's configuration; give a multiple of num_heads = 12" in line


def test_padded_means_refuse_rows_that_the_devices_cannot_share(teacher, tmp_path):
    flags = {"general__compat": "huawei", "general__packing": "false", "max_length": "48"}
    (line,) = refusals(commands.GENERAL, teacher, tmp_path / "run", **flags)
    assert "padded means over 4 rows cannot be cut into 8" in line


def test_what_several_checks_meet_is_said_once(teacher, tmp_path):
    flags = {"init_from": "nowhere", "phases": "finetune,intermediate,prediction"}
    (line,) = refusals(commands.TASK, teacher, tmp_path / "run", max_length="48", **flags)
    assert "no such model folder" in line


def test_a_phase_that_trains_a_teacher_which_nobody_would_read_is_refused(tmp_path):
    shape = commands.TEACHER.replace(num_labels=2)
    given = commands.write_small_teacher(tmp_path / "given", shape, ("negative", "positive"))
    flags = {"phases": "intermediate", "intermediate__trains": "teacher", "max_length": "48"}
    flags["intermediate__teacher"] = "given_teacher"
    (line,) = refusals(commands.TASK, given, tmp_path / "run", **flags)
    assert "so that it is the one that 'teacher' names, config key intermediate.trains" in line


# --- what phases read -----------------------------------------------------------------------------


def test_a_dtype_that_is_left_to_the_devices_is_theirs_on_which_the_run_began(
    tmp_path, monkeypatch
):
    def devices(dtype: str) -> None:
        monkeypatch.setattr("jaxbert.run.fast_dtype", lambda *_: dtype)

    config, folder = resolve(load_recipe(f"{commands.TASK}:smoke"), {}), tmp_path / "run"
    devices("bfloat16")
    began = settled(config, folder)
    assert (config.dtype, began.dtype) == ("", "bfloat16")
    with claim(folder, began):
        pass
    devices("float32")  # it goes on elsewhere
    assert (
        settled(config, tmp_path / "other").dtype == Run(config, tmp_path).config.dtype == "float32"
    )
    assert settled(config, folder) == began == Run(config, folder).config
    told = resolve(load_recipe(f"{commands.TASK}:smoke"), {"dtype": "float32"})
    assert settled(told, folder) is told
    with pytest.raises(UserError, match="it is 'float32' and was 'bfloat16' when this run began"):
        check_claim(folder, told)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"bfloat16"', "7"))
    with pytest.raises(UserError, match="it is 'float32' and was 7 when this run began"):
        check_claim(folder, settled(config, folder))
    path.write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):  # not before: all else would go unsaid
        check_claim(folder, settled(config, folder))


def test_an_update_that_whole_rows_make_larger_or_smaller_is_said(capsys):
    examples = Examples.join([np.full(21, 6, np.int32)] * 1_000)
    for size in (16, 24):
        batches = PackedBatches(examples, batch_size=size, row_length=512, seed=0)
        say_size("general", PhaseConfig(batch_size=size), batches)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("general: an update has 23.8 examples on average, not 16: whole rows of")


def test_masks_that_pre_training_is_measured_with_depend_on_no_size_of_an_evaluation(
    teacher, tmp_path
):
    text = "\n\n".join(f"Film {i} is " + "rather long and " * 9 for i in range(200))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    found = []
    for size in ("64", "16"):
        given = {"teacher": str(teacher), "corpus": f"text:{tmp_path}/text.txt", "max_length": "48"}
        config = resolve(
            load_recipe("configs/bert_pretrain.py:smoke"), {**given, "eval_batch_size": size}
        )
        found.append(Run(config, tmp_path / "run").data.measured(config.sections["pretrain"]))
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


# --- on more devices, and of some phases ----------------------------------------------------------


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
    chosen = (*flags, "--config.dtype=")  # by the devices
    for _ in range(2):  # the second finds it finished
        commands.train(f"{commands.TASK}:smoke", tmp_path / "run", *chosen, cache=cache)
    summary, config = (commands.read(tmp_path / "run" / f"{n}.json") for n in ("summary", "config"))
    assert config["dtype"] == summary["config"]["dtype"] in ("bfloat16", "float32")
    assert list(summary["phases"]) == ["finetune"]
    assert summary["parameter_hash"] == summary["phases"]["finetune"]["parameter_hash"]
    assert "classifier" in read_model(tmp_path / "run" / "models" / "teacher").params


@pytest.mark.slow
def test_a_removed_phase_is_trained_anew_from_what_it_began_with(teacher, cache, tmp_path):
    """Not from the finished student, which has the name of the one that it began with."""
    workdir = tmp_path / "run"
    phases = "--config.phases=finetune,intermediate,prediction"
    given = (f"--config.teacher={teacher}", *commands.SMALL, phases)
    flags = (f"{commands.TASK}:smoke", workdir, *given)
    commands.train(*flags, cache=cache)
    before = commands.read(workdir / "summary.json")
    for folder in ("models", "checkpoints"):
        shutil.rmtree(workdir / folder / "intermediate")
    commands.train(*flags, cache=cache)
    after = commands.read(workdir / "summary.json")
    for key in ("start_hash", "parameter_hash"):
        mine, theirs = (each["phases"]["intermediate"][key] for each in (after, before))
        assert mine == theirs
    # A finished phase whose teacher is another by now is said to be one.
    record = workdir / "models" / "intermediate" / "phase.json"
    (record.parent / SEAL).unlink()
    record.write_text(json.dumps(commands.read(record) | {"teacher_hash": "0" * 64}))
    (line,) = commands.refused(*flags, cache=cache)
    assert line.startswith(
        "the phase intermediate is finished, and has learnt from another teacher"
    )
    assert f"{record.parent}; remove that folder and run the same command again" in line
