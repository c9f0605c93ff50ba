"""BERT: its configuration, its embeddings, and the encoder and heads put together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.errors import UserError, UserErrors
from jaxbert.models import heads
from jaxbert.models.attention import key_bias, segment_bias
from jaxbert.models.dropout import Dropout
from jaxbert.models.encoder import ACTIVATIONS, Collect, Encoder, EncoderOutput
from jaxbert.models.positional import LearnedPositions, sinusoidal_table

Array = jax.Array
Params = dict[str, Any]  # one entry a group: embeddings, encoder, pooler, classifier, ...

POSITIONS = ("learned", "sinusoidal", "rotary")
CLASSIFIERS = ("bert", "tinybert")
POOLED = ("classification", "multi_label", "regression")  # heads that read whole examples
HEADS = (*POOLED, "tagging", "spans")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "int8": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT and how it computes.

    Attributes:
      vocab_size: word pieces.
      hidden_size: width D, a multiple of ``num_heads``.
      num_layers: encoder layers.
      num_heads: attention heads.
      intermediate_size: feed-forward width.
      max_position_embeddings: rows of the position table, the longest example.
      type_vocab_size: token types.
      activation: ``gelu`` (erf), ``gelu_new`` (tanh) or ``relu``.
      layer_norm_eps: added to the variance in every LayerNorm.
      hidden_dropout: rate on embeddings, sub-layer outputs and the classifier's input.
      attention_dropout: rate on attention probabilities.
      initializer_range: standard deviation of initial weights.
      position: ``learned``, ``sinusoidal`` or ``rotary``.
      head: what the classifier reads and says: ``classification``, ``multi_label`` and
        ``regression`` the pooled state of an example; ``tagging`` the states of single pieces;
        ``spans`` every piece's, for the two logits that an answer begins and ends there.
      classifier: ``bert`` or ``tinybert`` (with a relu), how it reads a pooled state.
      num_labels: its classes, 1 of ``regression`` and 2 of ``spans``; 0 if the model has none.
      projection_size: the teacher's width if the model carries a projection; 0 if not.
      projection_per_layer: one projection for each hidden state instead of a shared one.
      projection_rank: the width between a projection's two factors; 0 if it is a full matrix.
      dtype: dtype of the products' operands, ``float32`` or ``bfloat16``. Parameters, softmax,
        LayerNorm and every sum stay float32. ``int8`` is for frozen models: their dense layers are
        held and multiplied so (``hold_operands``), all else is bfloat16.

    Raises:
      UserErrors: naming every field that is out of range.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    position: str = "learned"
    head: str = "classification"
    classifier: str = "bert"
    num_labels: int = 0
    projection_size: int = 0
    projection_per_layer: bool = False
    projection_rank: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        errors = []

        def check(good: bool, field: str, want: str) -> None:
            if not good:
                what = f"{field} = {getattr(self, field)!r} is not valid"
                errors.append(UserError(what, "the model's configuration", f"give {want}"))

        for field in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            check(getattr(self, field) > 0, field, "a positive whole number")
        for field in ("num_labels", "projection_size"):
            check(getattr(self, field) >= 0, field, "0 (none) or a positive whole number")
        widest = min(self.hidden_size, self.projection_size)
        want = f"0 (a full matrix) or at most the narrower width, {widest}"
        check(0 <= self.projection_rank <= max(widest, 0), "projection_rank", want)
        for field in ("hidden_dropout", "attention_dropout"):
            check(0 <= getattr(self, field) < 1, field, "a rate from 0 up to but not 1")
        for field in ("layer_norm_eps", "initializer_range"):
            check(getattr(self, field) > 0, field, "a positive number")
        for field, choices in (
            ("activation", tuple(ACTIVATIONS)),
            ("position", POSITIONS),
            ("head", HEADS),
            ("classifier", CLASSIFIERS),
            ("dtype", tuple(DTYPES)),
        ):
            check(getattr(self, field) in choices, field, f"one of {', '.join(choices)}")
        if self.head in ("tagging", "spans") and self.classifier == "tinybert":
            check(False, "classifier", f"bert: {self.head} reads no pooled state")
        outputs = {"regression": 1, "spans": 2}.get(self.head, self.num_labels)
        if self.num_labels > 0:
            check(self.num_labels == outputs, "num_labels", f"{outputs} for {self.head}")
        if self.num_heads > 0 and self.hidden_size % self.num_heads:
            low = max(self.hidden_size // self.num_heads, 1) * self.num_heads
            want = f"a multiple of num_heads = {self.num_heads}, such as {low}"
            check(False, "hidden_size", f"{want} or {low + self.num_heads}")
        elif self.num_heads > 0 and self.position == "rotary":
            even = self.hidden_size // self.num_heads % 2 == 0
            check(even, "hidden_size", "an even head size for rotary positions")
        if errors:
            raise UserErrors(errors)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_classes(self) -> int:
        """Labels that have names: a number and the bounds of a span have none."""
        return 0 if self.head in ("regression", "spans") else self.num_labels

    def replace(self, **changes: Any) -> BertConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


PRESETS = {
    # Jiao et al. 2020, section 4.2: 14,350,248 and 66,955,008 parameters.
    "tinybert4": BertConfig(hidden_size=312, num_layers=4, intermediate_size=1200),
    "tinybert6": BertConfig(num_layers=6),
    # Devlin et al. 2019: 109,482,240 parameters.
    "bert-base": BertConfig(),
    # Wang et al. 2020 (MiniLM), as all-MiniLM-L6-v2 uses it: 22,713,216 parameters.
    "minilm-l6": BertConfig(hidden_size=384, num_layers=6, intermediate_size=1536),
}


class Embeddings(nn.Module):
    """Word, position and token type vectors, summed, normalised and dropped out."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, tokens: Array, token_types: Array, positions: Array, deterministic: bool
    ) -> Array:
        """Embeds int32 [B, T] inputs: float32 [B, T, D]."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        word = self.param("word", init, (c.vocab_size, c.hidden_size), jnp.float32)
        types = self.param("token_type", init, (c.type_vocab_size, c.hidden_size), jnp.float32)
        x = word[tokens] + types[token_types]  # [B, T, D]
        if c.position == "learned":
            x += LearnedPositions(
                c.max_position_embeddings, c.hidden_size, c.initializer_range, name="position"
            )(positions)
        elif c.position == "sinusoidal":
            x += jnp.asarray(sinusoidal_table(c.max_position_embeddings, c.hidden_size))[positions]
        x = nn.LayerNorm(epsilon=c.layer_norm_eps, name="norm")(x)
        return Dropout(c.hidden_dropout)(x, deterministic=deterministic)


class Bert(nn.Module):
    """BERT with every head; only the groups that a call reads need be in the parameters.

    Parameter groups: ``embeddings``, ``encoder``, ``pooler``, ``classifier``, ``mlm``, ``nsp``,
    ``projection``. Head methods read the output of ``__call__``.
    """

    config: BertConfig

    def setup(self) -> None:
        c = self.config
        dtype = DTYPES[c.dtype]
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(
            c.num_layers,
            c.num_heads,
            c.intermediate_size,
            c.activation,
            c.layer_norm_eps,
            c.hidden_dropout,
            c.attention_dropout,
            c.position == "rotary",
            dtype,
            c.initializer_range,
        )
        self.pooler = heads.Pooler(dtype, c.initializer_range)
        # BERT's own head of spans has no dropout (Devlin et al. 2019).
        dropout = 0.0 if c.head == "spans" else c.hidden_dropout
        self.classifier = heads.Classifier(
            c.num_labels, c.classifier, dropout, dtype, c.initializer_range
        )
        self.mlm = heads.MaskedLMHead(c.activation, c.layer_norm_eps, dtype, c.initializer_range)
        self.nsp = heads.NextSentenceHead(dtype, c.initializer_range)
        copies = c.num_layers + 1 if c.projection_per_layer else 0
        self.projection = heads.Projection(
            c.projection_size, copies, c.projection_rank, dtype, c.initializer_range
        )

    def __call__(
        self,
        batch: Any,
        *,
        collect: Collect = Collect(),
        deterministic: bool = True,
        key_mask_only: bool = False,
        places: Array | None = None,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
          batch: has int32 [B, T] ``tokens``, ``segments``, ``token_types`` and ``positions``.
          collect: what to return beside the last hidden state.
          deterministic: True turns dropout off; otherwise an rng named ``dropout`` is needed.
          key_mask_only: mask as the original BERT does, -10000 at padded keys alone, and count
            positions on through the padding; right only for one example a row.
          places: int32 [B, Q], the positions whose last hidden state is wanted, [B, Q, D].
        """
        if self.config.dtype == "int8" and not self.is_initializing():
            kernel = self.variables["params"]["encoder"]["layers"]["intermediate"]["kernel"]
            assert kernel.dtype == jnp.int8  # as it is, it would be multiplied in bfloat16
        bias, positions = segment_bias(batch.segments), batch.positions
        if key_mask_only:
            bias = key_bias(batch.segments)
            positions = np.broadcast_to(
                np.arange(positions.shape[1], dtype=np.int32), positions.shape
            )
        x = self.embeddings(batch.tokens, batch.token_types, positions, deterministic)
        return self.encoder(
            x, bias, positions, collect=collect, deterministic=deterministic, places=places
        )

    def pool(self, states: Array) -> Array:
        """The pooled states of [CLS] states [B, S, D]: float32 [B, S, D]."""
        return self.pooler(states)

    def classify(self, states: Array, *, deterministic: bool = True) -> Array:
        """The head's logits, float32 [B, Q, C].

        Args:
          states: float32 [B, Q, D], the last hidden state where the head reads it (`head_places`).
          deterministic: True turns dropout off.
        """
        if self.config.head in POOLED:
            states = self.pooler(states)
        return self.classifier(states, deterministic=deterministic)

    def mlm_logits(self, hidden: Array) -> Array:
        """Word piece logits float32 [..., V] of hidden [..., D]."""
        return self.mlm(hidden, self.embeddings.variables["params"]["word"])

    def nsp_logits(self, pooled: Array) -> Array:
        """Next-sentence logits float32 [..., 2] of pooled [..., D]."""
        return self.nsp(pooled)

    def project(self, hidden: Array, index: int) -> Array:
        """Hidden state ``index`` [B, T, D] in the teacher's width: float32 [B, T, D']."""
        return self.projection(hidden, index)

    def everything(self, batch: Any, groups: tuple[str, ...]) -> None:
        """Touches every parameter of ``groups``; for ``init``."""
        hidden = self(batch).last_hidden
        assert hidden is not None
        pooled = self.pooler(hidden)
        if "classifier" in groups:
            self.classify(hidden)
        if "mlm" in groups:
            self.mlm_logits(hidden)
        if "nsp" in groups:
            self.nsp(pooled)
        if "projection" in groups:
            self.projection(hidden, 0)


@dataclasses.dataclass(frozen=True)
class _Probe:
    """The smallest batch, to initialise with."""

    tokens: Array
    segments: Array
    token_types: Array
    positions: Array
    starts: Array


def scored_groups(config: BertConfig) -> tuple[str, ...]:
    """The parameter groups that the head's logits are computed from."""
    pooler = ("pooler",) * (config.head in POOLED)
    return ("embeddings", "encoder", *pooler, "classifier")


def groups_of(config: BertConfig) -> tuple[str, ...]:
    """The parameter groups a fresh model of this configuration has."""
    backbone = ("embeddings", "encoder", "pooler")
    groups = scored_groups(config) if config.num_labels else backbone
    return groups + ("projection",) * bool(config.projection_size)


def init_params(config: BertConfig, key: Array, groups: tuple[str, ...] | None = None) -> Params:
    """Fresh float32 parameters, N(0, initializer_range) with zero biases and unit scales.

    Of a projection in two factors it is the product that has that range.

    Args:
      config: the model.
      key: a jax.random key.
      groups: which groups to make; default ``groups_of(config)``. Each group's values depend on
        the key and the configuration alone, not on the other groups.
    """
    groups = groups or groups_of(config)
    ones = jnp.ones((1, 1), jnp.int32)
    probe = _Probe(ones, ones, ones - 1, ones - 1, ones - 1)
    model = Bert(config)

    def init(key: Array) -> Params:
        params = model.init(key, probe, groups, method="everything")["params"]
        return {name: params[name] for name in groups}  # the compiler drops the others

    return jax.jit(init)(key)


def encode(
    config: BertConfig,
    params: Params,
    batch: Any,
    *,
    collect: Collect = Collect(),
    key: Array | None = None,
    key_mask_only: bool = False,
    places: Array | None = None,
) -> EncoderOutput:
    """Encodes a batch: ``Bert.__call__`` as a function.

    Args:
      config: the model.
      params: its groups.
      batch: packed rows, as ``Bert.__call__`` reads them.
      collect: what to return beside the last hidden state.
      key: a jax.random key for dropout; None turns dropout off.
      key_mask_only, places: as in ``Bert.__call__``.
    """
    output = Bert(config).apply(
        {"params": params},
        batch,
        collect=collect,
        deterministic=key is None,
        key_mask_only=key_mask_only,
        places=places,
        rngs=None if key is None else {"dropout": key},
    )
    return cast(EncoderOutput, output)


def class_logits(
    config: BertConfig,
    params: Params,
    batch: Any,
    *,
    key: Array | None = None,
    key_mask_only: bool = False,
) -> Array:
    """The head's logits: float32 [B, S, C] of every packed example; arguments as ``encode``.

    [B, M, C] of the batch's ``places`` for ``tagging``, [B, T, 2] for ``spans``.
    """
    keys = (None, None) if key is None else tuple(jax.random.split(key))
    places = head_places(config, batch)
    _, (states,) = last_states(
        config, params, batch, [places], key=keys[0], key_mask_only=key_mask_only
    )
    return head_logits(config, params, states, key=keys[1])


def head_places(config: BertConfig, batch: Any) -> Array | None:
    """Where the head reads the last hidden state: int32 [B, S] or [B, M]; None is everywhere."""
    if config.head in POOLED:
        return batch.starts
    return batch.places if config.head == "tagging" else None


def last_states(
    config: BertConfig,
    params: Params,
    batch: Any,
    places: Sequence[Array | None],
    *,
    collect: Collect = Collect(),
    key: Array | None = None,
    key_mask_only: bool = False,
) -> tuple[EncoderOutput, list[Array]]:
    """Encodes a batch, for its last hidden state at each of several lists of positions.

    Where nothing else is collected the last layer computes it there alone.

    Args:
      config, params, batch, collect, key, key_mask_only: as ``encode`` takes them.
      places: int32 [B, Q] each; None is all positions.

    Returns:
      What ``encode`` does, and for each list float32 [B, Q, D].
    """
    here = functools.partial(encode, config, params, batch, key=key, key_mask_only=key_mask_only)
    some = [each for each in places if each is not None]
    counts = [each.shape[1] for each in some]
    if collect.empty and 0 < len(some) == len(places) and sum(counts) < batch.tokens.shape[1]:
        output = here(places=jnp.concatenate(some, axis=1))
        ends = [sum(counts[: i + 1]) for i in range(len(counts) - 1)]
        return output, jnp.split(cast(Array, output.last_hidden), ends, axis=1)
    output = here(collect=collect)
    return output, [
        last if each is None else jnp.take_along_axis(last, each[:, :, None], axis=1)
        for each in places
        if (last := output.last_hidden) is not None
    ]


def head_logits(
    config: BertConfig, params: Params, states: Array, *, key: Array | None = None
) -> Array:
    """The head's logits, as ``class_logits``, of the states [B, Q, D] that it reads."""
    logits = Bert(config).apply(
        {"params": params},
        states,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
        method="classify",
    )
    return cast(Array, logits)


def pool(config: BertConfig, params: Params, states: Array) -> Array:
    """The pooled states float32 [B, S, D] of [CLS] states [B, S, D]."""
    return cast(Array, Bert(config).apply({"params": params}, states, method="pool"))


def fill_logits(config: BertConfig, params: Params, batch: Any) -> Array:
    """Word piece logits float32 [B, M, V] at ``batch.places``, int32 [B, M], dropout off."""
    _, (states,) = last_states(config, params, batch, [batch.places])
    return masked_lm_logits(config, params, states)


def masked_lm_logits(config: BertConfig, params: Params, states: Array) -> Array:
    """Word piece logits float32 [B, M, V] of states [B, M, D]."""
    return cast(Array, Bert(config).apply({"params": params}, states, method="mlm_logits"))


def next_sentence_logits(config: BertConfig, params: Params, states: Array) -> Array:
    """Next-sentence logits float32 [B, S, 2] of [CLS] states [B, S, D]."""
    pooled = pool(config, params, states)
    return cast(Array, Bert(config).apply({"params": params}, pooled, method="nsp_logits"))


def project(config: BertConfig, params: Params, hidden: Array, index: int) -> Array:
    """Hidden state ``index`` [B, T, D] in the teacher's width: float32 [B, T, D']."""
    projected = Bert(config).apply({"params": params}, hidden, index, method="project")
    return cast(Array, projected)


def count_parameters(params: Any) -> int:
    """Scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
