"""What a fine-tuned teacher says of augmented rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbert.config import AugmentationConfig
from jaxbert.data.copies import label_of
from jaxbert.data.encoding import encode_rows
from jaxbert.data.labels import read_example
from jaxbert.data.packing import PackedBatches
from jaxbert.data.rows import Rows
from jaxbert.data.tables import BadRow, Record
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation import predictions
from jaxbert.evaluation.predict import predict
from jaxbert.interop.huggingface import Model

_WIDTHS = (16, 32, 64, 128, 256, 512)
_POSITIONS = 4096  # rows x width of a batch


class Labeller:
    """Gives copies the teacher's labels, or drops those on which it disagrees.

    Args:
      config: ``relabel``: the teacher's label takes the place of the copied one; ``filter``: a copy
        is left out if its label is not the teacher's most probable one, or is less probable than
        ``confidence``.
      task: of classification, or of regression, which is not filtered.
      teacher: fine-tuned on it.
      max_length: word pieces that it reads.

    Raises:
      UserError: a task of another kind, or no such teacher.
    """

    def __init__(
        self, config: AugmentationConfig, task: Task, teacher: Model | None, max_length: int
    ) -> None:
        where = "config keys augmentation.relabel and augmentation.filter"
        if task.kind not in ("classification", "regression"):
            fix = "turn both off: the labels of such rows are copied"
            raise UserError(f"a teacher does not label copies of {task.kind}", where, fix)
        if teacher is None or "classifier" not in teacher.params:
            fix = "give a teacher that is fine-tuned on the task, such as run:WORKDIR#teacher"
            raise UserError("there is no teacher that could", where, fix)
        if teacher.config.num_labels != task.num_outputs or (
            task.classes and teacher.labels != task.classes
        ):
            what = f"the teacher's labels {teacher.labels} are not the task's {task.classes}"
            raise UserError(what, str(teacher.folder), "give a teacher of this task")
        self._config = config
        self._task, self._model, self._max_length = task, teacher, max_length
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
        task = self._task
        scores = self._predict(lines)
        kept = []
        for line, score in zip(lines, scores, strict=True):
            about = line["augmentation"] | {"teacher": [round(float(x), 6) for x in score]}
            line = line | {"augmentation": about}
            if about["copy"]:
                best = score[0] if task.kind == "regression" else int(score.argmax())
                if self._config.relabel:
                    line[task.label] = label_of(task, best)
                if self._config.filter and task.kind == "classification":
                    agreed = line[task.label] == label_of(task, best)
                    if not agreed or score.max() < self._config.confidence:
                        continue
            kept.append(line)
        return kept, len(lines) - len(kept)

    def _predict(self, lines: Sequence[dict[str, Any]]) -> np.ndarray:
        """Probabilities [N, C], or numbers [N, 1], each as if the line stood alone."""
        examples = [read_example(self._task, Record("", line)) for line in lines]
        good = [example for example in examples if not isinstance(example, BadRow)]
        assert len(good) == len(lines)
        rows = Rows.join(self._task, good)
        encoded = encode_rows(self._tokenizer, rows, max_length=self._max_length)
        logits = np.zeros((len(lines), self._model.config.num_labels), np.float32)
        widths = sorted({*(w for w in _WIDTHS if w < self._max_length), self._max_length})
        chosen = np.searchsorted(widths, encoded.lengths)
        for number in np.unique(chosen):
            ids = np.flatnonzero(chosen == number)
            batches = PackedBatches(
                encoded.gather(ids),
                batch_size=max(1, _POSITIONS // widths[number]),
                row_length=widths[number],
                seed=0,
                packing=False,
                shuffle=False,
                epochs=1,
            )
            logits[ids] = predict(self._model.config, self._model.params, batches)
        if self._task.kind == "regression":
            return logits
        return predictions.read_classes(logits).scores
