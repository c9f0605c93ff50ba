"""Checkpoints: the same bits come back, or nothing does."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STUDENT, visible_params

from jaxbert.errors import UserError
from jaxbert.training import sharding
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.hashing import parameter_hash
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state
from jaxbert.training.stored import Stored

NOTE = {"totals": {"seconds": 1.5}, "values": {"loss": 2.0}}


def state_on(data: int = 1, model: int = 1, seed: int = 1) -> Any:
    optimizer = make_optimizer(learning_rate=1e-3, steps=9)
    mesh = sharding.make_mesh(data, model)
    return init_state(visible_params(STUDENT, seed), optimizer, mesh)


def written(folder: Path, *steps: tuple[int, float | None]) -> Any:
    """Checkpoints of small states at some steps, with metrics."""
    checkpoints = Checkpoints(folder)
    for step, metric in steps:
        checkpoints.save(step, {"w": jnp.full(3, float(step))}, NOTE, due=metric is not None)
        if metric is not None:
            checkpoints.judge(step, metric, NOTE)
    checkpoints.close()


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name != "damaged")


def test_hash_is_sha256_over_path_type_shape_and_bytes():
    tree = {"b": {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, "a": np.int32(7)}
    digest = hashlib.sha256()
    digest.update(b"a\0int32\0()\0" + (7).to_bytes(4, "little"))
    digest.update(b"b/x\0float32\0(2, 3)\0" + tree["b"]["x"].astype("<f4").tobytes("C"))
    assert parameter_hash(tree) == digest.hexdigest()
    fortran = {"a": np.int32(7), "b": {"x": np.asfortranarray(tree["b"]["x"])}}
    assert parameter_hash(fortran) == digest.hexdigest()
    big = {"a": np.array(7, ">i4"), "b": {"x": tree["b"]["x"].astype(">f4")}}
    assert parameter_hash(big) == digest.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros((3, 2), np.float32)},
        {"w": np.zeros((2, 3), np.int32)},
        {"v": np.zeros((2, 3), np.float32)},
        {"w": np.full((2, 3), -0.0, np.float32)},
    ],
)
def test_hash_sees_shape_type_name_and_every_bit(other):
    assert parameter_hash(other) != parameter_hash({"w": np.zeros((2, 3), np.float32)})


def test_hash_does_not_depend_on_where_the_leaves_lie():
    hashes = {parameter_hash(state_on(*shape)) for shape in ((1, 1), (8, 1), (2, 2), (1, 4))}
    assert len(hashes) == 1
    assert hashes == {parameter_hash(jax.device_get(state_on()))}


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_state_comes_back_bit_for_bit_on_any_mesh(shape, tmp_path):
    state = state_on(2, 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, NOTE)
    checkpoints.close()

    again = Checkpoints(tmp_path)
    like = state_on(*shape, seed=9)
    restored = again.restore(again.latest(), like)
    assert parameter_hash(restored) == parameter_hash(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    places = [leaf.sharding for leaf in jax.tree.leaves(restored)]
    assert places == [leaf.sharding for leaf in jax.tree.leaves(like)]
    assert again.note(3) == NOTE
    again.close()


def test_save_takes_a_copy_before_the_state_is_given_away(tmp_path):
    """The next step overwrites the buffers while the write is under way."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = {"w": jnp.arange(1_000_000, dtype=jnp.float32)}
    wanted = np.array(state["w"])
    checkpoints.save(1, state, NOTE)
    for _ in range(3):
        state = overwrite(state)
    np.testing.assert_array_equal(checkpoints.restore(1, state)["w"], wanted)
    checkpoints.close()


def test_whatever_becomes_of_a_file_the_state_is_the_same_or_is_refused(tmp_path):
    """Each file flipped at three places, cut, emptied and removed; nothing is silent."""
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), jnp.float32)}
    checkpoints = Checkpoints(tmp_path / "whole")
    checkpoints.save(4, state, NOTE)
    checkpoints.close()
    files = [path for path in (tmp_path / "whole" / "4").rglob("*") if path.is_file()]
    told = 0
    for path in files:
        content = path.read_bytes()
        cases = [content[: len(content) // 2], b"", None]
        for at in (len(content) // 3, len(content) // 2, len(content) - 5) * (len(content) > 5):
            cases.append(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        for case in cases:
            path.unlink() if case is None else path.write_bytes(case)
            try:
                stored = Stored(tmp_path / "whole" / "4")
                assert stored.note == NOTE
                assert parameter_hash(stored.restore(state)) == parameter_hash(state)
            except UserError as error:
                told += 1
                assert "the checkpoint of step 4 is damaged" in error.line
            path.write_bytes(content)
    assert told > 10


@pytest.mark.parametrize("item", ["state/manifest.ocdbt", "record/metadata"])
def test_the_run_goes_on_from_the_newest_that_can_be_read(item, tmp_path, capsys):
    written(tmp_path, (2, None), (4, 0.9), (6, 0.5))
    (tmp_path / "6" / item).write_bytes(b"{")
    checkpoints = Checkpoints(tmp_path)
    step, state = checkpoints.restore_newest({"w": jnp.zeros(3)})
    np.testing.assert_array_equal(state["w"], np.full(3, 4.0))
    assert (step, checkpoints.latest(), checkpoints.best()) == (4, 4, 4)
    said = capsys.readouterr().err
    assert "warning: the checkpoint of step 6 is damaged: " in said
    assert f"moved to {tmp_path}/damaged/6" in said and len(said.splitlines()) == 1
    checkpoints.save(6, {"w": jnp.full(3, 6.0)}, NOTE)
    checkpoints.close()
    assert kept(tmp_path) == [4, 6]


def test_where_none_can_be_read_the_phase_begins_anew(tmp_path, capsys):
    written(tmp_path, (2, None))
    (tmp_path / "2" / "state" / "manifest.ocdbt").unlink()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_newest({"w": jnp.zeros(3)}) is None
    first, second = capsys.readouterr().err.splitlines()
    assert "w cannot be read" in first and second.endswith("the phase begins anew")
    checkpoints.close()


@pytest.mark.parametrize("item", ["state/manifest.ocdbt", "record/metadata"])
def test_a_damaged_best_is_told_before_more_is_trained(item, tmp_path, capsys):
    """Another one as the best would be another result, silently."""
    written(tmp_path, (2, 0.9), (4, 0.5))
    (tmp_path / "2" / item).write_bytes(b"{")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=f"step 2 is damaged.*; remove {tmp_path} and run the same"):
        checkpoints.restore_newest({"w": jnp.zeros(3)})
    checkpoints.close()


def test_what_a_killed_process_left_is_removed(tmp_path):
    written(tmp_path, (2, None))
    partial = tmp_path / "4.orbax-checkpoint-tmp-7"
    partial.mkdir()
    (tmp_path / "deleted" / "1").mkdir(parents=True)
    Checkpoints(tmp_path).close()
    assert kept(tmp_path) == [2]


def test_values_that_are_not_those_written_are_told_by_their_parameter(tmp_path):
    """A file that reads well and holds other numbers: only the hash can tell."""
    written(tmp_path / "a", (4, None))
    checkpoints = Checkpoints(tmp_path / "b")
    checkpoints.save(4, {"w": jnp.full(3, 5.0)}, NOTE)
    checkpoints.close()
    (tmp_path / "a" / "4" / "state").rename(tmp_path / "good")
    (tmp_path / "b" / "4" / "state").rename(tmp_path / "a" / "4" / "state")
    with pytest.raises(UserError, match="the hash of w does not match"):
        Checkpoints(tmp_path / "a").restore(4, {"w": jnp.zeros(3)})


def test_a_metric_that_was_changed_is_told(tmp_path):
    """It would choose another step."""
    written(tmp_path, (4, 0.25))
    path = tmp_path / "4" / "record" / "judgement"
    path.write_text(path.read_text().replace('"metric": 0.25', '"metric": 0.75'))
    with pytest.raises(UserError, match="its record is not as it was written"):
        Stored(tmp_path / "4")


def test_the_state_of_something_else_names_every_parameter(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {name: jnp.zeros(3) for name in ("gone", "same", "shape", "type")}
    checkpoints.save(4, state, NOTE)
    like = {"new": jnp.zeros(3), "same": jnp.zeros(3), "shape": jnp.zeros((3, 1))}
    like["type"] = jnp.zeros(3, jnp.int32)
    with pytest.raises(UserError) as caught:
        checkpoints.restore_newest(like)
    said = [line.partition(" in this run,")[0] for line in caught.value.lines]
    assert said == [
        "gone is float32 [3] in the checkpoint, and absent",
        "new is absent in the checkpoint, and float32 [3]",
        "shape is float32 [3] in the checkpoint, and float32 [3, 1]",
        "type is float32 [3] in the checkpoint, and int32 [3]",
    ]
    checkpoints.close()


def test_a_state_that_is_not_finite_is_not_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="b is not finite"):
        checkpoints.save(1, {"a": jnp.zeros(2), "b": jnp.array([0.0, jnp.inf])}, NOTE)
    assert checkpoints.latest() is None
    checkpoints.close()


def test_a_failed_write_is_said_once_whatever_else_was_being_written(tmp_path, capfd):
    """No other leaf's end is heard of in a closed event loop: a file may not grow, as on a disk."""
    state = {f"w{i}": jax.random.normal(jax.random.key(i), (128, 64)) for i in range(60)}
    for _ in range(8):  # whether the others are still under way is chance
        checkpoints = Checkpoints(tmp_path)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
        try:
            with pytest.raises(UserError, match="a checkpoint could not be written"):
                checkpoints.save(1, state, NOTE)
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with contextlib.suppress(UserError):
            checkpoints.close()
        assert kept(tmp_path) == []
    gc.collect()
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_less_than_twice_the_state_of_room_is_told_before_anything_is_written(tmp_path):
    huge = {"w": jax.ShapeDtypeStruct((2**50,), jnp.float32)}
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        UserError, match=r"^checkpoints need 9007\d+\.\d\d GB, and [\d.]+ .B are free"
    ):
        checkpoints.check_room(huge)
    checkpoints.close()


def test_the_two_latest_and_the_best_are_kept_and_nothing_else(tmp_path):
    steps = [(1, 0.5), (2, None), (3, 0.9), (4, 0.7), (5, None)]
    written(tmp_path, *steps)
    assert kept(tmp_path) == [3, 4, 5]


def test_best_is_remembered_across_restarts(tmp_path):
    written(tmp_path, (1, 0.9), (2, 0.5))
    written(tmp_path, (3, 0.6))
    written(tmp_path, (4, None))
    assert kept(tmp_path) == [1, 3, 4]
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.best(), checkpoints.latest()) == (1, 4)
    checkpoints.close()


def test_of_equal_metrics_the_later_is_best(tmp_path):
    written(tmp_path, (1, 0.9), (2, 0.9), (3, 0.1))
    assert Checkpoints(tmp_path).best() == 2
    assert kept(tmp_path) == [2, 3]


def test_without_metrics_the_latest_is_best(tmp_path):
    written(tmp_path, (1, None), (2, None), (3, None))
    assert kept(tmp_path) == [2, 3]
    assert Checkpoints(tmp_path).best() == 3


def test_a_step_waits_for_its_evaluation_until_it_is_judged(tmp_path):
    written(tmp_path, (2, 0.9))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, {"w": jnp.full(3, 4.0)}, NOTE, due=True)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)  # as after a kill
    assert [checkpoints.due(step) for step in (2, 4)] == [False, True]
    assert (checkpoints.best(), checkpoints.judged(4)) == (2, False)
    checkpoints.judge(4, 0.95, {"judged": True})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.due(4), checkpoints.judged(4), checkpoints.metric(4)) == (False, True, 0.95)
    assert (checkpoints.best(), checkpoints.note(4)) == (4, {"judged": True})
    checkpoints.close()


def test_a_judgement_that_is_gone_is_known_by_the_next_step_or_made_again(tmp_path):
    written(tmp_path, (2, 0.9), (4, 0.5))
    for step in ("2", "4"):
        (tmp_path / step / "record" / "judgement").unlink()
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.best(), checkpoints.metric(2), checkpoints.due(4)) == (2, 0.9, True)
    checkpoints.close()


def test_the_one_before_a_damaged_one_is_taken_where_it_was_the_best(tmp_path, capsys):
    """Its own record names the best before it, which is gone."""
    written(tmp_path, (2, 0.1), (4, 0.9), (6, None))
    assert kept(tmp_path) == [4, 6]
    (tmp_path / "6" / "state" / "manifest.ocdbt").unlink()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_newest({"w": jnp.zeros(3)})[0] == 4
    checkpoints.close()
    assert "step 6 is damaged" in capsys.readouterr().err


def test_empty_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None


def test_metrics_below_zero_are_metrics(tmp_path):
    """A Matthews correlation may be negative."""
    written(tmp_path, (1, -0.2), (2, -0.1), (3, -0.3), (4, None))
    assert Checkpoints(tmp_path).best() == 2
