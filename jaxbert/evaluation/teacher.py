"""Whether a fine-tuned teacher can be trusted: its score, and the order of its classes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxbert.data.rows import Rows, TaskData
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predict import RowPredictor
from jaxbert.evaluation.predictions import Predictions
from jaxbert.interop.huggingface import Model

SAMPLE = 512  # development rows at most: seconds for a BERT on a CPU
SURE = 1e-4  # the largest probability of taking an order for wrong that is right


@dataclasses.dataclass(frozen=True)
class LabelOrder:
    """Which of a teacher's K classes is each of its task's, as its confusion matrix tells.

    Attributes:
      confusion: int64 [K, K], rows of class i that the teacher says are of its class j.
      order: the teacher's class for each of the task's, so that the most rows are right (a linear
        assignment); as they stand, where no other order makes more right.
    """

    confusion: np.ndarray
    order: tuple[int, ...]

    @classmethod
    def infer(cls, confusion: np.ndarray) -> LabelOrder:
        """The best order for a confusion matrix."""
        from scipy import optimize

        order = optimize.linear_sum_assignment(confusion, maximize=True)[1]
        if confusion[np.arange(len(order)), order].sum() <= confusion.trace():
            order = np.arange(len(order))
        return cls(confusion, tuple(order.tolist()))

    @property
    def moved(self) -> list[int]:
        """The task's classes that are others of the teacher's than those of their number."""
        return [mine for mine, theirs in enumerate(self.order) if mine != theirs]

    def accuracy(self, order: tuple[int, ...] | None = None) -> float:
        """The share of right rows in an order; None = as the classes stand."""
        order = order or tuple(range(len(self.order)))
        return float(self.confusion[np.arange(len(order)), order].sum() / self.confusion.sum())

    @property
    def chance(self) -> float:
        """A bound on the probability of this matrix if nothing is wrong with the order.

        Two things would have to be chance: that of the rows of classes which change places more
        are right in the best order than as they stand (a sign test), and that more rows are right
        in it than the largest class has (a binomial test; a teacher that says one class alone, or
        says them without a look at the text, is weak and not out of order). The likelier of both
        counts, times K! / (K - m)!, the number of ways in which m classes can change places, of
        which this is the best (Bonferroni). So a weak teacher of two classes is misjudged once in
        10,000 times, and one of many classes is refused only on much evidence.
        """
        from scipy import stats

        table, moved, order = self.confusion, self.moved, np.array(self.order)
        if not moved:
            return 1.0
        stay, move = table[moved, moved].sum(), table[moved, order[moved]].sum()
        right, total = table[np.arange(len(order)), order].sum(), table.sum()
        largest = table.sum(axis=1).max() / total
        likelier = max(
            stats.binom.logsf(move - 1, stay + move, 0.5),
            stats.binom.logsf(right - 1, total, largest),
        )
        ways = math.lgamma(len(order) + 1) - math.lgamma(len(order) - len(moved) + 1)
        return math.exp(min(likelier + ways, 0.0))


@dataclasses.dataclass(frozen=True)
class TeacherScore:
    """How a teacher does on the development part.

    Attributes:
      metric: the one that selects in the task.
      value: the teacher's; None where it is undefined.
      most_frequent: that of whoever always gives the most frequent answer: the largest class, the
        commonest tag, no answer; 0 where that is undefined.
      examples: rows that were looked at.
      available: rows that there are.
      order: of classification.
    """

    metric: str
    value: float | None
    most_frequent: float
    examples: int
    available: int
    order: LabelOrder | None

    @property
    def learnt(self) -> bool:
        """Whether the teacher is clearly better than the most frequent answer.

        That is by more than 1 / sqrt(N), two standard errors of a share of N rows at most.
        """
        clearly = self.most_frequent + 1 / math.sqrt(self.examples)
        return self.value is not None and self.value > clearly

    @property
    def lines(self) -> list[str]:
        """The score in a line, and a warning in another where the teacher has learnt nothing."""
        value = "undefined" if self.value is None else f"{self.value:.4f}"
        some = f"{self.examples:,} of " * (self.examples < self.available)
        said = (
            f"teacher: {self.metric} {value} on {some}{self.available:,} development rows "
            f"(always the most frequent answer: {self.most_frequent:.4f})"
        )
        warning = (
            f"warning: the teacher's {self.metric} is not clearly better than that of the most "
            "frequent answer: it is hardly fine-tuned on this task, or its classes stand in "
            "another order"
        )
        return [said, *([] if self.learnt else [warning])]

    def facts(self) -> dict[str, Any]:
        """As summary.json has it."""
        facts: dict[str, Any] = {
            "metric": self.metric,
            "value": self.value,
            "most_frequent": self.most_frequent,
            "examples": self.examples,
        }
        if self.order:
            facts |= {"confusion": self.order.confusion.tolist(), "order": list(self.order.order)}
        return facts


def score_teacher(
    teacher: Model, tokenizer: Tokenizer, data: TaskData, *, max_length: int, batch_size: int
) -> TeacherScore:
    """Scores a teacher on the development part, or on 512 rows of it that a fixed seed chooses.

    Args:
      teacher: has a classifier of the task's kind, its classes taken to be the task's, in order.
      tokenizer: the teacher's.
      data: the task.
      max_length: word pieces.
      batch_size: examples a batch.
    """
    from sklearn.metrics import confusion_matrix

    task, rows = data.task, data.dev.sample(SAMPLE)
    size = {"max_length": max_length, "batch_size": batch_size}
    predict = RowPredictor.of(data, rows, tokenizer, **size)
    found = predict(teacher.config, teacher.params)
    order = None
    if task.kind == "classification":
        classes = range(len(task.classes))
        order = LabelOrder.infer(confusion_matrix(rows.labels, found.values, labels=classes))

    def score(predictions: Predictions) -> float | None:
        return score_rows(task, rows, predictions, (task.metric,))[task.metric].value

    constant = score(_most_frequent(task, rows)) or 0.0
    return TeacherScore(task.metric, score(found), constant, len(rows), len(data.dev), order)


def check_order(score: TeacherScore, teacher: Model, task: Task, reference: str) -> None:
    """Raises a UserError if the teacher's classes clearly stand in another order than the task's.

    Args:
      score: the teacher's.
      teacher: what was scored.
      task: it was scored on.
      reference: what the user calls the teacher.
    """
    found = score.order
    if found is None or found.chance > SURE:
        return
    names = [f"{teacher.labels[found.order[i]]!r} is {task.classes[i]!r}" for i in found.moved]
    raise UserError(
        f"the teacher's classes stand in another order than the task's: {', '.join(names)} "
        f"(accuracy {found.accuracy():.4f} as it is, {found.accuracy(found.order):.4f} so, on "
        f"{score.examples} development rows; by chance with probability {found.chance:.0e})",
        f"teacher {reference}",
        f"name them so under id2label in {teacher.folder / 'config.json'}: classes are matched "
        "by name",
    )


def _most_frequent(task: Task, rows: Rows) -> Predictions:
    """The same answer for every row: the commonest one, of regression the mean, of spans none."""
    count = len(rows)
    if task.kind == "tagging":
        assert rows.tags is not None
        common = np.bincount(np.concatenate(rows.tags)).argmax()
        return Predictions([np.full(len(tags), common) for tags in rows.tags])
    if task.kind == "spans":
        return Predictions([None] * count)
    assert rows.labels is not None
    if task.kind == "regression":
        return Predictions(np.full(count, rows.labels.mean()))
    values, counts = np.unique(rows.labels, axis=0, return_counts=True)
    return Predictions(np.repeat(values[counts.argmax()][None], count, axis=0))
