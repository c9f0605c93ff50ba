"""TinyBERT's objectives: layers (general and intermediate distillation) and predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbert.batch import Batch
from jaxbert.models.bert import BertConfig, encode, project, scored_groups
from jaxbert.models.encoder import Collect, EncoderOutput
from jaxbert.objectives import losses
from jaxbert.objectives.alignment import Alignment
from jaxbert.objectives.finetuning import choices, classify, freeze_padding_row, has_dropout
from jaxbert.objectives.objective import Terms

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LayerDistillation:
    """Embeddings, hidden states and attention scores (Jiao et al. 2020, equations 7 to 9).

    Each term is the sum over its matched layers of a mean over real tokens.

    Attributes:
      student: the trained model; its projection is skipped where it has none.
      teacher: the frozen model.
      alignment: which layers are matched.
      attention_weight, hidden_weight, embedding_weight: the terms' factors, 1 in the paper.
      compat: ``huawei`` for the authors' padded means: one example a row, key-only mask, and no
        gradient into row 0 of the word table.
    """

    student: BertConfig
    teacher: BertConfig
    alignment: Alignment
    attention_weight: float = 1.0
    hidden_weight: float = 1.0
    embedding_weight: float = 1.0
    compat: str = ""

    @property
    def groups(self) -> tuple[str, ...]:
        return ("embeddings", "encoder", *("projection",) * bool(self.student.projection_size))

    @property
    def weights(self) -> Mapping[str, float]:
        weights = {
            "attention": self.attention_weight,
            "hidden": self.hidden_weight,
            "embedding": self.embedding_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array) -> Terms:
        padded = self.compat == "huawei"
        if padded:
            params = params | {"embeddings": freeze_padding_row(params["embeddings"])}
        mine = self._states(self.student, params, batch, student=True, key=key)
        theirs = self.teach(frozen, batch) if batch.taught is None else batch.taught

        def score(layer: int, other: int) -> losses.Term:
            a, b = mine.scores[layer], theirs[f"scores/{other}"]
            return (
                losses.padded_score_mse(a, b) if padded else losses.score_mse(a, b, batch.segments)
            )

        def state(index: int, other: int) -> losses.Term:
            a, b = mine.hidden[index], theirs[f"hidden/{other}"]
            if self.student.projection_size:
                a = project(self.student, params, a, index)
            return (
                losses.padded_hidden_mse(a, b)
                if padded
                else losses.hidden_mse(a, b, batch.segments)
            )

        terms = {}
        if self.attention_weight:
            terms["attention"] = _add_layers(
                [score(i, j) for i, j in enumerate(self.alignment.attention)]
            )
        pairs = list(enumerate(self.alignment.hidden))
        if self.hidden_weight:
            terms["hidden"] = _add_layers([state(i, j) for i, j in pairs[1:]])
        if self.embedding_weight:
            terms["embedding"] = state(*pairs[0])
        return terms

    def teach(self, frozen: Any, batch: Batch) -> dict[str, Array]:
        """What the teacher says of a batch, as ``Batch.taught`` has it."""
        return self._states(self.teacher, frozen["teacher"], batch, student=False).named()

    def _states(
        self,
        config: BertConfig,
        params: Any,
        batch: Batch,
        *,
        student: bool,
        key: Array | None = None,
    ) -> EncoderOutput:
        hidden, attention = self.alignment.hidden, self.alignment.attention
        if student:
            hidden, attention = tuple(range(len(hidden))), tuple(range(len(attention)))
        collect = Collect(
            hidden=hidden[:1] * bool(self.embedding_weight) + hidden[1:] * bool(self.hidden_weight),
            scores=attention if self.attention_weight else (),
            last=False,
        )
        return encode(
            config,
            params,
            batch,
            collect=collect,
            key=key if student and has_dropout(config) else None,
            key_mask_only=self.compat == "huawei",
        )


@dataclasses.dataclass(frozen=True)
class PredictionDistillation:
    """Soft cross-entropy with the teacher's logits (Jiao et al. 2020, equation 10).

    Of classes and tags it is the mean over choices and classes, as the authors' code has it; of
    labels that exclude none and of spans the mean over choices (see ``Choices``); of ``regression``
    it is the squared error to what the teacher says, with which the paper's STS-B was made.

    Attributes:
      student: the trained model.
      teacher: the frozen model, with a head of the same kind.
      temperature: t.
      compat: ``huawei`` for the authors' key-only mask and untouched row 0 of the word table.
    """

    student: BertConfig
    teacher: BertConfig
    temperature: float = 1.0
    compat: str = ""

    weights = {"prediction": 1.0}  # noqa: RUF012  (a constant of the class, not a field)

    @property
    def groups(self) -> tuple[str, ...]:
        return scored_groups(self.student)

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array) -> Terms:
        head = self.student.head
        mine = classify(self.student, params, batch, key, self.compat)
        taught = self.teach(frozen, batch) if batch.taught is None else batch.taught
        theirs = taught["logits"]
        if head == "regression":
            error = losses.squared_error(mine[..., 0], theirs[..., 0], batch.weights)
            return {"prediction": error}
        made = choices(head, mine, batch)
        prediction = losses.soft_cross_entropy(
            made.logits,
            choices(head, theirs, batch).logits,
            made.weights,
            self.temperature,
            over_classes=head in ("classification", "tagging"),
        )
        return {"prediction": prediction, "accuracy": losses.accuracy(*made)}

    def teach(self, frozen: Any, batch: Batch) -> dict[str, Array]:
        """What the teacher says of a batch, as ``Batch.taught`` has it."""
        return {"logits": classify(self.teacher, frozen["teacher"], batch, None, self.compat)}


def _add_layers(terms: list[losses.Term]) -> losses.Term:
    """Sums means that share one count: every layer of a batch has the same mask."""
    return losses.Term(jnp.sum(jnp.stack([term.total for term in terms])), terms[0].count)
