"""How a BERT is laid out on disk: one table of names, read in both directions.

Names and orientation are those of `transformers` and of the TinyBERT authors' checkpoints
(``fit_dense``, ``fit_denses``): weights of dense layers are [out, in], one tensor a layer. The two
factors of a low-rank projection, which nobody else has, are ``projection.down`` and ``.up``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxbert.models.bert import BertConfig

# Our field -> the key of config.json.
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}

# In files of the full model, what belongs to the backbone stands under this prefix.
PREFIX = "bert."
BACKBONE = ("embeddings", "encoder", "pooler")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter, here and there.

    Attributes:
      path: the parameter here, parts joined by ``/``; the first is its group.
      name: the tensor there, without ``bert.``; ``{}`` stands for the index of a stacked one.
      shape: the tensor's shape there: numbers, or keys of config.json (and of ``sizes``).
    """

    path: str
    name: str
    shape: tuple[str | int, ...]

    @property
    def group(self) -> str:
        """The parameter group."""
        return self.path.split("/")[0]

    @property
    def stacked(self) -> bool:
        """Whether the parameter here stacks several tensors."""
        return "{}" in self.name

    def names(self, config: BertConfig) -> list[str]:
        """The tensors there, without ``bert.``, in the order they are stacked in."""
        if not self.stacked:
            return [self.name]
        return [
            self.name.format(i) for i in range(config.num_layers + (self.group == "projection"))
        ]

    def file_name(self, name: str, prefix: str) -> str:
        """``name`` as a file of the full model spells it."""
        return prefix + name if self.group in BACKBONE else name


def _dense(path: str, name: str, features: str | int, inputs: str = "hidden_size") -> list[Rule]:
    return [
        Rule(f"{path}/kernel", f"{name}.weight", (features, inputs)),
        Rule(f"{path}/bias", f"{name}.bias", (features,)),
    ]


def _norm(path: str, name: str) -> list[Rule]:
    return [
        Rule(f"{path}/scale", f"{name}.weight", ("hidden_size",)),
        Rule(f"{path}/bias", f"{name}.bias", ("hidden_size",)),
    ]


def _factors(name: str) -> list[Rule]:
    return [
        Rule("projection/down_kernel", f"{name}.down.weight", ("projection_rank", "hidden_size")),
        Rule("projection/up_kernel", f"{name}.up.weight", ("projection_size", "projection_rank")),
        Rule("projection/bias", f"{name}.up.bias", ("projection_size",)),
    ]


_D, _F, _LAYER, _HEAD = "hidden_size", "intermediate_size", "encoder.layer.{}", "cls.predictions"
_TABLE = "embeddings.{}_embeddings.weight"

RULES = (
    Rule("embeddings/word", _TABLE.format("word"), ("vocab_size", _D)),
    Rule("embeddings/token_type", _TABLE.format("token_type"), ("type_vocab_size", _D)),
    Rule(
        "embeddings/position/embedding", _TABLE.format("position"), ("max_position_embeddings", _D)
    ),
    *_norm("embeddings/norm", "embeddings.LayerNorm"),
    *_dense("encoder/layers/attention/query", f"{_LAYER}.attention.self.query", _D),
    *_dense("encoder/layers/attention/key", f"{_LAYER}.attention.self.key", _D),
    *_dense("encoder/layers/attention/value", f"{_LAYER}.attention.self.value", _D),
    *_dense("encoder/layers/attention/output", f"{_LAYER}.attention.output.dense", _D),
    *_norm("encoder/layers/attention_norm", f"{_LAYER}.attention.output.LayerNorm"),
    *_dense("encoder/layers/intermediate", f"{_LAYER}.intermediate.dense", _F),
    *_dense("encoder/layers/output", f"{_LAYER}.output.dense", _D, _F),
    *_norm("encoder/layers/output_norm", f"{_LAYER}.output.LayerNorm"),
    *_dense("pooler/dense", "pooler.dense", _D),
    *_dense("classifier/dense", "classifier", "num_labels"),
    *_dense("classifier/dense", "qa_outputs", "num_labels"),
    *_dense("mlm/transform", f"{_HEAD}.transform.dense", _D),
    *_norm("mlm/norm", f"{_HEAD}.transform.LayerNorm"),
    Rule("mlm/bias", f"{_HEAD}.bias", ("vocab_size",)),
    *_dense("nsp/dense", "cls.seq_relationship", 2),
    *_dense("projection", "fit_dense", "projection_size"),
    *_dense("projection", "fit_denses.{}", "projection_size"),
    *_factors("projection"),
    *_factors("projections.{}"),
)

# Second names of one tensor, which a file may hold beside it or instead.
ALIASES = {
    f"{_HEAD}.decoder.weight": _TABLE.format("word"),
    f"{_HEAD}.decoder.bias": f"{_HEAD}.bias",
}
# Buffers that older versions of `transformers` saved; they hold no parameters.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def canonical(name: str) -> str:
    """A tensor's name without ``bert.`` and without the gamma and beta of old LayerNorms."""
    name = name.removeprefix(PREFIX)
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        if name.endswith(f"LayerNorm.{old}"):
            name = name.removesuffix(old) + new
    return name


def rules_for(config: BertConfig, groups: Sequence[str]) -> list[Rule]:
    """The rules of a model with these parameter groups."""

    def holds(rule: Rule) -> bool:
        if rule.group == "projection":
            full = rule.name.startswith("fit_dense")
            return (rule.stacked, full) == (config.projection_per_layer, not config.projection_rank)
        if rule.group == "classifier":
            return rule.name.startswith("qa_outputs") == (config.head == "spans")
        return config.position == "learned" or rule.path != "embeddings/position/embedding"

    return [rule for rule in RULES if rule.group in groups and holds(rule)]


def sizes(config: BertConfig) -> dict[str, int]:
    """What the names in a rule's shape stand for."""
    named = {key: getattr(config, field) for field, key in CONFIG_KEYS.items()}
    heads = ("num_labels", "projection_size", "projection_rank")
    return named | {key: getattr(config, key) for key in heads}


def to_tensors(config: BertConfig, params: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """Parameters as contiguous float32 tensors by name."""
    tensors = {}
    for rule in rules_for(config, tuple(params)):
        leaf: Any = params
        for part in rule.path.split("/"):
            leaf = leaf[part]
        values = np.asarray(leaf, np.float32)
        for name, value in zip(
            rule.names(config), values if rule.stacked else [values], strict=True
        ):
            # safetensors writes the memory as it lies: a transposed view would come out wrong.
            tensors[rule.file_name(name, prefix)] = np.ascontiguousarray(
                value.T if rule.path.endswith("kernel") else value
            )
    return tensors


def from_tensors(
    config: BertConfig, groups: Sequence[str], read: Callable[[str], np.ndarray]
) -> dict[str, Any]:
    """Parameters from tensors; ``read`` takes a canonical name."""
    params: dict[str, Any] = {}
    for rule in rules_for(config, groups):
        values = [
            tensor.T if rule.path.endswith("kernel") else tensor
            for tensor in map(read, rule.names(config))
        ]
        *parents, last = rule.path.split("/")
        node = params
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = np.stack(values) if rule.stacked else np.ascontiguousarray(values[0])
    return params
