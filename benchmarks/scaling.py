"""What a step of stage 1 takes on many devices, by arithmetic, and how far compiled steps agree.

    python benchmarks/scaling.py            # the table of docs/scaling.md
    python benchmarks/scaling.py --check    # compiled steps on 1, 2, 4 and 8 CPU devices beside it

A step's time is the largest of what can overlap (compute with the exchange of gradients, both with
the input), each by one quotient: model FLOPs over a share of the peak; bytes of a ring all-reduce
over a link; a host's tokens over what its pipeline makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re

TOKENS = 320_000 * 256 * 127  # of the recipe `:paper`: three epochs of English Wikipedia
HOST_TOKENS = 3.4e6  # a second, one thread of `benchmarks/pipeline.py` from a prepared folder
SHARE = 0.234  # of the maker's peak: 232 of 989 TFLOP/s on one H200 (docs/performance.md)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What its maker says.

    Attributes:
      name: of the accelerator.
      peak: bfloat16 FLOPs a second.
      link: bytes a second that one device sends to its neighbour.
      host: devices of one host, which has one process.
    """

    name: str
    peak: float
    link: float
    host: int


MACHINES = {
    # One direction of the interconnect, half of what is said for both.
    "TPU v5e": Machine("TPU v5e", 197e12, 100e9, 8),
    "TPU v5p": Machine("TPU v5p", 459e12, 300e9, 4),
    # Between hosts one 400 Gb/s adapter each; NVLink within a host is faster.
    "H100": Machine("H100", 989e12, 50e9, 8),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """Stage 1 with BERT-base and 4 x 312.

    Attributes:
      flops: of the models, a real token.
      parameters: that are trained.
    """

    flops: float = 203.8e6
    parameters: int = 14_590_632


def step(machine: Machine, devices: int, batch: int, job: Job = Job()) -> dict[str, float]:
    """Seconds of the parts of a step, and of the whole.

    Args:
      machine: the accelerator.
      devices: how many.
      batch: examples of 127 real tokens an update.
      job: the work.
    """
    tokens = batch * 127
    compute = tokens * job.flops / (devices * machine.peak * SHARE)
    exchange = 2 * (devices - 1) / devices * 4 * job.parameters / machine.link
    hosts = -(-devices // machine.host)
    feed = tokens / hosts / HOST_TOKENS  # every host makes the rows of its own devices
    return {
        "compute": compute,
        "exchange": exchange,
        "input": feed,
        "step": max(compute, exchange, feed),
    }


def table() -> list[str]:
    """Lines of a Markdown table."""
    rows = [
        "| devices | examples an update | compute, ms | exchange, ms | input, ms | tokens/s | "
        "hours of the paper's recipe | bound by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, counts in (("TPU v5e", (8, 256)), ("TPU v5p", (1024,)), ("H100", (1, 8, 64, 256))):
        for devices in counts:
            for batch in dict.fromkeys((256, 32 * devices)):
                if batch < max(devices, 256):
                    continue
                parts = step(MACHINES[name], devices, batch)
                rate = batch * 127 / parts["step"]
                bound = max(("compute", "exchange", "input"), key=parts.__getitem__)
                cells = [f"{devices} x {name}", f"{batch:,}"]
                cells += [f"{1e3 * parts[k]:.2f}" for k in ("compute", "exchange", "input")]
                cells += [f"{rate / 1e6:.1f} M", f"{TOKENS / rate / 3600:.2f}", bound]
                rows.append(f"| {' | '.join(cells)} |")
    return rows


def check() -> list[str]:
    """Of compiled steps on CPU devices, against the model: FLOPs, what is exchanged, what is made.

    What a process makes is counted as if each device had a process of its own.
    """
    import jax
    import numpy as np

    from jaxbert import presets
    from jaxbert.config import TermConfig
    from jaxbert.data.examples import Examples
    from jaxbert.data.packing import PackedBatches
    from jaxbert.evaluation.flops import forward_flops
    from jaxbert.models.bert import BertConfig, init_params
    from jaxbert.objectives.alignment import match_terms
    from jaxbert.objectives.distillation import Distillation
    from jaxbert.training import sharding
    from jaxbert.training.loop import place
    from jaxbert.training.optimizer import make_optimizer
    from jaxbert.training.step import init_state, make_step

    off = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "num_heads": 4, "vocab_size": 256}
    teacher = BertConfig(hidden_size=128, num_layers=4, intermediate_size=512, **off)
    student = BertConfig(
        hidden_size=64, num_layers=2, intermediate_size=256, projection_size=128, **off
    )
    terms = {name: TermConfig(**term) for name, term in presets.PRESETS["tinybert"].items()}
    objective = Distillation(student, (teacher,), match_terms(terms, student, (teacher,)))
    mine = init_params(student, jax.random.key(0), objective.groups)
    theirs = init_params(teacher, jax.random.key(1), objective.groups_read(0))
    rng = np.random.default_rng(0)
    examples = Examples.join([rng.integers(5, 256, 64) for _ in range(32)])
    batches = PackedBatches(examples, batch_size=32, row_length=64, seed=0)
    model = 32 * (
        forward_flops(teacher, 64, head=False) + 3 * forward_flops(student, 64, head=False)
    )
    trained = sum(x.size for x in jax.tree.leaves(mine))
    rows = [
        "| mesh | FLOPs a device / the model's | all-reduced / trained scalars | others | "
        "tokens that a process makes / its share |",
        "|---|---|---|---|---|",
    ]
    for data in (1, 2, 4, 8):
        mesh = sharding.make_mesh(data)
        optimizer = make_optimizer(learning_rate=1e-4, steps=10)
        state = init_state(mine, optimizer, mesh)
        jitted = make_step(objective, optimizer, mesh, state, seed=0, phase=0)
        frozen = {"teachers": (theirs,)}
        frozen = jax.device_put(frozen, sharding.tree_shardings(mesh, frozen))
        layout, whole = sharding.rows(mesh), batches[0]
        batch = place(whole, layout)
        shares = layout.devices_indices_map((batches.rows,)).values()
        parts = [batches.take(0, np.arange(batches.rows)[share]) for share in shares]
        made = max(np.count_nonzero(part.segments) for part in parts)
        made /= np.count_nonzero(whole.segments) / data
        compiled = jitted.lower(state, frozen, batch).compile()
        flops = compiled.cost_analysis()["flops"]
        text = compiled.as_text()
        lines = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
        moved = sum(
            int(np.prod([int(n) for n in dims.split(",") if n]))
            for line in lines
            for dims in re.findall(r"f32\[([\d,]*)\]", line)
        )
        others = len(re.findall(r" (?:all-gather|reduce-scatter|all-to-all)(?:-start)?\(", text))
        cells = [f"{data}", f"{flops / (model / data):.2f}", f"{moved / trained:.3f}", f"{others}"]
        rows.append(f"| {' | '.join([*cells, f'{made:.2f}'])} |")
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compile steps on CPU devices")
    args = parser.parse_args()
    if args.check:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    print("\n".join(check() if args.check else table()))


if __name__ == "__main__":
    main()
