"""Predicts rows with a trained model: one line of JSON a row, or the files that GLUE takes.

jaxbert predict --workdir=runs/task --source=tsv:new.tsv --out=predictions.jsonl
jaxbert predict --model=run:runs/task#teacher --columns=text --source=csv:new.csv --out=p.jsonl
jaxbert predict --glue --workdir=runs/sst2 --data=glue:data/glue --out=submission
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxbert.errors import UserError
from jaxbert.files import as_path, check_writable, local_path, unwritable, whole

if TYPE_CHECKING:
    from jaxbert.data.rows import Rows
    from jaxbert.data.tasks import Task
    from jaxbert.evaluation.predictions import Predictions

HELP = "predict rows with a trained model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "--workdir", type=as_path, help="a finished run: its student, or its teacher"
    )
    parser.add_argument("--model", help="a model instead of the run's: a reference to one")
    parser.add_argument("--source", help="the rows, as task.source names them; labels are not read")
    parser.add_argument("--columns", help="their text columns, A or A,B; a run's own if absent")
    parser.add_argument(
        "--out", type=local_path, required=True, help="the file, of --glue the folder"
    )
    parser.add_argument("--max_length", type=int, help="word pieces; a run's own, or all positions")
    parser.add_argument("--batch_size", type=int, default=64, help="examples at a time")
    parser.add_argument("--glue", action="store_true", help="write the files that GLUE takes")
    parser.add_argument("--data", help="with --glue: glue:DIR, the folder of GLUE's own download")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    _check(args)
    predict = _Model(args)
    if args.glue:
        try:
            for path, count in _glue(args, predict):
                print(f"{path}: {count:,} rows", flush=True)
        except OSError as error:
            raise unwritable(args.out, error) from error
        return
    from jaxbert.data.records import files_of, parse_reference
    from jaxbert.data.unlabelled import read_unlabelled

    files = files_of(parse_reference(args.source))
    if args.out.resolve() in [path.resolve() for path in files]:
        raise UserError("the rows themselves lie there", str(args.out), "give another --out")
    rows = read_unlabelled(predict.task, args.source, predict.data_dir)
    if not len(rows):
        raise UserError("there are no rows", args.source, "give some")
    try:
        _make(args.out.parent)
        if args.out.is_dir():
            raise IsADirectoryError(f"it is a folder: '{args.out}'")
        found = predict(rows)
        with whole(args.out) as file:
            for line in _lines(predict.task, rows, found):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise unwritable(args.out, error) from error
    print(f"{args.out}: {len(rows):,} rows", flush=True)


def _make(folder: Path) -> None:
    """Makes a folder, and raises an OSError unless files can be made in it."""
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)


def _check(args: argparse.Namespace) -> None:
    """Raises a UserError for flags that do not go together."""
    if not (args.workdir or args.model):
        raise UserError("no model", "flags --workdir and --model", "give one of them")
    if args.glue and not (args.workdir and args.data and args.data.startswith("glue:")):
        fix = "give --workdir=RUN and --data=glue:DIR"
        raise UserError("GLUE's files need a run on one of its tasks and its data", "--glue", fix)
    if not args.glue and not args.source:
        fix = "give one, such as --source=tsv:new.tsv"
        raise UserError("no rows", "flag --source", fix)
    if not args.workdir and not args.columns:
        raise UserError("no columns", "flag --columns", "name the texts' column, or two as A,B")


class _Model:
    """The model that the flags name, and its task.

    Attributes:
      task: as the run describes it; without one, as the model and ``--columns`` tell.
      data_dir: the run's TFDS folder.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from jaxbert.data.tasks import SIMILARITY, Task
        from jaxbert.evaluation.finished import read_run
        from jaxbert.evaluation.predict import label_order
        from jaxbert.interop import hub
        from jaxbert.interop.huggingface import read_model
        from jaxbert.serving import read_asking

        finished = read_run(args.workdir) if args.workdir else None
        if args.model:
            folder = hub.resolve(args.model)
        else:
            assert finished is not None
            folder = finished.answering()
        self._model = read_model(folder)
        self._asking = read_asking(args.workdir or args.model, args.max_length or 0)
        kind = SIMILARITY if self._asking.similarity else self._model.config.head
        columns = tuple(args.columns.split(",")) if args.columns else ()
        known = {"tagging": (1,), "spans": (2,), SIMILARITY: (2,)}.get(kind, (1, 2))
        wanted = (len(finished.task.columns),) if finished else known
        if columns and len(columns) not in wanted:
            fix = f"give {' or '.join(map(str, wanted))}, which the model reads"
            raise UserError(f"{len(columns)} columns", "flag --columns", fix)
        if finished is None:
            # The names of tags are the classes themselves.
            self.task = Task("predict", "", columns, self._model.labels, kind=kind, scheme="none")
        else:
            self.task = dataclasses.replace(finished.task, columns=columns or finished.task.columns)
        self._order = label_order(self._model, self.task)
        self._batch_size = args.batch_size
        self.data_dir = (finished.config.get("data_dir") if finished else None) or ""

    def __call__(self, rows: Rows) -> Predictions:
        """What the model says of rows."""
        import jax

        from jaxbert.data.tokenizer import load_tokenizer
        from jaxbert.evaluation.predict import RowPredictor

        model, asking = self._model, self._asking
        positions = model.config.max_position_embeddings
        predictor = RowPredictor(
            self.task.kind,
            load_tokenizer(model.folder),
            rows,
            max_length=min(asking.max_length or positions, positions),
            batch_size=self._batch_size,
            stride=asking.stride,
            always=asking.always,
        )
        with jax.default_matmul_precision("highest"):
            return predictor(model.config, model.params, self._order)


def _lines(task: Task, rows: Rows, found: Predictions) -> Iterator[dict[str, Any]]:
    """One object a row: its texts, and what is predicted."""
    from jaxbert.evaluation.predictions import describe

    names = ("question", "context") if task.kind == "spans" else ("text", "pair")
    for index, said in enumerate(describe(task.kind, task.classes, rows, found)):
        texts = (rows.texts[index], *([rows.pairs[index]] if rows.pairs else []))
        given = {} if task.kind == "tagging" else dict(zip(names, texts, strict=False))
        yield given | said


def _glue(args: argparse.Namespace, predict: _Model) -> Iterator[tuple[Path, int]]:
    """Writes the files of a task of GLUE; of MNLI those of the diagnostic set, if it is there."""
    import numpy as np

    from jaxbert.data.glue import FILES, read_glue_test, write_submission
    from jaxbert.data.rows import Rows
    from jaxbert.data.tasks import TASKS

    task, root = predict.task, args.data.removeprefix("glue:")
    known = TASKS.get(task.name)
    if task.name not in FILES or known is None or known.labels != task.labels:
        fix = f"give a run on one of {', '.join(name for name in FILES if name in TASKS)}"
        raise UserError(f"{task.name!r} is no task of GLUE", str(args.workdir), fix)
    names = [task.name]
    if task.name == "mnli" and (Path(root).expanduser() / FILES["ax"].folder).is_dir():
        names.append("ax")
    tests = [(name, test) for name in names for test in read_glue_test(root, name)]
    _make(args.out)
    kind = np.float32 if task.kind == "regression" else np.int32
    for name, test in tests:
        rows = Rows(test.texts, test.pairs, np.zeros(len(test.texts), kind))
        values = predict(rows).values
        yield write_submission(args.out, name, test, values), len(rows)
