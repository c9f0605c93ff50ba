"""Accuracy over seeds: the README's three commands once a seed, then mean and spread.

    python benchmarks/quality.py --seeds 0 1 2
    python benchmarks/quality.py --seeds 0 1 2 --recipe full

Finished runs are kept, so that the same command again continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(recipe: str, seed: int, folder: Path, extra: list[str]) -> list[list[str]]:
    """The three commands of one seed."""
    suffix = f":{recipe}" if recipe else ""
    general, task = folder / "general", folder / "task"
    train = [sys.executable, str(ROOT / "train.py"), f"--config.seed={seed}", *extra]
    return [
        [*train, f"--config=configs/tinybert_general.py{suffix}", f"--workdir={general}"],
        [
            *train,
            f"--config=configs/tinybert_task.py{suffix}",
            f"--workdir={task}",
            f"--config.init_from={general}",
        ],
        [sys.executable, str(ROOT / "eval.py"), f"--workdir={task}"],
    ]


def minutes(folder: Path) -> dict[str, float]:
    """Minutes in the loop of each phase of a seed."""
    found = {}
    for name in ("general", "task"):
        summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
        found |= {phase: record["seconds"] / 60 for phase, record in summary["phases"].items()}
    return found


def main() -> None:
    """Runs every seed and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="", help="an argument of both recipes, such as full")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--extra", nargs="*", default=[], help="--config. flags of both stages")
    args = parser.parse_args()
    scores: dict[str, list[float]] = {}
    for seed in args.seeds:
        folder = (args.folder / (args.recipe or "default") / f"seed{seed}").absolute()
        for command in commands(args.recipe, seed, folder, args.extra):
            subprocess.run(command, check=True, cwd=ROOT)
        found = json.loads((folder / "task" / "eval.json").read_text(encoding="utf-8"))["models"]
        for model, values in found.items():
            scores.setdefault(model, []).append(values["accuracy"])
        print(f"seed {seed}:", {phase: round(m, 1) for phase, m in minutes(folder).items()})
    print(f"\n{'model':28} {'mean':>6} {'sd':>6}  each seed {args.seeds}")
    for model, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        each = " ".join(f"{value:.4f}" for value in values)
        print(f"{model:28} {statistics.mean(values):6.4f} {spread:6.4f}  {each}")


if __name__ == "__main__":
    main()
