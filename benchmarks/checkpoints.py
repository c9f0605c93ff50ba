"""What a checkpoint costs: hashing it, waiting for it, writing it.

    python benchmarks/checkpoints.py
    python benchmarks/checkpoints.py --run=runs/general

Saves the training state of a student again and again, and takes the median of each part: the hash
of every leaf, what the loop waits for in all, and until the checkpoint lies on disk. ``--run`` says
what share of the time of a finished run's phases went into waiting for checkpoints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxbert.models.bert import PRESETS, init_params
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.optimizer import make_optimizer
from jaxbert.training.sharding import make_mesh
from jaxbert.training.step import init_state
from jaxbert.training.stored import make_record


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
    hashing, waiting, writing = [], [], []
    checkpoints = Checkpoints(folder)
    for step in range(1, repeats + 2):
        hashed = seconds(lambda: make_record(state, None, 1, {}))
        waited = seconds(lambda step=step: checkpoints.save(step, state, None, {}))
        written = waited + seconds(checkpoints.wait)
        if step > 1:  # the first one warms up
            hashing.append(hashed)
            waiting.append(waited)
            writing.append(written)
    checkpoints.close()
    hashed, waited, written = map(statistics.median, (hashing, waiting, writing))
    print(
        f"{preset}, a state of {size / 1e6:.0f} MB, median of {repeats}: hashing {hashed:.3f} s, "
        f"the loop waits {waited:.3f} s, on disk after {written:.3f} s; hashing is "
        f"{hashed / (written - hashed):.1%} of a save without it"
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
    with tempfile.TemporaryDirectory() as folder:
        measure(args.preset, args.repeats, Path(folder) / "checkpoints")


if __name__ == "__main__":
    main()
