"""What huge pages are worth: stage 1 of the default recipe, with and without them, in turns.

    python benchmarks/huge_pages.py

The rate is that of the second half of a short run, without what starts and compiles; page faults
are the whole command's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = {"4 kB pages": "0", "huge pages": "1"}


def measure(setting: str, steps: int) -> tuple[float, int]:
    """Real tokens a second over the second half of a short run, and page faults in all of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    half = steps // 2
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--config=configs/tinybert_general.py"]
        command += [f"--workdir={folder}/run", "--config.num_documents=600"]
        command += [f"--config.general.steps={2 * half}", f"--config.log_every={half}"]
        command += ["--config.general.checkpoint_every=0"]
        tunable = f"glibc.malloc.hugetlb={setting}"
        environment = os.environ | {"GLIBC_TUNABLES": tunable}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = (json.loads(line) for line in lines[:2])
    rate = (last["real_tokens"] - first["real_tokens"]) / (last["seconds"] - first["seconds"])
    return rate, resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - before


def main() -> None:
    """Runs both settings in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, setting in SETTINGS.items():
            found, faults = measure(setting, args.steps)
            rates[name].append(found)
            print(f"{name:12} {found:8,.0f} real tokens/s {faults:12,} page faults", flush=True)
    small, huge = (statistics.median(rates[name]) for name in SETTINGS)
    print(f"medians {small:,.0f} and {huge:,.0f} real tokens/s: {huge / small:.2f} times")


if __name__ == "__main__":
    main()
