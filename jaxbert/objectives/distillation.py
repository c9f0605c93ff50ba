"""Distillation: a sum of terms, each a feature of the student held against its teachers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbert.batch import Batch
from jaxbert.models.bert import (
    BertConfig,
    head_logits,
    head_places,
    last_states,
    masked_lm_logits,
    pool,
    project,
    scored_groups,
)
from jaxbert.models.encoder import EncoderOutput
from jaxbert.objectives import features, losses
from jaxbert.objectives.alignment import ATTENTION, PROJECTED, RELATIONS, Match
from jaxbert.objectives.finetuning import choices, freeze_padding_row, has_dropout
from jaxbert.objectives.objective import Terms

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the terms read of one model at one batch.

    Attributes:
      output: of the encoder.
      logits: of the classifier, as ``class_logits`` shapes them.
      words: float32 [B, M, V], of the masked-LM head at ``batch.places``.
      pooled: float32 [B, S, D].
    """

    output: EncoderOutput
    logits: Array | None = None
    words: Array | None = None
    pooled: Array | None = None


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The terms of a phase, each the sum over its layers, and the mean over the teachers.

    TinyBERT's are hidden states, scores and predictions (Jiao et al. 2020, equations 7 to 10).

    Attributes:
      student: the trained model; its projection is skipped where it has none.
      teachers: the frozen models, whose parameters are ``frozen["teachers"]`` in this order. What a
        batch brings as ``taught`` stands for the parameters of a single one.
      matches: the terms.
      steps: of the phase, over which weights move.
      compat: ``huawei`` for the authors' padded means: one example a row, key-only mask, and no
        gradient into row 0 of the word table.
    """

    student: BertConfig
    teachers: tuple[BertConfig, ...]
    matches: tuple[Match, ...]
    steps: int = 1
    compat: str = ""

    @property
    def model(self) -> BertConfig:
        """The trained model, as other objectives call it."""
        return self.student

    @property
    def groups(self) -> tuple[str, ...]:
        projection = ("projection",) * any(match.projected for match in self.matches)
        return (*_groups(self.student, self.matches), *projection)

    def groups_read(self, teacher: int) -> tuple[str, ...]:
        """The parameter groups that the terms read of the teacher of a number."""
        return _groups(self.teachers[teacher], [m for m in self.matches if m.loss != "labels"])

    def reads(self, name: str, index: int) -> bool:
        """Whether a term depends on a parameter that is stacked by layers: else it does not learn.

        Args:
          name: such as ``encoder/layers/attention/query/kernel``.
          index: in the stack: of a layer, or of a hidden state that is projected.
        """
        if name.startswith("projection/"):
            projected = [match for match in self.matches if match.projected]
            return index in features.collect(projected, None).hidden
        seen = features.collect(self.matches, None)
        parameter = name.removeprefix("encoder/layers/")
        return seen.reads(index, parameter, self.student.num_layers)

    def weights(self, step: Array) -> Mapping[str, Array | float]:
        last = max(self.steps - 1, 1)

        def at(match: Match) -> Array | float:
            if match.weight == match.final_weight:
                return match.weight
            passed = jnp.minimum(step / last, 1.0)
            return match.weight + (match.final_weight - match.weight) * passed

        return {match.name: at(match) for match in self.matches}

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: Array) -> Terms:
        if self.compat == "huawei":
            params = params | {"embeddings": freeze_padding_row(params["embeddings"])}
        key_or_none = key if has_dropout(self.student) else None
        mine = self._see(self.student, params, batch, None, key_or_none)
        theirs = [
            self._taught(batch)
            if batch.taught is not None
            else self._see(teacher, frozen["teachers"][i], batch, i, None)
            for i, teacher in enumerate(self.teachers)
        ]
        terms = {}
        for match in self.matches:
            if match.loss == "labels":
                terms[match.name] = self._labels(match, mine, batch)
                continue
            parts = [
                self._compare(match, i, pair, params, mine, seen, batch)
                for i, seen in enumerate(theirs)
                for pair in match.layers[i]
            ]
            # Counts are those of masks: every layer and teacher of a batch has the same.
            total = jnp.sum(jnp.stack([part.total for part in parts])) / len(theirs)
            terms[match.name] = losses.Term(total, parts[0].count)
        return terms | self._metrics(mine, batch)

    def _see(
        self, config: BertConfig, params: Any, batch: Batch, teacher: int | None, key: Array | None
    ) -> Seen:
        """Runs a model: the student, or the teacher of a number, as far as terms read it."""
        matches = [m for m in self.matches if teacher is None or m.loss != "labels"]
        read = {match.feature for match in matches}
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        places = {
            "logits": head_places(config, batch),
            "mlm_logits": batch.places,
            "pooled": batch.starts,
        }
        places = {feature: where for feature, where in places.items() if feature in read}
        output, states = last_states(
            config,
            params,
            batch,
            list(places.values()),
            collect=features.collect(matches, teacher),
            key=keys[0],
            key_mask_only=self.compat == "huawei",
        )
        at = dict(zip(places, states, strict=True))
        return Seen(
            output,
            head_logits(config, params, at["logits"], key=keys[1]) if "logits" in at else None,
            masked_lm_logits(config, params, at["mlm_logits"]) if "mlm_logits" in at else None,
            pool(config, params, at["pooled"]) if "pooled" in at else None,
        )

    @staticmethod
    def _taught(batch: Batch) -> Seen:
        """What a teacher has said before."""
        kept: dict[str, dict[int, Array]] = {}
        for name, value in batch.taught.items():
            feature, _, layer = name.partition("/")
            kept.setdefault(feature, {})[int(layer or 0)] = value
        fields = ("hidden", "scores", "queries", "keys", "values")
        output = EncoderOutput(None, **{field: kept.get(field, {}) for field in fields})
        return Seen(output, batch.taught.get("logits"), pooled=batch.taught.get("pooled"))

    def _compare(
        self,
        match: Match,
        teacher: int,
        pair: tuple[int, int],
        params: Any,
        mine: Seen,
        theirs: Seen,
        batch: Batch,
    ) -> losses.Term:
        """One term of one teacher at one pair of layers."""
        feature, padded = match.feature, self.compat == "huawei"
        if feature in ATTENTION or feature in RELATIONS:
            heads = match.heads[teacher]
            a, b = (
                features.pairs(match, heads, seen.output, batch, layer)
                for seen, layer in zip((mine, theirs), pair, strict=True)
            )
            if padded:
                return losses.padded_score_mse(a, b)
            if match.loss == "mse":
                return losses.mse(a, b, features.same_example(batch.segments)[:, None])
            real = (batch.segments > 0)[:, None].astype(jnp.float32)  # [B, 1, T]
            return self._soft(match, a, b, real)
        if feature in PROJECTED:
            a, b = (
                features.states(feature, seen.output, batch, layer)
                for seen, layer in zip((mine, theirs), pair, strict=True)
            )
            if match.projected:
                a = project(self.student, params, a, pair[0])
            mask = features.state_mask(feature, batch)
        elif feature == "pooled":
            assert mine.pooled is not None and theirs.pooled is not None
            a, b, mask = mine.pooled, theirs.pooled, batch.weights > 0
        else:
            return self._predictions(match, mine, theirs, batch)
        if padded:
            return losses.padded_mse(a, b)
        if match.loss == "cosine":
            return losses.cosine(a, b, mask)
        return losses.mse(a, b, mask[..., None])

    def _predictions(self, match: Match, mine: Seen, theirs: Seen, batch: Batch) -> losses.Term:
        """A term of logits: of regression the squared error, else one of each choice."""
        head, a = self._logits(match, mine)
        _, b = self._logits(match, theirs)
        if head == "regression" or (match.loss == "mse" and head == "multi_label"):
            return losses.mse(a, b, batch.weights[..., None] > 0)
        made = choices(head, a, batch)
        return self._soft(match, made.logits, choices(head, b, batch).logits, made.weights)

    def _logits(self, match: Match, seen: Seen) -> tuple[str, Array]:
        """The kind of head that a term reads, and what it says: masked words are tags of places."""
        words = match.feature == "mlm_logits"
        logits = seen.words if words else seen.logits
        assert logits is not None
        return "tagging" if words else self.student.head, logits

    def _soft(self, match: Match, mine: Array, theirs: Array, weights: Array) -> losses.Term:
        """A term of logits [..., C] of choices."""
        if match.standardize:
            mine, theirs = losses.standardize(mine), losses.standardize(theirs)
        if match.loss == "mse":
            inside = (weights > 0)[..., None]
            return losses.mse(mine, theirs, inside)
        if match.loss == "soft_cross_entropy":
            over_classes = match.feature == "logits" and self.student.head in (
                "classification",
                "tagging",
            )
            term = losses.soft_cross_entropy(
                mine, theirs, weights, match.temperature, over_classes=over_classes
            )
        else:
            loss = losses.dist if match.loss == "dist" else losses.kl
            term = loss(mine, theirs, weights, match.temperature)
        factor = match.temperature**2 if match.temperature_squared else 1.0
        return losses.Term(term.total * factor, term.count)

    def _labels(self, match: Match, mine: Seen, batch: Batch) -> losses.Term:
        """A term of the data's own labels."""
        head, logits = self._logits(match, mine)
        if head == "regression":
            return losses.mse(logits[..., 0], batch.labels, batch.weights > 0)
        return losses.cross_entropy(*choices(head, logits, batch))

    def _metrics(self, mine: Seen, batch: Batch) -> dict[str, losses.Term]:
        """The share of choices, and of masked pieces, that the student gets right."""
        found = {}
        if mine.logits is not None and self.student.head != "regression":
            found["accuracy"] = losses.accuracy(*choices(self.student.head, mine.logits, batch))
        if mine.words is not None:
            found["mlm_accuracy"] = losses.accuracy(*choices("tagging", mine.words, batch))
        return found

    def teach(self, frozen: Any, batch: Batch) -> dict[str, Array]:
        """What a single teacher says of a batch, as ``Batch.taught`` has it."""
        seen = self._see(self.teachers[0], frozen["teachers"][0], batch, 0, None)
        said = seen.output.named()
        if seen.logits is not None:
            said["logits"] = seen.logits
        if seen.pooled is not None:
            said["pooled"] = seen.pooled
        return said


def _groups(model: BertConfig, matches: Sequence[Match]) -> tuple[str, ...]:
    """The parameter groups, but for a projection, that terms read of a model."""
    read = {match.feature for match in matches}
    groups = ["embeddings", "encoder"]
    groups += scored_groups(model) if "logits" in read else ()
    groups += ["pooler"] * ("pooled" in read) + ["mlm"] * ("mlm_logits" in read)
    return tuple(dict.fromkeys(groups))
