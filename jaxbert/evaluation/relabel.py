"""What a fine-tuned teacher says of augmented rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbert.config import AugmentationConfig
from jaxbert.data.copies import label_of
from jaxbert.data.encoding import encode_rows
from jaxbert.data.labels import read_example
from jaxbert.data.rows import Rows
from jaxbert.data.tables import BadRow, Record
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation import predictions
from jaxbert.evaluation.predict import collect_by_width, label_order, predictor
from jaxbert.interop.huggingface import Model
from jaxbert.models.bert import scored_groups

_POSITIONS = 4096  # rows x width of a batch


def check_labelling(config: AugmentationConfig, task: Task) -> None:
    """Raises a UserError if no teacher at all labels or filters copies as a config asks for."""
    if config.confidence and not config.filter:
        fix = "give augmentation.filter=true, or remove it"
        raise UserError("nothing is filtered by it", "config key augmentation.confidence", fix)
    if not (config.relabel or config.filter):
        return
    if task.kind not in ("classification", "regression"):
        where = "config keys augmentation.relabel and augmentation.filter"
        fix = "turn both off: the labels of such rows are copied"
        raise UserError(f"a teacher does not label copies of {task.kind}", where, fix)
    if config.filter and task.kind == "regression":
        what, fix = "copies are filtered by their class, and a number is none", "give relabel"
        raise UserError(what, "config key augmentation.filter", fix)


class Labeller:
    """Gives copies the teacher's labels, or drops those on which it disagrees.

    Args:
      config: ``relabel``: the teacher's label takes the place of the copied one; ``filter``: a copy
        is left out if its label is not the teacher's most probable one, or is less probable than
        ``confidence``.
      task: of classification, or of regression, which is not filtered.
      teacher: fine-tuned on it; its classes are taken by name, or by place where nobody named them.
      max_length: word pieces that it reads, as far as it has positions.

    Attributes:
      max_length: word pieces that it does read.
      order: which of its classes is each of the task's; None of regression.

    Raises:
      UserError: there is no such teacher. The task is taken to be one of `check_labelling`.
    """

    def __init__(
        self, config: AugmentationConfig, task: Task, teacher: Model | None, max_length: int
    ) -> None:
        if teacher is None:
            where = "config keys augmentation.relabel and augmentation.filter"
            fix = "give a teacher that is fine-tuned on the task, such as run:WORKDIR#teacher"
            raise UserError("there is no teacher that could", where, fix)
        self.order = label_order(teacher, task)
        self.max_length = min(max_length, teacher.config.max_position_embeddings)
        self._config, self._task, self._shape = config, task, teacher.config
        self._params = {group: teacher.params[group] for group in scored_groups(teacher.config)}
        self._tokenizer = load_tokenizer(teacher.folder)

    def __call__(self, lines: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """Labels the copies among some lines; rows themselves stay as they are.

        Every line gets what the teacher says under ``augmentation``: ``teacher``, probabilities in
        the order of the labels, or a number.

        Args:
          lines: as a file of copies holds them.

        Returns:
          The lines that stay, and how many do not.
        """
        config, label = self._config, self._task.label
        scores = self._predict(lines)
        kept = []
        for line, score in zip(lines, scores, strict=True):
            about = line["augmentation"] | {"teacher": [round(float(x), 6) for x in score]}
            line = line | {"augmentation": about}
            if about["copy"]:
                told = self._label(score)
                if config.relabel:
                    line[label] = told
                if config.filter and (line[label] != told or score.max() < config.confidence):
                    continue
            kept.append(line)
        return kept, len(lines) - len(kept)

    def _label(self, score: np.ndarray) -> Any:
        """The label that scores [C] speak for, or the number [1], which the task's bounds hold."""
        task = self._task
        if task.kind == "classification":
            return label_of(task, score.argmax())
        low, high = task.bounds or (-math.inf, math.inf)
        return min(max(label_of(task, score[0]), low), high)

    def _predict(self, lines: Sequence[dict[str, Any]]) -> np.ndarray:
        """Probabilities [N, C], or numbers [N, 1], each as if the line stood alone."""
        examples = [read_example(self._task, Record("", line)) for line in lines]
        good = [example for example in examples if not isinstance(example, BadRow)]
        assert len(good) == len(lines)
        logits = collect_by_width(
            predictor(self._shape),
            self._params,
            encode_rows(self._tokenizer, Rows.join(self._task, good), max_length=self.max_length),
            self._shape.head,
            self.max_length,
            # One shape a width: what is said of a line does not depend on the lines beside it.
            lambda ids, width: [(ids, max(1, _POSITIONS // width))],
        )
        if self.order is None:
            return logits
        return predictions.read_classes(logits[:, self.order]).scores
