"""Every file that is read again, spoiled in every way: what is read is right, or it is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from mutations import files_of, mutants, mutated
from small import STUDENT, visible_params

from jaxbert.data.taught import Taught, open_taught
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.finished import read_run
from jaxbert.interop.huggingface import read_model
from jaxbert.recipe import resolve
from jaxbert.run import Run
from jaxbert.training import sharding
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.hashing import parameter_hash
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state
from jaxbert.verify import verify

pytestmark = pytest.mark.chaos


def spoil(folder: Path, name: str, read: Callable[[], Any], tally, right: Callable) -> None:
    """Spoils each file of a folder in each way, and reads what it belongs to.

    Args:
      folder: whose files are spoiled, one at a time; put back in the end.
      name: of what is read.
      read: what reads it, or raises a UserError.
      tally: the ledger's.
      right: whether what was read is right.
    """
    tallies, broken = {}, []
    assert right(read())
    for path in files_of(folder):
        for fault, content in mutants(path):
            counted = tallies.setdefault(fault, tally(f"{fault} {name}"))
            with mutated(path, content):
                try:
                    good = right(read())
                    survived, silent = good, not good
                except UserError:
                    survived, silent = True, False
                except Exception as error:
                    survived, silent = False, False
                    print(path, fault, repr(error))
            counted.count(survived, silent)
            if not survived:
                broken.append(f"{fault} {path}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("spoilt", [3, 6])
def test_a_checkpoint_comes_back_as_it_was_or_the_one_before_it_does(spoilt, tmp_path, tally):
    optimizer = make_optimizer(learning_rate=1e-3, steps=9)
    states = {
        step: init_state(visible_params(STUDENT, step), optimizer, sharding.make_mesh(1, 1))
        for step in (3, 6)
    }
    good, spoiled = tmp_path / "good", tmp_path / "spoiled"
    checkpoints = Checkpoints(good)
    for step, state in states.items():  # the first is the best, so that both are kept
        note = {"totals": {"seconds": float(step)}}
        checkpoints.save(step, state, note, due=True)
        checkpoints.judge(step, 1.0 / step, note)
    checkpoints.close()
    hashes = {step: parameter_hash(state) for step, state in states.items()}
    shutil.copytree(good, spoiled)

    def read() -> tuple[int, Any, float, int | None] | None:
        # Damaged checkpoints are moved aside: each time a folder of its own.
        folder = tmp_path / "read"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(spoiled, folder)
        checkpoints = Checkpoints(folder)
        try:
            found = checkpoints.restore_newest(states[3])
            seconds = found and checkpoints.note(found[0])["totals"]["seconds"]
            return found and (*found, seconds, checkpoints.best())
        finally:
            checkpoints.close()

    def right(found: tuple[int, Any, float, int | None] | None) -> bool:
        if found is None:
            raise LookupError("nothing was restored, though another checkpoint was good")
        step, state, seconds, best = found
        # A step whose judgement is gone is judged again before another one.
        good = parameter_hash(state) == hashes[step] and seconds == step
        return good and best == 3

    spoil(spoiled / str(spoilt), "a checkpoint", read, tally, right)


@pytest.mark.parametrize("name", ["student", "teacher", "initial_student"])
def test_a_model_is_the_one_that_was_written_or_is_refused(
    name, whole_general, whole_task, tmp_path, tally
):
    folder = tmp_path / name
    whole = whole_general if name == "initial_student" else whole_task
    shutil.copytree(whole / "models" / name, folder)

    def read() -> Any:
        model = read_model(folder)
        tokenizer = load_tokenizer(folder).fingerprint
        return parameter_hash(model.params), model.config, model.labels, tokenizer

    whole_model = read()
    spoil(folder, "a model folder", read, tally, lambda found: found == whole_model)


def test_what_a_run_says_of_itself_is_what_it_wrote_or_is_refused(whole_task, tmp_path, tally):
    workdir = tmp_path / "task"
    shutil.copytree(whole_task, workdir, ignore=lambda *_: ["checkpoints", "tensorboard"])
    for path in workdir.glob("*"):
        if path.name not in ("models", "cache", "config.json", "summary.json", "jaxbert.sha256"):
            path.unlink()
    records = tmp_path / "records"
    records.mkdir()
    names = ("config.json", "summary.json", "jaxbert.sha256")
    for name in names:
        if (workdir / name).exists():
            (workdir / name).rename(records / name)
            (workdir / name).symlink_to(records / name)

    def read() -> Any:
        found = read_run(workdir)
        return found.config, found.summary

    whole = read()
    spoil(records, "a run's records", read, tally, lambda found: found == whole)


def test_the_record_of_a_finished_phase_is_what_it_wrote_or_is_refused(whole_task, tmp_path, tally):
    workdir = tmp_path / "task"
    shutil.copytree(whole_task, workdir)
    config = resolve(commands.read(workdir / "config.json"), {})
    index = config.phases.index("prediction")
    whole = commands.read(workdir / "models" / "student" / "phase.json")
    (tmp_path / "record").mkdir()
    path = workdir / "models" / "student" / "phase.json"
    path.rename(tmp_path / "record" / "phase.json")
    path.symlink_to(tmp_path / "record" / "phase.json")

    def read() -> Any:
        if not path.exists():  # removed: the phase would be trained anew
            raise UserError("not finished")
        return Run(config, workdir).finish(index, "prediction")

    right = whole.__eq__
    spoil(tmp_path / "record", "a phase's record", read, tally, right)


def test_kept_answers_of_a_teacher_are_what_it_said_or_are_asked_anew(whole_task, tmp_path, tally):
    folder = tmp_path / "taught"
    shutil.copytree(whole_task / "cache" / "taught_prediction", folder)
    whole = Taught(folder)
    identity = {k: v for k, v in whole.record.items() if k not in ("outputs", "seconds")}
    arrays = {path.name: np.load(path) for path in folder.glob("*.npy")}
    outputs = whole.outputs
    del whole

    def read() -> Any:
        return open_taught(folder, outputs, identity)

    def right(found: Any) -> bool:
        return found is None or all(
            np.array_equal(np.load(folder / name), array) for name, array in arrays.items()
        )

    spoil(folder, "a teacher's answers", read, tally, right)


def test_kept_copies_of_rows_are_what_was_made_or_are_refused(whole_task, tmp_path, tally):
    workdir = tmp_path / "task"
    shutil.copytree(whole_task, workdir)
    config = resolve(commands.read(workdir / "config.json"), {})
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in list((workdir / "cache").glob("augmented*")):
        path.rename(kept / path.name)
        path.symlink_to(kept / path.name)

    def read() -> Any:
        return Run(config, workdir).data.augmented

    whole = read().rows

    def right(found: Any) -> bool:
        return found.rows.texts == whole.texts and np.array_equal(found.rows.labels, whole.labels)

    spoil(kept, "augmented rows", read, tally, right)


def test_what_a_run_keeps_in_its_cache_is_as_it_was_or_is_named(whole_task, tmp_path, tally):
    workdir = tmp_path / "task"
    shutil.copytree(whole_task / "cache", workdir / "cache")
    (workdir / "models").mkdir()

    said: list[str] = []
    verify(workdir, said.append)
    parts = {line.partition(":")[0] for line in said}
    assert parts >= {"cache/augmented.jsonl", "cache/taught_prediction"}
    unnamed = []
    for path in files_of(workdir / "cache"):
        good = path.read_bytes()
        for fault, content in mutants(path):
            silent = False
            with mutated(path, content), contextlib.suppress(UserError):
                verify(workdir, str)
                # A record without its last line break says what it said.
                record = path.suffix == ".json" and content is not None
                silent = not record or json.loads(content) != json.loads(good)
            tally(f"{fault} a run's cache, by verify").count(not silent, silent=silent)
            unnamed += [f"{fault} {path}"] * silent
    assert not unnamed, "\n".join(unnamed)
