"""`jaxbert doctor`: what it finds, printed or as JSON."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from jaxbert.config import RunConfig
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.doctor.environment import describe_environment, shortages
from jaxbert.doctor.findings import number
from jaxbert.doctor.forecast import (
    BASIS,
    COLUMNS,
    Forecast,
    PhaseForecast,
    describe_phase,
    describe_total,
)
from jaxbert.errors import UserError, UserErrors
from jaxbert.evaluation.teacher import LabelOrder, check_order
from jaxbert.files import size_text
from jaxbert.interop.huggingface import Model
from jaxbert.models.bert import count_parameters
from jaxbert.run import Run
from jaxbert.training.hashing import parameter_hash
from jaxbert.workdir import check_claim

_UNKNOWN = 0.02  # share of unknown pieces from which a vocabulary is doubtful
_CASED = 0.01  # share of pieces with a capital letter from which a vocabulary is cased
_SHOWN = 8  # classes of a confusion matrix that is printed
_STUDENTS = ("student", "initial_student", "random_student")


def diagnose(config: RunConfig, workdir: Path, console: Console | None = None) -> None:
    """Prints what a run starts from, its teacher's score and what it costs; writes nothing.

    Args:
      config: checked.
      workdir: the run's folder; need not be there.
      console: where to; tables on a terminal, plain lines elsewhere.

    Raises:
      UserErrors: everything for which the run would be refused.
    """
    report = _Report(config, workdir, console or Console())
    if errors := report.write():
        raise UserErrors(errors)


def findings(config: RunConfig, workdir: Path) -> dict[str, Any]:
    """The same as an object for JSON.

    Args:
      config: checked.
      workdir: the run's folder; need not be there.

    Returns:
      ``findings``, of each what `Finding` holds; ``environment``; ``phases``, of each what
      `PhaseForecast` holds, none where there are errors; ``lines``, what is printed.
    """
    console = Console(file=io.StringIO(), width=10_000)
    report = _Report(config, workdir, console)
    errors = report.write()
    assert isinstance(console.file, io.StringIO)
    return {
        "findings": [dataclasses.asdict(one) for one in number(errors, report.warnings)],
        "environment": dict(report.environment()),
        "phases": [dataclasses.asdict(phase) for phase in report.phases],
        "lines": console.file.getvalue().splitlines(),
    }


class _Report:
    """Attributes: ``warnings``, what is doubtful; ``phases``, what they cost, once written."""

    def __init__(self, config: RunConfig, workdir: Path, console: Console) -> None:
        self._job, self._workdir, self._console = Run(config, workdir), workdir, console
        self._config = self._job.config
        self._forecast = Forecast(self._job)
        self.warnings: list[UserError] = []
        self.phases: list[PhaseForecast] = []

    def write(self) -> list[UserError]:
        """Prints everything; returns that for which the run would be refused."""
        errors = self._job.inspection.problems()
        try:
            check_claim(self._workdir, self._config)
        except UserError as error:
            errors.append(error)
        said = {line for error in errors for line in error.lines}
        self._table("environment", ("", ""), self.environment())
        for part in (self._teacher, self._student, self._score):
            try:
                part()
            except UserError as error:  # what a check has said stops a part, too
                errors += [] if set(error.lines) <= said else [error]
        if not errors:
            self._costs()
        for finding in number(errors, self.warnings):
            if finding.kind == "warning":
                self._say(f"warning: {finding.numbered.line}")
        if not errors:
            self._say("nothing stands against this run")
        return errors

    def environment(self) -> list[tuple[str, str]]:
        """Name and value of what the run would run on."""
        return describe_environment(self._workdir, self._config.dtype)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on a terminal; elsewhere a line a row."""
        if not self._console.is_terminal:
            for first, *rest in rows:
                named = zip(columns[1:], rest, strict=True)
                self._say(f"{title} {first}: " + ", ".join(f"{k} {v}".strip() for k, v in named))
            return
        table = Table(title=title, box=box.SIMPLE_HEAD, show_header=any(columns))
        for place, name in enumerate(columns):
            table.add_column(name, justify="right" if place and any(columns) else "left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table, highlight=False, markup=False)

    # --- models -----------------------------------------------------------------------------------

    def _teacher(self) -> None:
        library = self._job.library
        if not library.has_teacher:
            self._say("no teacher: the run pre-trains its model from random weights")
            return
        model = library.given
        rows = [
            ("reference", f"{self._config.teacher} -> {model.folder}"),
            ("head", self._head(model)),
            *_shape(model),
            ("vocabulary", self._vocabulary(library.tokenizer)),
            ("hash", parameter_hash(model.params)),
        ]
        self._table("teacher", ("", ""), rows)

    def _student(self) -> None:
        if not any(phase.start in _STUDENTS for phase in self._config.sections.values()):
            return
        start, init = self._config.init_from, self._config.student.init
        made = "cut out of the teacher" if init == "teacher" else "with random weights"
        model = self._forecast.start("student")
        rows = [("start", start or f"new, {made}"), *_shape(model)]
        self._table("student", ("", ""), rows)

    def _head(self, model: Model) -> str:
        if "classifier" in model.params:
            classes = ", ".join(model.labels)
            said = f"{model.config.head} ({model.config.classifier})"
            return said + f": {classes}" * bool(classes)
        phases = self._config.sections.items()
        makes = [k for k, p in phases if p.objective == "finetune" and p.trains == "teacher"]
        return f"none; the phase {makes[0]} makes one" if makes else "none"

    def _vocabulary(self, tokenizer: Tokenizer) -> str:
        """Its size and casing, found out by trying; warns where these do not go together."""
        lowers, plain = _same(tokenizer, "Film", "film"), _same(tokenizer, "é", "e")
        pieces = [piece for piece in tokenizer.pieces if not re.match(r"[\[<]", piece)]
        cased = sum(piece != piece.lower() for piece in pieces) > _CASED * len(pieces)
        if cased == lowers:
            has, does = ("has", "takes them away") if cased else ("has no", "leaves them")
            where = f"{self._job.library.tokenizer_folder}/tokenizer_config.json"
            what = f"the vocabulary {has} capital letters and the tokenizer {does}"
            self.warnings.append(UserError(what, where, "check do_lower_case"))
        done = "put in lower case" if lowers else "left in its case"
        return (
            f"{tokenizer.vocab_size:,} pieces, {'' if cased else 'un'}cased; text is {done}"
            + ", accents are taken off" * plain
        )

    # --- the teacher on the task ------------------------------------------------------------------

    def _score(self) -> None:
        self.warnings += self._job.inspection.doubts()
        if not self._job.data.reads("task", "augmentation"):
            return
        unknown = float(np.mean(self._forecast.sample.tokens == self._job.library.tokenizer.unk_id))
        self._say(f"task: {unknown:.2%} of the training rows' pieces are unknown to the vocabulary")
        if unknown > _UNKNOWN:
            what = "the vocabulary does not know the task's texts"
            fix = "give a teacher of their language, with the tokenizer that it was trained with"
            self.warnings.append(UserError(what, str(self._job.library.tokenizer_folder), fix))
        if self._job.library.teacher_is_finetuned and not self._comparable():
            return
        task = self._job.data.task.task
        for reference, teacher, score in self._job.inspection.score_teachers():
            line, *doubts = score.lines
            self._say(line)
            fix = "fine-tune it on this task, or see to the order of its classes"
            self.warnings += [
                UserError(doubt.removeprefix("warning: "), f"teacher {reference}", fix)
                for doubt in doubts
            ]
            if score.order:
                self._confusion(score.order, task.classes, teacher.labels)
            check_order(score, teacher, task, reference)

    def _confusion(self, found: LabelOrder, classes: Sequence[str], labels: Sequence[str]) -> None:
        if len(classes) <= _SHOWN:
            named = zip(classes, found.confusion.tolist(), strict=True)
            rows = [(name, *(f"{count:,}" for count in counts)) for name, counts in named]
            self._table("rows of the class", ("", *(f"said {name}" for name in labels)), rows)
        if not found.moved:
            self._say("label order: that of the task, by name and by what the teacher says")
            return
        moved = ", ".join(f"{labels[found.order[i]]} is {classes[i]}" for i in found.moved)
        self._say(
            f"label order: the best is {moved}: accuracy {found.accuracy(found.order):.4f} instead "
            f"of {found.accuracy():.4f}, by chance with probability {found.chance:.1g} at most"
        )

    def _comparable(self) -> bool:
        """Whether the teacher can be asked at all; if not, a check has said why."""
        model, task = self._job.library.given, self._job.data.task.task
        return (
            model.config.head == task.kind
            and model.config.num_labels == task.num_outputs
            and self._job.library.tokenizer.vocab_size <= model.config.vocab_size
            and self._config.max_length <= model.config.max_position_embeddings
        )

    # --- what it costs ----------------------------------------------------------------------------

    def _costs(self) -> None:
        self.phases = list(self._forecast.phases())
        self._table("phase", COLUMNS, [describe_phase(phase) for phase in self.phases])
        device = jax.devices()[0]
        self._say(
            f"estimated: {BASIS}; time is from layers timed now on {device.platform} "
            f"({device.device_kind}), without compiling"
        )
        text = self._forecast.text_bytes()
        if text:
            self._say(f"corpus: {size_text(text)} of files; its cache takes about half of the text")
        self._say(describe_total(self.phases))
        self.warnings += shortages(self._workdir, self.phases)


def _same(tokenizer: Tokenizer, one: str, other: str) -> bool:
    first, second = tokenizer.encode([one, other])
    return bool(np.array_equal(first, second))


def _shape(model: Model) -> list[tuple[str, str]]:
    c = model.config
    projection = "none found"
    if "projection" in model.params:
        many = f"{c.num_layers + 1}, one a hidden state" if c.projection_per_layer else "one"
        projection = f"{many}, to width {c.projection_size}"
    return [
        ("layers", f"{c.num_layers} of width {c.hidden_size}, feed-forward {c.intermediate_size}"),
        ("heads", f"{c.num_heads} of {c.head_size}"),
        ("positions", f"{c.max_position_embeddings} {c.position}"),
        ("parameters", f"{count_parameters(model.params):,} in {', '.join(model.params)}"),
        ("projection", projection),
    ]
