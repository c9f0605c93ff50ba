"""What a forward pass costs, counted from the model's shape."""

from __future__ import annotations

from jaxbert.models.bert import POOLED, BertConfig


def forward_flops(
    config: BertConfig, length: int = 128, *, head: bool = True, projected: int = 0
) -> int:
    """Floating-point operations to predict one example, two a multiply-add.

    Counts the products: the encoder's (both of attention included), the pooler's and the
    classifier's, which reads every piece for tags and spans. Look-ups, norms, softmax and
    activations are left out, as Jiao et al. 2020 do (table 1: 22.5 billion for BERT-base and 1.2
    for TinyBERT4 at length 128).

    Args:
      config: the model.
      length: L, word pieces including the special ones.
      head: False for the encoder alone, as an embedding needs it.
      projected: hidden states of a piece that pass through the projection, the embeddings among
        them, as where layers are distilled; no prediction needs any.
    """
    width, inner = config.hidden_size, config.intermediate_size
    projections = 4 * length * width * width  # query, key, value, output
    attention = 2 * length * length * width  # scores, mix of values
    feed_forward = 2 * length * width * inner
    layers = config.num_layers * (projections + attention + feed_forward)
    labels = width * config.num_labels
    heads = width * width + labels if config.head in POOLED else length * labels
    states = projected * length * width * config.projection_size
    return 2 * (layers + heads * head + states)
