"""The table of partition specs, against the parameters it is meant for."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxbert.errors import UserError
from jaxbert.models.bert import PRESETS, init_params
from jaxbert.training import sharding
from jaxbert.training.optimizer import make_optimizer, path_name
from jaxbert.training.step import TrainState

CONFIG = PRESETS["tinybert4"].replace(num_labels=2, projection_size=768)


def state_shapes() -> Any:
    """Shapes of TinyBERT4's whole training state."""

    def make() -> TrainState:
        params = init_params(CONFIG, jax.random.key(0))
        return TrainState(
            jnp.int32(0), params, make_optimizer(learning_rate=1.0, steps=9).init(params)
        )

    return jax.eval_shape(make)


def named(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_every_rule_fits_a_real_parameter_and_both_its_moments():
    shapes = named(state_shapes())
    for pattern, spec in sharding.RULES:
        fitting = [name for name in shapes if re.search(pattern, name)]
        assert all(len(shapes[name].shape) == len(spec) for name in fitting), pattern
        owners = {name.split("embeddings/")[0].split("encoder/")[0] for name in fitting}
        assert owners == {"params/", "opt_state/1/mu/", "opt_state/1/nu/"}, pattern


def test_no_parameter_fits_two_rules():
    for name in named(state_shapes()):
        assert sum(bool(re.search(pattern, name)) for pattern, _ in sharding.RULES) <= 1, name


def test_large_matrices_are_split_over_the_model_axis_and_the_rest_is_whole():
    mesh = sharding.make_mesh(data=4, model=2)
    shapes = state_shapes()
    found = named(sharding.tree_shardings(mesh, shapes))
    split = {name for name, place in found.items() if "model" in place.spec}
    layer, word = "encoder/layers", "embeddings/word"
    params = {f"{layer}/attention/{n}/kernel" for n in ("query", "key", "value", "output")}
    params |= {f"{layer}/attention/{n}/bias" for n in ("query", "key", "value")}
    params |= {f"{layer}/intermediate/kernel", f"{layer}/intermediate/bias"}
    params |= {f"{layer}/output/kernel", word}
    owners = ("params", "opt_state/1/mu", "opt_state/1/nu")
    assert split == {f"{owner}/{name}" for owner in owners for name in params}
    assert found[f"params/{layer}/intermediate/kernel"].spec == P(None, "fsdp", "model")
    assert found[f"params/{layer}/output/kernel"].spec == P(None, "model", "fsdp")
    assert found[f"params/{word}"].spec == P("model", "fsdp")
    assert found[f"opt_state/1/mu/{layer}/output/bias"].spec == P()


def test_dimension_that_the_mesh_does_not_divide_is_replicated():
    mesh = sharding.make_mesh(data=1, model=8)
    tree = {"embeddings": {"word": jax.ShapeDtypeStruct((30522, 312), np.float32)}}
    place = sharding.tree_shardings(mesh, tree)["embeddings"]["word"]
    assert place.is_fully_replicated
    tree["embeddings"]["word"] = jax.ShapeDtypeStruct((30528, 312), np.float32)
    assert sharding.tree_shardings(mesh, tree)["embeddings"]["word"].spec == P("model", "fsdp")


def test_split_halves_what_each_device_holds():
    mesh = sharding.make_mesh(data=2, model=2)
    shape = (4, 6, 8)
    tree = {"encoder": {"layers": {"intermediate": {"kernel": np.ones(shape, np.float32)}}}}
    placed = jax.device_put(tree, sharding.tree_shardings(mesh, tree))
    shards = jax.tree.leaves(placed)[0].addressable_shards
    assert [shard.data.shape for shard in shards] == [(4, 6, 4)] * 4


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ((), (8, 1, 1)),
        ((-1, 2), (4, 1, 2)),
        ((1,), (1, 1, 1)),
        ((2, 4), (2, 1, 4)),
        ((-1, 8), (1, 1, 8)),
        ((-1, 2, 2), (2, 2, 2)),
        ((1, 1, 8), (1, 8, 1)),
    ],
)
def test_mesh_has_the_devices_asked_for(given, shape):
    mesh = sharding.make_mesh(*given)
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.devices.shape == shape


@pytest.mark.parametrize(
    "given", [(3, 4), (-1, 16), (9, 1), (0, 1), (1, 0), (-1, 0), (-2, 1), (1, 1, 9), (1, 3, 3)]
)
def test_mesh_that_does_not_fit_is_refused(given):
    with pytest.raises(UserError, match="does not fit 8 devices, config section mesh"):
        sharding.make_mesh(*given)


def test_rows_of_the_whole_batch_are_found_among_those_that_a_process_holds():
    held = sharding.HeldRows(np.array([2, 3, 6, 7]), 8)
    assert held.within(slice(2, 4)) == slice(0, 2)
    assert held.within(slice(6, None)) == slice(2, 4)
    assert sharding.HeldRows.whole(4).within(slice(None)) == slice(0, 4)
    layout = sharding.rows(sharding.make_mesh(data=2, fsdp=2, model=2))
    np.testing.assert_array_equal(sharding.HeldRows.of(layout, 8).rows, np.arange(8))
