"""What a linear model can read from an encoder that has no head yet: when to stop distilling it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from jaxbert.batch import Batch
from jaxbert.data.rows import TaskData
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.evaluation.embeddings import ENCODER
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predict import RowPredictor, collect
from jaxbert.models.bert import POOLED, BertConfig, Params, last_states
from jaxbert.models.pooling import mean_states

ROWS = 2_000  # training rows that a probe is fitted on, at most
_ITEMS = 10_000  # words or pieces among them, at most
# Chosen among 0.01, 0.1 and 1, on Rotten Tomatoes.
_C = 0.1
_ALPHA = 10.0  # as much for numbers
_NEVER = -1e4  # the logit of a class that is not among the rows


class Probe:
    """Fits a linear model on what an encoder makes of some training rows, and scores it on dev.

    An example is the mean of the last hidden state over its tokens, a word the state of its first
    piece, and of spans every piece is an item by itself. Classes are read by logistic regression,
    several labels (and the two ends of a span) by one each, numbers by ridge regression. The rows
    are the same in every run, so that all probes of a task compare.

    Args:
      data: the task, of any kind that has a head.
      tokenizer: the encoder's.
      max_length: word pieces, as in ``encode_rows``.
      batch_size: examples a batch.
      rows: training rows to fit on, at most; of spans a tenth of these.
    """

    def __init__(
        self,
        data: TaskData,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int = 64,
        rows: int = ROWS,
    ) -> None:
        self._data, self._kind = data, data.task.kind
        sample = data.train.sample(rows // 10 if self._kind == "spans" else rows)
        size = {"max_length": max_length, "batch_size": batch_size}
        self._seen, self._dev = (
            RowPredictor.of(data, part, tokenizer, **size) for part in (sample, data.dev)
        )

    def __call__(self, config: BertConfig, params: Params) -> float | None:
        """The task's metric on dev; None where it is undefined.

        Args:
          config: the encoder.
          params: its groups; others than the encoder's are ignored.

        Raises:
          UserError: a hidden state is not finite.
        """
        params = {group: params[group] for group in ENCODER}
        examples = self._seen.examples
        states = collect(_states(config, self._kind), params, self._seen.batches, self._kind)
        targets = examples.labels if examples.marks is None else examples.marks.targets
        assert targets is not None
        if self._kind == "spans":
            ends = examples.offsets[:-1, None] + targets  # [W, 2], among the pieces of all windows
            targets = np.zeros((len(states), 2), np.int32)
            targets[ends, [0, 1]] = 1
        kept = _some(targets, self._kind)
        with threadpoolctl.threadpool_limits(1):  # sums in one order, whatever else runs
            head = fit(self._kind, states[kept], targets[kept], self._data.task.num_outputs)
        logits = collect(_logits(config, self._kind), (params, head), self._dev.batches, self._kind)
        task = self._data.task
        found = score_rows(task, self._data.dev, self._dev.read(logits), (task.metric,))
        return found[task.metric].value


def _some(targets: np.ndarray, kind: str) -> np.ndarray:
    """Which items are fitted on, bool [items]: all, or as many as take no more than seconds.

    Of spans every first and last piece, and some others: fewer of them move the intercepts alone,
    which count for nothing where places of one context compete.
    """
    if kind not in ("tagging", "spans"):
        return np.ones(len(targets), bool)
    kept = np.random.default_rng(0).random(len(targets)) * len(targets) < _ITEMS
    return kept | targets.any(axis=1) if kind == "spans" else kept


def fit(kind: str, states: np.ndarray, targets: np.ndarray, outputs: int) -> Params:
    """A linear head for states.

    Args:
      kind: of the task.
      states: float32 [items, F].
      targets: of classification and tagging int [items]; of multi_label [items, C] and of spans
        [items, 2], 0 or 1; of regression float [items].
      outputs: C.

    Returns:
      ``kernel`` [F, C] and ``bias`` [C], float32.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    states = states.astype(np.float64)
    kernel, bias = np.zeros((states.shape[1], outputs)), np.full(outputs, _NEVER)
    if kind == "regression":
        ridge = Ridge(alpha=_ALPHA).fit(states, targets)
        kernel[:, 0], bias[0] = ridge.coef_, ridge.intercept_
    elif targets.ndim == 2:
        for label in range(outputs):
            one = fit("classification", states, targets[:, label].astype(int), 2)
            kernel[:, label] = one["kernel"][:, 1] - one["kernel"][:, 0]
            bias[label] = one["bias"][1] - one["bias"][0]
    elif (targets == targets[0]).all():
        bias[targets[0]] = 0.0
    else:
        model = LogisticRegression(C=_C, max_iter=1_000).fit(states, targets)
        # Of two classes there is one row, which speaks for the second.
        chosen = model.classes_[1:] if len(model.classes_) == 2 else model.classes_
        bias[model.classes_] = 0.0
        kernel[:, chosen], bias[chosen] = model.coef_.T, model.intercept_
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def _read(config: BertConfig, kind: str, params: Params, batch: Batch) -> jax.Array:
    """The states of every item, float32 [B, X, F], as ``collect`` has items."""
    places = batch.places if kind == "tagging" else None
    _, (states,) = last_states(config, params, batch, [places])
    if kind in POOLED:
        return mean_states(states, batch.segments, batch.starts.shape[1])
    return states


@functools.cache
def _states(config: BertConfig, kind: str) -> Callable[[Params, Batch], jax.Array]:
    return jax.jit(lambda params, batch: _read(config, kind, params, batch))


@functools.cache
def _logits(config: BertConfig, kind: str) -> Callable[[Any, Batch], jax.Array]:
    """The product on the device: what it reads of a large dev part would not fit in memory."""

    def logits(params: tuple[Params, Params], batch: Batch) -> jax.Array:
        encoder, head = params
        states = _read(config, kind, encoder, batch)
        product = jnp.einsum(
            "bxf,fc->bxc", states, head["kernel"], precision=jax.lax.Precision.HIGHEST
        )
        return product + head["bias"]

    return jax.jit(logits)
