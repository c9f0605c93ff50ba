"""The arithmetic of many devices: of the models that it is about, and as the page has it."""

from __future__ import annotations

import sys

import commands
import jax
import pytest
import small

sys.path.insert(0, str(commands.ROOT / "benchmarks"))

import scaling
import works

from jaxbert.doctor.estimate import shapes_of
from jaxbert.models.bert import PRESETS, count_parameters
from jaxbert.run import held_frozen
from jaxbert.training import sharding


def test_the_job_is_that_of_the_models():
    job, mesh = scaling.Job(), sharding.make_mesh(1)
    shape = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
    base = PRESETS["bert-base"].replace(dtype="bfloat16")
    tiny = PRESETS["tinybert4"].replace(projection_size=base.hidden_size)
    one, other = ({key: getattr(config, key) for key in shape} for config in (base, tiny))
    work = works.Work("stage1", one, other, scaling.LENGTH, scaling.LENGTH, 256)
    assert job.flops == pytest.approx(works.flops_per_token(work), rel=1e-3)
    objective = small.distillation(tiny, base, preset="tinybert")
    assert job.parameters == count_parameters(shapes_of(tiny, objective.groups))
    frozen = jax.eval_shape(lambda theirs: held_frozen(objective, {}, [theirs]), shapes_of(base))
    assert job.teacher == pytest.approx(sharding.held_bytes(mesh, frozen), rel=1e-3)
    word = frozen["teachers"][0]["embeddings"]["word"]
    assert job.words == pytest.approx(sharding.held_bytes(mesh, word), rel=1e-3)


def test_adam_waits_for_the_gradients_and_memory_is_as_busy_on_many_devices():
    machine, job = scaling.MACHINES["TPU v5e"], scaling.Job()
    alone = scaling.step(machine, 256, 256)
    assert alone["step"] == pytest.approx(
        max(alone["compute"], alone["exchange"]) + alone["adam"] + alone["checkpoint"]
    )
    # Memory is passed over as often on any number of devices, and in parts along fsdp.
    assert scaling.step(machine, 8, 256)["memory"] == alone["memory"]
    assert scaling.step(machine, 8, 256, 8)["adam"] == pytest.approx(alone["adam"] / 8)
    # A pod sends by four ports what eight in a ring send by two.
    assert machine.sends(256) == 2 * machine.sends(8) == 200e9
    assert sum(scaling.sent(1, 256, 1, job)) == 0


def test_the_page_has_the_table_that_the_command_prints():
    page = (commands.ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    prices = {machine.name: machine.price for machine in scaling.MACHINES.values()}
    assert [line for line in scaling.table(prices) if line not in page] == []
