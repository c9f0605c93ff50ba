"""What a checkpoint costs: hashing it, waiting for it, writing it, and what that takes from a run.

    python benchmarks/checkpoints.py --repeats=41
    python benchmarks/checkpoints.py --run=runs/general
    python benchmarks/checkpoints.py --wall --steps=60 --every=4 --repeats=3

Saves the training state of a student again and again, in turn as a run does it, in the same way
without hashes, and by Orbax alone, and takes the medians. ``--run`` says what share of the time of
a finished run's phases went into waiting for checkpoints. What writes beside the steps takes cores
from them, too: ``--wall`` runs the quickstart's first stage as a user does, shortened, in turn with
checkpoints far closer than the recipe's and with the last one alone, and says what one more takes
of the whole command's seconds and of its processors', and what share that is at the recipe's own
interval.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxbert.models.bert import PRESETS, init_params
from jaxbert.recipe import load_recipe, resolve
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


RECIPE = "configs/tinybert_general.py"
ROOT = Path(__file__).parents[1]


def train(workdir: Path, steps: int, every: int) -> tuple[float, float, float]:
    """Runs the first stage: seconds of the command, of its processors, and of a step."""
    flags = {"steps": steps, "checkpoint_every": every}
    words = [sys.executable, "train.py", f"--config={RECIPE}", f"--workdir={workdir}"]
    words += [f"--config.general.{key}={value}" for key, value in flags.items()]
    environment = os.environ | {"JAXBERT_CACHE": str(workdir.parent / "cache")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = seconds(
        lambda: subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=True)
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]  # the first steps compile
    step = (last["seconds"] - first["seconds"]) / max(last["step"] - first["step"], 1)
    shutil.rmtree(workdir)
    return wall, cpu, step


def compare(steps: int, every: int, repeats: int, folder: Path) -> None:
    """Prints what one more checkpoint takes of a run, and its share at the recipe's interval."""
    interval = resolve(load_recipe(RECIPE), {}).sections["general"].checkpoint_every
    more = (steps - 1) // every  # than the last one, which all runs write
    train(folder / "run", every, every)  # text is tokenised, programs are compiled
    pairs = []
    for turn in range(repeats):
        order = (every, 0) if turn % 2 else (0, every)
        found = {each: train(folder / "run", steps, each) for each in order}
        pairs.append((found[every], found[0]))
        print(f"with: {found[every]}, without: {found[0]}", flush=True)
    step, cores = (
        statistics.median(without[2] for _, without in pairs),
        len(os.sched_getaffinity(0)),
    )
    print(f"a step takes {step:.3f} s; {repeats} pairs of runs, {more} more checkpoints in each")
    for index, (name, share) in enumerate({"wall time": 1, "processor time": cores}.items()):
        extra = [(both[0][index] - both[1][index]) / more for both in pairs]
        middle = statistics.median(extra)
        print(
            f"{name}: one more checkpoint takes {middle:.3f} s ({min(extra):.3f} to "
            f"{max(extra):.3f}), every {interval} steps {middle / (interval * step * share):.2%}"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run's folder")
    parser.add_argument("--preset", default="tinybert4", choices=sorted(PRESETS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--wall", action="store_true", help="whole runs, with and without")
    parser.add_argument("--steps", type=int, default=60, help="of such a run")
    parser.add_argument("--every", type=int, default=4, help="steps between its checkpoints")
    args = parser.parse_args()
    if args.run:
        report(args.run)
        return
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="orbax")
    with tempfile.TemporaryDirectory() as folder:
        if args.wall:
            compare(args.steps, args.every, args.repeats, Path(folder))
        else:
            measure(args.preset, args.repeats, Path(folder))


if __name__ == "__main__":
    main()
