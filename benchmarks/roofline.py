"""How near a step comes to what its machine can do at most, for the works of ``against_torch.py``.

    python benchmarks/roofline.py --glue=data/glue

Measured in turns, in one process: the step, with operands that the device multiplies faster, a
large product of matrices in bfloat16 and in float32, and a copy of an array that no cache holds.
From these two bounds follow: by the FLOPs of the step's products (``jaxbert/training/cost.py``)
over the rate of the large one of such operands, and by the bytes that must pass through memory once
an update: the state read and written, the gradients written and read, the frozen values read but
for the word table. What lies between products comes on top of both, so that no step reaches either.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import against_torch
import jax
import jax.numpy as jnp
import ours

from jaxbert.memory import use_huge_pages
from jaxbert.training.cost import step_flops
from jaxbert.training.optimizer import path_name


def probes(size: int, megabytes: int) -> dict[str, tuple[Callable[[], Any], float]]:
    """What bounds a machine: calls, and how much each does: FLOPs of a product, bytes of a copy."""
    much = jnp.ones(megabytes * 250_000, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    def pass_over() -> Any:  # in place: fresh pages are another matter
        nonlocal much
        much = copy(much)
        return much

    return {
        "bfloat16": ours.product(size, jnp.bfloat16),
        "float32": ours.product(size, jnp.float32),
        "memory": (pass_over, 2.0 * much.nbytes),
    }


def measure(name: str, dtype: str, args: argparse.Namespace) -> dict[str, float]:
    """Medians of a work's step and of the probes, and the bounds: seconds, FLOPs and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        work = against_torch.make(name, args, Path(folder))
        side = ours.Side(Path(folder), dtype, cached=name == "predictions")
        batch, placed, _ = next(side.stream)
        frozen: Any = side.frozen
        if side.cached:
            placed, frozen = side.with_words(placed), {}
        flops = step_flops(side.step, side.state, frozen, placed)
        held = {k: sum(x.nbytes for x in jax.tree.leaves(v)) for k, v in vars(side.state).items()}
        paths, _ = jax.tree_util.tree_flatten_with_path(frozen)
        read = sum(x.nbytes for path, x in paths if not path_name(path).endswith("embeddings/word"))

        def update() -> Any:
            side.state, metrics = side.step(side.state, frozen, placed)
            return metrics

        calls = {"step": (update, float(flops))} | probes(args.size, args.megabytes)
        for call, _ in calls.values():
            ours.seconds(call)  # compiles
        found: dict[str, list[float]] = {which: [] for which in calls}
        for _ in range(args.rounds):
            for which, (call, _) in calls.items():
                found[which].append(ours.seconds(call))
    took = {which: statistics.median(times) for which, times in found.items()}
    rate = {which: much / took[which] for which, (_, much) in calls.items()}
    moved = 2 * sum(held.values()) + 2 * held["params"] + read
    return {
        "rows": float(len(batch.tokens)),
        "length": float(work.length),
        "flops": float(flops),
        "bytes": float(moved),
        "step": took["step"],
        "products": flops / rate[dtype],
        "memory": moved / rate["memory"],
        "float32": rate["float32"],
        "bfloat16": rate["bfloat16"],
        "bandwidth": rate["memory"],
    }


def main() -> None:
    """Prints a row for each work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    against_torch.add_works(parser)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=3072, help="of the large product's matrices")
    parser.add_argument("--megabytes", type=int, default=512, help="of the copied array")
    args = parser.parse_args()
    print(
        "| work | rows | operands | GFLOP | MB | step, ms | products, ms | share | memory, ms "
        "| bfloat16, GFLOP/s | float32 | memory, GB/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    dtype = against_torch.dtype_here(jax.default_backend())
    for name in args.works:
        m = measure(name, dtype, args)
        cells = [
            name,
            f"{m['rows']:.0f} x {m['length']:.0f}",
            dtype,
            f"{m['flops'] / 1e9:,.0f}",
            f"{m['bytes'] / 1e6:,.0f}",
            f"{m['step'] * 1e3:,.0f}",
            f"{m['products'] * 1e3:,.0f}",
            f"{m['products'] / m['step']:.0%}",
            f"{m['memory'] * 1e3:,.0f}",
            f"{m['bfloat16'] / 1e9:,.0f}",
            f"{m['float32'] / 1e9:,.0f}",
            f"{m['bandwidth'] / 1e9:,.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    use_huge_pages()  # as train.py has them
    main()
