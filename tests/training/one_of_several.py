"""A process of several that train together: says what it holds of each batch, and the losses."""

from __future__ import annotations

import sys

import jax
import numpy as np
from small import OBJECTIVES, examples, trained

from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.training import sharding
from jaxbert.training.loop import place
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state, make_step

STEPS = 3


def make_batches() -> PackedBatches:
    """Rows of unequal fill, for two devices."""
    lengths = [9, 3, 12, 5, 7, 2, 4, 16] * 3
    return PackedBatches(examples(lengths), batch_size=9, row_length=16, seed=1, multiple=2)


def train(data: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """Trains on a mesh of so many devices.

    Returns:
      ``STEP/LEAF/ROW`` -> the rows of a leaf of a batch from that one on, as a device of this
      process holds them; and the loss of each step.
    """
    mesh = sharding.make_mesh(data)
    objective = OBJECTIVES["finetune"]
    optimizer = make_optimizer(learning_rate=1e-2, steps=100, warmup_ratio=0.0, schedule="constant")
    state = init_state(trained(objective), optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
    held, losses = {}, []
    for number, batch in enumerate(iterate(make_batches(), 0, STEPS)):
        placed = place(batch, sharding.rows(mesh))
        for leaf, array in enumerate(jax.tree.leaves(placed)):
            for shard in array.addressable_shards:
                held[f"{number}/{leaf}/{shard.index[0].start or 0}"] = np.asarray(shard.data)
        state, metrics = step(state, {}, placed)
        losses.append(float(metrics["loss"].total))
    return held, losses


if __name__ == "__main__":
    address, count, index, out = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(index))
    assert (jax.process_count(), len(jax.local_devices())) == (2, 1)
    held, losses = train(2)
    np.savez(out, losses=losses, **held)
