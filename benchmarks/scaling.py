"""What a step of stage 1 takes on many devices, by arithmetic, and how far compiled steps agree.

    python benchmarks/scaling.py            # the table of docs/scaling.md
    python benchmarks/scaling.py --check    # compiled steps on up to 8 CPU devices beside it
    python benchmarks/scaling.py --memory   # what a device holds of BERT-large

A step's time is the largest of what can overlap, each by one quotient: model FLOPs over a share of
the peak; bytes that must pass through a device's memory; bytes that a device sends over its links;
a host's tokens over what its pipeline makes. Adam waits for the last of the gradients, and a loop
for its checkpoints: they come on top.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

LENGTH = 127  # real tokens of a span
EXAMPLES = 320_000 * 256  # of the recipe `:paper`: three epochs of English Wikipedia
HOST_TOKENS = 3.4e6  # a second, one thread of `benchmarks/pipeline.py` from a prepared folder
# Of the maker's peak: 240 of 989 TFLOP/s on one H200, with 256 rows (docs/performance.md).
SHARE = 0.243
SAVED_EVERY = 1_000  # updates between checkpoints, as in that recipe
SAVING = 0.12  # seconds that the loop waits for one, and
WRITING = 172e6 / 0.43  # bytes a second to the disk meanwhile (docs/reliability.md)
FEATURES = {"hidden": "hidden", "embedding": "embeddings"}
ROWS, POSITIONS = 32, 128  # of a device, and of a row


@dataclasses.dataclass(frozen=True)
class Machine:
    """What its maker says.

    Attributes:
      name: of the accelerator.
      peak: bfloat16 FLOPs a second.
      memory: bytes a second between a device and its memory.
      port: bytes a second that a device sends through one of its ports.
      ports: how many it has.
      host: devices of one host, which has one process.
      price: US dollars for an hour of one device, an example of what clouds ask.
    """

    name: str
    peak: float
    memory: float
    port: float
    ports: int
    host: int
    price: float

    def sends(self, group: int) -> float:
        """Bytes a second that a device sends to others of its group.

        Eight and fewer are a ring, of two neighbours each; more lie on a torus and use all ports.
        """
        return self.port * min(self.ports, 2 if group <= 8 else self.ports)


MACHINES = {
    # 400 and 1,200 GB/s a chip in both directions together, by four ports of a torus of two
    # dimensions and six of one of three ("System architecture" of docs.cloud.google.com/tpu).
    "TPU v5e": Machine("TPU v5e", 197e12, 819e9, 50e9, 4, 8, 1.20),
    "TPU v5p": Machine("TPU v5p", 459e12, 2765e9, 100e9, 6, 4, 4.20),
    # Between hosts one 400 Gb/s adapter each; NVLink within a host is faster.
    "H100": Machine("H100", 989e12, 3350e9, 50e9, 1, 8, 3.00),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """Stage 1 with BERT-base and 4 x 312.

    Attributes:
      flops: of the models, a real token.
      parameters: that are trained.
      teacher: bytes of what is held of the teacher: matrices in bfloat16, tables in float32.
      words: of these, its word table, of which a step reads a few rows.
      vectors: bytes of the words of a position, the teacher's, the student's and the gradient.
    """

    flops: float = 211.0e6
    parameters: int = 14_492_976
    teacher: float = 265.8e6
    words: float = 93.8e6
    vectors: float = 4 * (768 + 2 * 312)


def sent(devices: int, batch: int, fsdp: int, job: Job) -> tuple[float, float]:
    """Bytes that a device sends in a step along ``data`` and ``fsdp``, all exchanges by rings.

    As compiled steps have it: along ``fsdp`` parameters, and the teacher's, are gathered once and
    gradients added up as a whole; words that are held in parts are sent to who looks them up. Along
    ``data`` the gradients of those parts are added up that a device keeps.
    """
    trained, data = 4 * job.parameters, devices // fsdp
    looked_up = batch / devices * POSITIONS * job.vectors
    inside = (fsdp - 1) / fsdp * (2 * trained + trained + job.teacher + looked_up)
    return 2 * (data - 1) / data * trained / fsdp, inside


def traffic(fsdp: int, job: Job) -> tuple[float, float]:
    """Bytes that must pass through a device's memory in a step, without activations.

    Until gradients are added up, and in Adam: the frozen values are read, but for the words, and
    gradients written; then these are read, and the state is read and written.
    """
    trained = 4 * job.parameters
    return job.teacher - job.words + trained, (1 + 2 * 3) * trained / fsdp


def step(
    machine: Machine, devices: int, batch: int, fsdp: int = 1, job: Job = Job()
) -> dict[str, float]:
    """Seconds of the parts of a step, and of the whole; ``adam`` is within ``memory``.

    Args:
      machine: the accelerator.
      devices: how many.
      batch: examples of 127 real tokens an update.
      fsdp: of the devices, those that hold one state together.
      job: the work.
    """
    tokens = batch * LENGTH
    hosts = -(-devices // machine.host)
    along_data, along_fsdp = sent(devices, batch, fsdp, job)
    before, adam = (passed / machine.memory for passed in traffic(fsdp, job))
    parts = {
        "compute": tokens * job.flops / (devices * machine.peak * SHARE),
        "memory": before + adam,
        "adam": adam,
        "exchange": along_data / machine.sends(devices // fsdp) + along_fsdp / machine.sends(fsdp),
        "input": tokens / hosts / HOST_TOKENS,  # every host makes the rows of its own devices
    }
    longest = max(max(parts["compute"], before, parts["exchange"]) + adam, parts["input"])
    # A save waits until the one before it is written.
    behind = 12 * job.parameters / WRITING - SAVED_EVERY * longest
    parts["checkpoint"] = (SAVING + max(behind, 0.0)) / SAVED_EVERY
    return parts | {"step": longest + parts["checkpoint"]}


def table(prices: dict[str, float], job: Job = Job()) -> list[str]:
    """Lines of a Markdown table."""
    rows = [
        "| devices | data x fsdp | examples an update | compute, ms | memory, ms | of it Adam, ms "
        "| exchange, MB | exchange, ms | input, ms | checkpoints, ms | tokens/s "
        "| hours of the paper's recipe | US dollars | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, counts in (("TPU v5e", (8, 256)), ("TPU v5p", (1024,)), ("H100", (1, 8, 64, 256))):
        for devices in counts:
            # As the recipe has it, with as many examples a device as one host has then, and that
            # with the state in parts on every host's devices.
            large = (32 * devices, 1), (32 * devices, 8)
            for batch, fsdp in dict.fromkeys(((256, 1), *large)):
                if batch < max(devices, 256) or devices % fsdp:
                    continue
                parts = step(MACHINES[name], devices, batch, fsdp, job)
                rate = batch * LENGTH / parts["step"]
                hours = EXAMPLES / batch * parts["step"] / 3600
                bound = max(("compute", "memory", "exchange", "input"), key=parts.__getitem__)
                cells = [f"{devices} x {name}", f"{devices // fsdp} x {fsdp}", f"{batch:,}"]
                cells += [f"{1e3 * parts[k]:.2f}" for k in ("compute", "memory", "adam")]
                cells += [f"{sum(sent(devices, batch, fsdp, job)) / 1e6:.0f}"]
                cells += [f"{1e3 * parts[k]:.2f}" for k in ("exchange", "input", "checkpoint")]
                cells += [f"{rate / 1e6:.1f} M", f"{hours:.2f}"]
                cells += [f"{hours * devices * prices[name]:.0f}", bound]
                rows.append(f"| {' | '.join(cells)} |")
    return rows


def moved(text: str, trips: int = 1) -> dict[str, int]:
    """Scalars that the collectives of a compiled program bring to a device, by their kind.

    Args:
      text: the program; what is not in its entry computation is taken to be within one loop.
      trips: of that loop.
    """
    found = {"all-reduce": 0, "all-gather": 0, "others": 0}
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for computation in text.split("\n}\n"):
        times = 1 if "\nENTRY " in computation else trips
        for shapes, kind in re.findall(rf"= (.*) ({kinds})(?:-start)?\(", computation):
            sizes = [dims.split(",") for dims in re.findall(r"[fs]\d+\[([\d,]*)\]", shapes)]
            size = sum(math.prod(map(int, filter(None, dims))) for dims in sizes)
            found[kind if kind in found else "others"] += times * size
    return found


def held(tree: Any) -> tuple[int, int]:
    """Bytes of a tree of placed arrays: those that one device holds, and all."""
    import jax

    parts, whole = 0, 0
    for leaf in jax.tree.leaves(tree):
        parts += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        whole += leaf.size * leaf.dtype.itemsize
    return parts, whole


def check() -> Iterator[str]:
    """Of compiled steps on CPU devices, against the model: FLOPs, what is exchanged, what is made.

    What a process makes is counted as if each device had a process of its own. Lines come one by
    one, as the steps are compiled.
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

    # Twice as fast, and changes nothing of what is counted: it is LLVM that then does less.
    jax.config.update("jax_disable_most_optimizations", True)
    off = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "num_heads": 8, "vocab_size": 256}
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
    learnt = forward_flops(student, 64, head=False, projected=student.num_layers + 1)
    model = 32 * (forward_flops(teacher, 64, head=False) + 3 * learnt)
    trained = sum(x.size for x in jax.tree.leaves(mine))
    yield (
        "| data x fsdp x model | micro-batches | FLOPs a device / the model's | all-reduced / "
        "trained scalars | gathered / scalars of both models | others / trained scalars | state "
        "that a device holds | arguments by XLA / by the table of shardings | tokens that a "
        "process makes / its share |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    both = sum(x.size for x in jax.tree.leaves((mine, theirs)))
    meshes = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 8, 1), (2, 4, 1), (1, 1, 8)]
    for (data, fsdp, width), cut in [(m, 1) for m in meshes] + [((8, 1, 1), 4), ((2, 4, 1), 4)]:
        mesh = sharding.make_mesh(data, width, fsdp)
        optimizer = make_optimizer(learning_rate=1e-4, steps=10)
        state = init_state(mine, optimizer, mesh)
        jitted = make_step(objective, optimizer, mesh, state, seed=0, phase=0, accumulation=cut)
        frozen = {"teachers": (theirs,)}
        frozen = jax.device_put(frozen, sharding.tree_shardings(mesh, frozen))
        layout, whole = sharding.rows(mesh), batches[0]
        batch = place(whole, layout)
        shares = layout.devices_indices_map((batches.rows,)).values()
        parts = [batches.take(0, np.arange(batches.rows)[share]) for share in shares]
        made = max(np.count_nonzero(part.segments) for part in parts)
        made /= np.count_nonzero(whole.segments) / (data * fsdp)
        compiled = jitted.lower(state, frozen, batch).compile()
        # XLA counts the inside of a loop once.
        flops = f"{compiled.cost_analysis()['flops'] / (model / mesh.size):.2f}"
        travels = moved(compiled.as_text(), cut)
        cells = [f"{data} x {fsdp} x {width}", f"{cut}", flops if cut == 1 else "-"]
        cells += [f"{travels['all-reduce'] / trained:.3f}", f"{travels['all-gather'] / both:.3f}"]
        mine_alone, of_all = held(state)
        cells += [f"{travels['others'] / trained:.3f}", f"{mine_alone / of_all:.3f}"]
        given = compiled.memory_analysis().argument_size_in_bytes
        cells += [f"{given / held((state, frozen, batch))[0]:.3f}", f"{made:.2f}"]
        yield f"| {' | '.join(cells)} |"


def memory() -> list[str]:
    """What a device holds where BERT-large teaches, and where it is trained; nothing is compiled.

    What the backward pass reads is that of one device's rows and of whole layers: the most there
    is of it. The student has 4 layers of 312 and learns hidden states.
    """
    import jax
    import numpy as np

    from jaxbert.batch import Batch
    from jaxbert.config import TermConfig
    from jaxbert.doctor.estimate import cost_of
    from jaxbert.models.bert import PRESETS, init_params
    from jaxbert.models.linear import hold_operands
    from jaxbert.objectives.alignment import match_terms
    from jaxbert.objectives.distillation import Distillation
    from jaxbert.objectives.finetuning import Finetuning
    from jaxbert.training import sharding

    wide = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096}
    large = PRESETS["bert-base"].replace(**wide, num_labels=2, dtype="bfloat16")
    student = PRESETS["tinybert4"].replace(projection_size=1024, dtype="bfloat16")
    terms = {name: TermConfig(feature=feature) for name, feature in FEATURES.items()}
    distilled = Distillation(student, (large,), match_terms(terms, student, (large,)))
    whole, single = (jax.ShapeDtypeStruct((ROWS, n), np.int32) for n in (POSITIONS, 1))
    weights = jax.ShapeDtypeStruct((ROWS, 1), np.float32)
    batch = Batch(whole, whole, whole, whole, single, single, weights)

    def teacher() -> Any:
        theirs = init_params(large, jax.random.key(0), distilled.groups_read(0))
        return {"teachers": (hold_operands(theirs, large.dtype),)}

    rows = [
        "| BERT-large | data x fsdp x model | teacher, MB | state, MB | gradients, MB | kept for "
        "the backward pass, MB | together, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, objective, frozen in (
        ("teaches", distilled, jax.eval_shape(teacher)),
        ("is trained", Finetuning(large), {}),
    ):
        params = jax.eval_shape(
            lambda o=objective: init_params(o.model, jax.random.key(0), o.groups)
        )
        kept = cost_of(objective, params, frozen, batch, sharding.make_mesh(1)).activations
        for data, fsdp, width in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8)):
            mesh = sharding.make_mesh(data, width, fsdp)
            theirs, mine = (sharding.held_bytes(mesh, tree) for tree in (frozen, params))
            parts = theirs, 3 * mine, mine  # values and two moments; gradients
            cells = [name, f"{data} x {fsdp} x {width}"]
            cells += [f"{n / 1e6:,.0f}" for n in (*parts, kept, sum(parts) + kept)]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compile steps on CPU devices")
    parser.add_argument("--memory", action="store_true", help="what devices hold of BERT-large")
    for machine in MACHINES.values():
        flag = f"--{machine.name.lower().replace(' ', '-')}"
        text = f"dollars for an hour of one {machine.name}"
        parser.add_argument(flag, type=float, default=machine.price, dest=machine.name, help=text)
    args = parser.parse_args()
    if args.check or args.memory:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    if args.memory:
        lines: Iterable[str] = memory()
    else:
        lines = check() if args.check else table(vars(args))
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
