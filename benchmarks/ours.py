"""The same work by jaxbert's own objective, packing and step; asked by ``against_torch.py``."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import works

from jaxbert import presets
from jaxbert.batch import Batch
from jaxbert.config import TermConfig
from jaxbert.data.examples import Examples
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.interop.layout import from_tensors
from jaxbert.memory import give_back
from jaxbert.models.bert import BertConfig
from jaxbert.models.linear import hold_operands
from jaxbert.objectives.alignment import match_terms
from jaxbert.objectives.distillation import Distillation
from jaxbert.training.loop import feed, place
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.sharding import make_mesh, rows
from jaxbert.training.step import init_state, make_step

STEPS = 1_000_000  # more than anybody waits for


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """Of one call, until the device has made it; of several, one behind the other, the mean."""
    began = time.perf_counter()
    for _ in range(times):
        made = call()
    jax.block_until_ready(made)
    return (time.perf_counter() - began) / times


def product(size: int, dtype: Any) -> tuple[Callable[[], Any], float]:
    """A product of square matrices that is summed in float32, and its FLOPs."""
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    operand = jnp.ones((size, size), dtype)
    return lambda: multiply(operand, operand), 2.0 * size**3


class Side:
    """A phase under way.

    Args:
      folder: of the work.
      dtype: of the products' operands.
      cached: whether the teacher's predictions are asked once, before.
    """

    def __init__(self, folder: Path, dtype: str, cached: bool) -> None:
        self.folder, work = folder, works.read(folder)
        self.work = work
        examples = works.read_examples(folder)
        labels = np.zeros(len(examples), np.int32) if work.num_labels else None
        held = Examples.join(examples, labels=labels)
        size = {"batch_size": work.batch_size, "row_length": work.length}
        self.batches = PackedBatches(held, **size, seed=0)
        self.mesh = make_mesh(data=1)
        student, teacher = (works.config_of(work, who, dtype) for who in ("student", "teacher"))
        terms = presets.PRESETS["logits" if work.num_labels else "tinybert"]
        matches = match_terms(
            {name: TermConfig(**term) for name, term in terms.items()}, student, (teacher,)
        )
        self.objective = Distillation(student, (teacher,), matches)
        mine = self.first_values()
        theirs = self.values("teacher", teacher, self.objective.groups_read(0))
        self.frozen = jax.device_put({"teachers": (hold_operands(theirs, teacher.dtype),)})
        optimizer = make_optimizer(
            learning_rate=work.learning_rate, steps=STEPS, warmup_ratio=0.0, schedule="constant"
        )
        self.state = init_state(mine, optimizer, self.mesh)
        self.step = make_step(self.objective, optimizer, self.mesh, self.state, seed=0, phase=0)
        self.teach = jax.jit(self.objective.teach)
        self.cached = cached
        self.stream = feed(iterate(self.batches, 0, STEPS), rows(self.mesh))

    def first_values(self) -> Any:
        """What the student begins with."""
        return self.values("student", self.objective.student, self.objective.groups)

    def values(self, who: str, config: BertConfig, groups: Sequence[str]) -> Any:
        """The first values of a model."""
        tensors = safetensors.numpy.load_file(self.folder / f"{who}.safetensors")
        return from_tensors(config, groups, tensors.__getitem__)

    def steps(self, count: int) -> dict[str, Any]:
        """Makes updates; what they took, and what of it a teacher that is asked before them."""
        began, examples, real, asked = time.perf_counter(), 0, 0, 0.0
        drawn: Iterable[tuple[Batch, Batch, float]] = itertools.islice(self.stream, count)
        if self.cached:
            drawn = list(drawn)  # a wait for batches is none for the teacher
            asking = time.perf_counter()
            drawn = [(batch, self.with_words(placed), at) for batch, placed, at in drawn]
            asked = time.perf_counter() - asking
        frozen = {} if self.cached else self.frozen
        for batch, placed, _ in drawn:
            self.state, metrics = self.step(self.state, frozen, placed)
            examples += int(batch.weights.sum())
            real += int(np.count_nonzero(batch.segments))
        last = float(metrics["loss"].mean())  # waits for the device
        return {
            "seconds": time.perf_counter() - began,
            "asked": asked,
            "examples": examples,
            "real_tokens": real,
            "loss": last,
            "memory": self.memory(),
        }

    def with_words(self, batch: Batch) -> Batch:
        """The batch with what its teacher says of it."""
        said = jax.block_until_ready(self.teach(self.frozen, batch))
        return dataclasses.replace(batch, taught=said)

    def first(self, count: int) -> dict[str, Any]:
        """The loss of the first examples at the first values.

        To be asked last: it runs operation by operation, and what compiling each leaves behind
        would count as memory of the step.
        """
        source = self.batches.source.gather(np.arange(count))
        size = {"batch_size": count, "row_length": self.work.length}
        batch = PackedBatches(source, **size, seed=0)[0]
        key = jax.random.key(0)
        placed = place(batch, rows(self.mesh))
        terms = self.objective(self.first_values(), self.frozen, placed, key)
        weights = self.objective.weights(jnp.int32(0))
        return {"loss": float(sum(w * terms[name].mean() for name, w in weights.items()))}

    def product(self, size: int) -> dict[str, Any]:
        """The rate of a large bfloat16 product on this device."""
        call, flops = product(size, jnp.bfloat16)
        seconds(call)  # compiles
        took = statistics.median(seconds(call, times=10) for _ in range(10))
        return {"flops_per_second": flops / took}

    def settle(self, _: int) -> dict[str, Any]:
        """What train.py does once a step has been compiled; memory counts from here."""
        give_back()
        works.forget_peak()
        return {}

    def memory(self) -> int:
        """Bytes at most: of the GPU, else of the process."""
        if (stats := jax.devices()[0].memory_stats()) is not None:
            return stats["peak_bytes_in_use"]
        return works.peak_memory()


def main() -> None:
    """Answers lines of JSON, ``["steps", 5]`` or ``["first", 32]``, one each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--cached", action="store_true")
    args = parser.parse_args()
    side = Side(args.work, args.dtype, args.cached)
    for line in sys.stdin:
        name, count = json.loads(line)
        print(json.dumps(getattr(side, name)(count)), flush=True)


if __name__ == "__main__":
    main()
