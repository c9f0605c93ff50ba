"""config.json: what `transformers`, the TinyBERT authors and jaxbert itself say in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxbert.errors import UserError, UserErrors
from jaxbert.interop.layout import CONFIG_KEYS
from jaxbert.models.bert import BertConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
PROBLEMS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_SPANS = "qa_outputs.weight"
# A config.json without these says too little: a wrong num_attention_heads fits every tensor.
_REQUIRED = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")


def read_config(
    values: Mapping[str, Any],
    path: Path,
    groups: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> BertConfig:
    """The configuration that config.json gives, with what only the weights tell.

    Args:
      values: what config.json holds.
      path: config.json, for messages.
      groups: the parameter groups among the weights.
      shapes: the tensors' shapes by canonical name.

    Raises:
      UserErrors: everything that is missing or not supported.
    """
    errors = []

    def wrong(key: str, value: Any, fix: str) -> None:
        errors.append(UserError(f"{key} = {value!r} is not supported", f"{path}, key {key}", fix))

    kind = values.get("model_type", "bert")
    if kind not in ("bert", "tinybert"):
        wrong("model_type", kind, "give a BERT: other architectures compute something else")
    if values.get("is_decoder"):
        wrong("is_decoder", True, "give an encoder: a decoder masks what follows")
    kinds = {field.name: field.type for field in dataclasses.fields(BertConfig)}
    fields: dict[str, Any] = {}
    for field, key in CONFIG_KEYS.items():
        value = values.get(key)
        if value is None:
            if field in _REQUIRED:
                errors.append(UserError(f"key {key} is missing", str(path), "add it"))
        elif type(value) is int or (type(value) is float and kinds[field] == "float"):
            fields[field] = value  # a bool is no number here
        else:
            wrong(key, value, f"give a number ({kinds[field]})")
    activation = values.get("hidden_act", "gelu")
    fields["activation"] = _ACTIVATIONS.get(activation) if isinstance(activation, str) else None
    if fields["activation"] is None:
        wrong("hidden_act", activation, f"give a model with one of {', '.join(_ACTIVATIONS)}")
    ours = values.get("jaxbert", {})
    ours = ours if isinstance(ours, dict) else {}
    position = values.get("position_embedding_type", "absolute")
    if "position" in ours:
        fields["position"] = ours["position"]
    elif position != "absolute":
        wrong("position_embedding_type", position, "give a model with absolute positions")
    if fields.get("num_layers", 0) > len(shapes):
        wrong("num_hidden_layers", fields["num_layers"], "the weights have fewer")
    if errors:
        raise UserErrors(errors)
    fields |= _sizes_of_heads(groups, shapes)
    if "classifier" in groups:
        fields["head"] = _head(values.get("problem_type"), groups, shapes)
    if "classifier" in ours:
        fields["classifier"] = ours["classifier"]
    try:
        return BertConfig(**fields)
    except UserErrors as found:
        raise UserErrors([UserError(e.what, str(path), e.fix) for e in found.errors]) from found


def _sizes_of_heads(groups: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields that config.json does not give."""

    def rows(name: str) -> int:
        shape = shapes.get(name, ())
        return max(shape[0], 1) if shape else 1  # the checks of names or shapes fail then

    fields: dict[str, Any] = {}
    if "classifier" in groups:
        spans = _SPANS in shapes
        fields["num_labels"] = rows(_SPANS if spans else "classifier.weight")
        fields["classifier"] = "tinybert" if "projection" in groups else "bert"
    if "projection" in groups:
        per_layer = any(name.startswith(("fit_denses.", "projections.")) for name in shapes)
        fields["projection_per_layer"] = per_layer
        factors = "projections.0" if per_layer else "projection"
        if f"{factors}.down.weight" in shapes:
            fields["projection_rank"] = rows(f"{factors}.down.weight")
            fields["projection_size"] = rows(f"{factors}.up.weight")
        else:
            full = "fit_denses.0.weight" if per_layer else "fit_dense.weight"
            fields["projection_size"] = rows(full)
    return fields


def _head(problem: Any, groups: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the classifier says: the weights tell it, or ``problem_type`` as `transformers` does."""
    if _SPANS in shapes:
        return "spans"
    if "pooler" not in groups:
        return "tagging"
    for head, name in PROBLEMS.items():
        if name == problem:
            return head
    return "regression" if shapes.get("classifier.weight", ())[:1] == (1,) else "classification"


def no_names(count: int) -> tuple[str, ...]:
    """What ``count`` classes are called that nobody named: LABEL_0 and so on."""
    return tuple(f"LABEL_{i}" for i in range(count))


def read_labels(values: Mapping[str, Any], count: int, path: Path) -> tuple[str, ...]:
    """The names of ``count`` classes, those of `no_names` where config.json gives none."""
    given = values.get("id2label")
    if not count or given is None:
        return no_names(count)
    if not isinstance(given, dict) or set(given) != {str(i) for i in range(count)}:
        raise UserError(
            f"id2label does not name the classifier's {count} classes",
            f"{path}, key id2label",
            f"give a name for each of 0 to {count - 1}",
        )
    labels = tuple(str(given[str(i)]) for i in range(count))
    if len(set(labels)) < count:
        raise UserError("two classes have one name", f"{path}, key id2label", "rename one")
    return labels


def config_json(
    config: BertConfig,
    groups: Collection[str],
    labels: Sequence[str],
    pad_id: int,
    layout: str,
) -> dict[str, Any]:
    """What config.json says of a model with these parameter groups."""
    values = {key: getattr(config, field) for field, key in CONFIG_KEYS.items()}
    values |= {
        "architectures": [_architecture(config.head, groups, layout)],
        "model_type": "bert" if layout == "huggingface" else "tinybert",
        "dtype": "float32",
        "hidden_act": config.activation,
        "position_embedding_type": "absolute" if config.position == "learned" else config.position,
        "pad_token_id": pad_id,
        "jaxbert": {"classifier": config.classifier, "position": config.position},
    }
    if config.head == "regression":
        labels = ("LABEL_0",)  # `transformers` counts the outputs so
    if labels:
        values |= {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    if "classifier" in groups and config.head in PROBLEMS:
        values["problem_type"] = PROBLEMS[config.head]
    return values


def _architecture(head: str, groups: Collection[str], layout: str) -> str:
    """The class that has these heads, in `transformers` or the TinyBERT authors' code."""
    classifier, mlm, nsp = (name in groups for name in ("classifier", "mlm", "nsp"))
    tiny = "Tiny" * (layout == "tinybert")
    if classifier:
        kinds = {"tagging": "TokenClassification", "spans": "QuestionAnswering"}
        return f"{tiny}BertFor{kinds.get(head, 'SequenceClassification')}"
    if tiny:
        return "TinyBertForPreTraining"
    if mlm:
        return "BertForPreTraining" if nsp else "BertForMaskedLM"
    return "BertForNextSentencePrediction" if nsp else "BertModel"
