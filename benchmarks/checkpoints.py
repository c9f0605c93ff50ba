"""What a checkpoint costs: hashing it, waiting for it, writing it.

    python benchmarks/checkpoints.py --repeats=41
    python benchmarks/checkpoints.py --run=runs/general

Saves the training state of a student again and again, in turn as a run does it, in the same way
without hashes, and by Orbax alone, and takes the medians. ``--run`` says what share of the time of
a finished run's phases went into waiting for checkpoints.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxbert.models.bert import PRESETS, init_params
from jaxbert.training import record
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.record import describe, host_leaves
from jaxbert.training.sharding import make_mesh
from jaxbert.training.step import init_state


def seconds(work: Callable[[], Any]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(preset: str, repeats: int, folder: Path) -> None:
    """Prints the medians of a preset's state."""
    params = init_params(PRESETS[preset], jax.random.key(0))
    state = init_state(params, make_optimizer(learning_rate=1e-4, steps=9), make_mesh(1, 1))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    ours, plain = Checkpoints(folder / "hashes"), Checkpoints(folder / "plain")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=True, todelete_subdir="deleted"
    )
    alone = ocp.CheckpointManager(folder / "alone", options=options)
    known = describe(host_leaves(state))

    def save_alone(step: int) -> None:
        shutil.rmtree(folder / "alone" / "deleted", ignore_errors=True)
        alone.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

    ways: dict[str, tuple[Callable[[int], Any], Callable[[], Any]]] = {
        "with hashes": (lambda step: ours.save(step, state, {}), ours.wait),
        "without": (lambda step: plain.save(step, state, {}), plain.wait),
        "Orbax alone": (save_alone, alone.wait_until_finished),
    }
    waited: dict[str, list[float]] = {name: [] for name in ways}
    written: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(1, repeats + 2):
        for name, (save, wait) in ways.items():
            # The same record, but no hash is made of the leaves.
            record.describe = (lambda leaves: known) if name == "without" else describe
            began = time.perf_counter()
            until_next = seconds(lambda save=save, step=step: save(step))
            wait()
            if step > 1:  # the first one warms up
                waited[name].append(until_next)
                written[name].append(time.perf_counter() - began)
    hashing = [seconds(lambda: describe(host_leaves(state))) for _ in range(repeats)]
    for each in (ours, plain, alone):
        each.close()
    print(f"{preset}, a state of {size / 1e6:.0f} MB, median of {repeats}")
    for name in ways:
        wait_text, write_text = (statistics.median(t[name]) for t in (waited, written))
        print(f"{name}: the loop waits {wait_text:.3f} s, on disk after {write_text:.3f} s")
    ours_took, plain_took = (statistics.median(written[n]) for n in ("with hashes", "without"))
    print(
        f"hashing by itself {statistics.median(hashing):.3f} s; a save with hashes takes "
        f"{ours_took / plain_took - 1:+.1%} of one without"
    )


def report(run: Path) -> None:
    """Prints what of each phase's time went into waiting for checkpoints."""
    for name, phase in json.loads((run / "summary.json").read_text())["phases"].items():
        share = phase["saving"] / phase["seconds"]
        print(f"{name}: waited {phase['saving']:.2f} s of {phase['seconds']:.0f} s, {share:.2%}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run's folder")
    parser.add_argument("--preset", default="tinybert4", choices=sorted(PRESETS))
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    if args.run:
        report(args.run)
        return
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="orbax")
    with tempfile.TemporaryDirectory() as folder:
        measure(args.preset, args.repeats, Path(folder))


if __name__ == "__main__":
    main()
