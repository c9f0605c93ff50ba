"""Checkpoints: the same bits come back, or nothing does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import STUDENT, visible_params

from jaxbert.errors import UserError
from jaxbert.training import sharding
from jaxbert.training.checkpoint import Checkpoints, parameter_hash
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state

NOTE = {"totals": {"seconds": 1.5}, "values": {"loss": 2.0}}


def state_on(data: int = 1, model: int = 1, seed: int = 1) -> Any:
    optimizer = make_optimizer(learning_rate=1e-3, steps=9)
    mesh = sharding.make_mesh(data, model)
    return init_state(visible_params(STUDENT, seed), optimizer, mesh)


def written(folder: Path, *steps: tuple[int, float | None]) -> Any:
    """Checkpoints of small states at some steps, with metrics."""
    checkpoints = Checkpoints(folder)
    for step, metric in steps:
        checkpoints.save(step, {"w": jnp.full(3, float(step))}, metric, NOTE)
    checkpoints.close()


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


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
    checkpoints.save(3, state, 0.5, NOTE)
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
    checkpoints.save(1, state, None, NOTE)
    for _ in range(3):
        state = overwrite(state)
    np.testing.assert_array_equal(checkpoints.restore(1, state)["w"], wanted)
    checkpoints.close()


def test_any_flipped_byte_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), jnp.float32)}
    checkpoints.save(4, state, None, NOTE)
    checkpoints.close()
    files = [path for path in (tmp_path / "4").rglob("*") if path.is_file() and path.stat().st_size]
    data = [path for path in files if "/d/" in path.as_posix()]
    assert data
    assert Checkpoints(tmp_path).restore(4, state)["w"].shape == (50, 20)
    for path in data:
        whole = path.read_bytes()
        for at in (len(whole) // 3, len(whole) // 2, len(whole) - 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            try:
                restored = Checkpoints(tmp_path).restore(4, state)
            except UserError as error:
                assert "the checkpoint of step 4 is damaged" in error.line
                assert str(tmp_path / "4") in error.line
            else:  # a byte that nothing reads
                assert parameter_hash(restored) == parameter_hash(state)
        path.write_bytes(whole)
    assert Checkpoints(tmp_path).restore(4, state)["w"].shape == (50, 20)


def test_damage_of_the_values_is_told(tmp_path):
    """A file that reads well and holds other numbers: only the hash can tell."""
    written(tmp_path / "a", (4, None))
    checkpoints = Checkpoints(tmp_path / "b")
    checkpoints.save(4, {"w": jnp.full(3, 5.0)}, None, NOTE)
    checkpoints.close()
    (tmp_path / "a" / "4" / "state").rename(tmp_path / "good")
    (tmp_path / "b" / "4" / "state").rename(tmp_path / "a" / "4" / "state")
    with pytest.raises(UserError, match="its hash does not match"):
        Checkpoints(tmp_path / "a").restore(4, {"w": jnp.zeros(3)})


def test_checkpoint_without_a_record_is_told(tmp_path):
    written(tmp_path, (4, None))
    for path in (tmp_path / "4" / "record").iterdir():
        path.write_text("{")
    with pytest.raises(UserError, match="step 4 is damaged: its record cannot be read"):
        Checkpoints(tmp_path)


def test_latest_and_best_are_kept_and_nothing_else(tmp_path):
    steps = [(1, 0.5), (2, None), (3, 0.9), (4, 0.7), (5, None)]
    written(tmp_path, *steps)
    assert kept(tmp_path) == [3, 5]


def test_best_is_remembered_across_restarts(tmp_path):
    written(tmp_path, (1, 0.9), (2, 0.5))
    written(tmp_path, (3, 0.6))
    written(tmp_path, (4, None))
    assert kept(tmp_path) == [1, 4]
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.best(), checkpoints.latest()) == (1, 4)
    checkpoints.close()


def test_of_equal_metrics_the_later_is_best(tmp_path):
    written(tmp_path, (1, 0.9), (2, 0.9), (3, 0.1))
    assert Checkpoints(tmp_path).best() == 2
    assert kept(tmp_path) == [2, 3]


def test_without_metrics_the_latest_is_best(tmp_path):
    written(tmp_path, (1, None), (2, None))
    assert kept(tmp_path) == [2]
    assert Checkpoints(tmp_path).best() == 2


def test_empty_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None


def test_metrics_below_zero_are_metrics(tmp_path):
    """A Matthews correlation may be negative."""
    written(tmp_path, (1, -0.2), (2, -0.1), (3, -0.3), (4, None))
    assert Checkpoints(tmp_path).best() == 2
