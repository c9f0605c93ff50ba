"""A process of several that train together: says what it makes and holds, and the losses."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
from small import OBJECTIVES, examples, trained

from jaxbert.data.examples import Examples
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.training import sharding
from jaxbert.training.loop import count_tokens, place
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.step import init_state, make_step

STEPS = 3


class Counted:
    """Examples that know which of them were asked for."""

    def __init__(self, source: Examples) -> None:
        self._source, self.gathered = source, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, ids: np.ndarray) -> Examples:
        self.gathered += ids.tolist()
        return self._source.gather(ids)


def make_batches() -> PackedBatches:
    """Rows of unequal fill, for two devices."""
    source = Counted(examples([9, 3, 12, 5, 7, 2, 4, 16] * 3))
    return PackedBatches(source, batch_size=9, row_length=16, seed=1, multiple=2)


def train(data: int, model: int = 1) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Trains on a mesh of so many devices.

    Returns:
      ``STEP/LEAF/ROW`` -> the rows of a leaf of a batch from that one on, as a device of this
      process holds them; and the loss of each step, the examples that this process has gathered,
      in order, and the real tokens that it has counted.
    """
    mesh = sharding.make_mesh(data, model)
    objective = OBJECTIVES["finetune"]
    optimizer = make_optimizer(learning_rate=1e-2, steps=100, warmup_ratio=0.0, schedule="constant")
    state = init_state(trained(objective), optimizer, mesh)
    step = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
    parts, losses, tokens = {}, [], 0
    batches, layout = make_batches(), sharding.rows(mesh)
    held = sharding.HeldRows.of(layout, batches.rows)
    for number, batch in enumerate(iterate(batches, 0, STEPS, rows=held.rows, threads=0)):
        placed = place(batch, layout, held)
        tokens += count_tokens(batch, placed, held)
        for leaf, array in enumerate(jax.tree.leaves(placed)):
            for shard in array.addressable_shards:
                parts[f"{number}/{leaf}/{shard.index[0].start or 0}"] = np.asarray(shard.data)
        state, metrics = step(state, {}, placed)
        losses.append(float(metrics["loss"].total))
    return parts, {"losses": losses, "gathered": batches.source.gathered, "tokens": tokens}


if __name__ == "__main__":
    address, count, index, out = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(index))
    assert (jax.process_count(), len(jax.local_devices())) == (2, 1)
    parts, said = train(2)
    _, alike = train(1, model=2)  # both hold every row
    np.savez(out, **said, alike_losses=alike["losses"], alike_tokens=alike["tokens"], **parts)
