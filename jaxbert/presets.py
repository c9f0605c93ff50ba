"""Published recipes of distillation, as the terms of a phase.

Layers are the student's own number of them: rules say which teacher layer each learns from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Terms = Mapping[str, Mapping[str, Any]]

_RELATIONS = ("query_relation", "key_relation", "value_relation")

PRESETS: Mapping[str, Terms] = {
    # Jiao et al. 2020 (TinyBERT), equations 7 to 9: of general and of intermediate distillation.
    "tinybert": {
        "attention": {"feature": "scores"},
        "hidden": {"feature": "hidden"},
        "embedding": {"feature": "embeddings"},
    },
    # Jiao et al. 2020, equation 10, at temperature 1: of predictions.
    "logits": {"prediction": {"feature": "logits"}},
    # Hinton et al. 2015: soft targets and labels.
    "soft_and_hard": {
        "prediction": {"feature": "logits", "weight": 0.5, "loss": "kl", "temperature": 2.0}
        | {"temperature_squared": True},
        "labels": {"feature": "logits", "loss": "labels", "weight": 0.5},
    },
    # Sanh et al. 2019 (DistilBERT), with the factors 5, 2 and 1 of its authors' code; the soft loss
    # at masked pieces alone, where by default theirs is at every piece of the masked text.
    "distilbert": {
        "mlm_soft": {"feature": "mlm_logits", "weight": 5.0, "loss": "kl", "temperature": 2.0}
        | {"temperature_squared": True},
        "mlm_labels": {"feature": "mlm_logits", "loss": "labels", "weight": 2.0},
        "cosine": {"feature": "hidden", "loss": "cosine", "layers": "last"},
    },
    # Sun et al. 2019 (PKD), section 3, with the alpha = 0.7, T = 10 and beta = 500 of an example of
    # its authors' code, and the T^2 of that code. The code takes means over layers, width and
    # classes, where sums are taken here: a beta is patience.weight = 2 beta / (layers x width), as
    # the squared distance of normalised states is twice the cosine loss, and an alpha is
    # prediction.weight = alpha / classes. These are of BERT-base, of five layers (a student's six
    # but the last), and of two classes.
    "pkd": {
        "labels": {"feature": "logits", "loss": "labels", "weight": 0.3},
        "prediction": {"feature": "logits", "weight": 0.35, "loss": "kl", "temperature": 10.0}
        | {"temperature_squared": True},
        "patience": {"feature": "cls", "loss": "cosine", "layers": "skip", "weight": 0.26},
    },
    # Wang et al. 2020 (MiniLM), section 3: the last layer's attention and relation of values, of as
    # many heads as their models have.
    "minilm": {
        "attention": {"feature": "probabilities", "layers": "last"},
        "values": {"feature": "value_relation", "layers": "last", "relation_heads": -1},
    },
    # Wang et al. 2021 (MiniLMv2), section 3: relations of queries, keys and values.
    "minilmv2": {name: {"feature": name, "layers": "last"} for name in _RELATIONS},
    # Sun et al. 2020 (MobileBERT), section 3.3: every layer's hidden states and attention.
    "mobilebert": {
        "hidden": {"feature": "hidden"},
        "attention": {"feature": "probabilities"},
    },
    # Embeddings of sentences, whatever their task: direction and length of the mean state.
    "sentence": {
        "direction": {"feature": "sentence", "loss": "cosine", "layers": "last"},
        "embedding": {"feature": "sentence", "loss": "mse", "layers": "last"},
    },
}
