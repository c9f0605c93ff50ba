"""What stands on top of the encoder: pooler, classifier, masked-LM and next-sentence heads."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbert.models.dropout import Dropout
from jaxbert.models.encoder import ACTIVATIONS
from jaxbert.models.linear import Linear, einsum

Array = jax.Array


class Pooler(nn.Module):
    """tanh(W h + b) of an example's [CLS] state (Devlin et al. 2019)."""

    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, states: Array) -> Array:
        """Maps [CLS] states [..., D] to float32 [..., D]."""
        linear = Linear(states.shape[-1], self.dtype, self.initializer_range, name="dense")
        return jnp.tanh(linear(states))


class Classifier(nn.Module):
    """Logits of states: pooled ones of whole examples, or those of single word pieces.

    Attributes:
      num_labels: C.
      kind: ``bert``: W dropout(state); ``tinybert``: W relu(state), the head of the TinyBERT
        authors' code.
      dropout: rate before the ``bert`` head's product.
    """

    num_labels: int
    kind: str = "bert"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, states: Array, *, deterministic: bool = True) -> Array:
        """Maps states [..., D] to float32 logits [..., C]."""
        if self.kind == "tinybert":
            states = nn.relu(states)
        else:
            states = Dropout(self.dropout)(states, deterministic=deterministic)
        linear = Linear(self.num_labels, self.dtype, self.initializer_range, name="dense")
        return linear(states)


class MaskedLMHead(nn.Module):
    """Word-piece logits with the decoder tied to the word embeddings (Devlin et al. 2019)."""

    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, hidden: Array, table: Array) -> Array:
        """Maps hidden [..., D] and the word table [V, D] to float32 logits [..., V]."""
        linear = Linear(hidden.shape[-1], self.dtype, self.initializer_range, name="transform")
        hidden = ACTIVATIONS[self.activation](linear(hidden))
        hidden = nn.LayerNorm(epsilon=self.layer_norm_eps, name="norm")(hidden)
        bias = self.param("bias", nn.initializers.zeros, (table.shape[0],), jnp.float32)
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = einsum("nd,vd->nv", flat, table, self.dtype) + bias
        return logits.reshape(*hidden.shape[:-1], table.shape[0])


class NextSentenceHead(nn.Module):
    """Two logits from the pooled state: 0 = the second text follows the first, 1 = it does not."""

    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        """Maps pooled [..., D] to float32 [..., 2]."""
        return Linear(2, self.dtype, self.initializer_range, name="dense")(pooled)


class Projection(nn.Module):
    """The student's states in the teacher's width (Jiao et al. 2020, equation 8), with a bias.

    Attributes:
      features: the teacher's width.
      copies: 0 for one projection shared by the embeddings and every layer, otherwise one each
        for ``copies`` hidden states.
      rank: 0 for a full matrix, otherwise the width between the two factors of one.
    """

    features: int
    copies: int = 0
    rank: int = 0
    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, hidden: Array, index: int = 0) -> Array:
        """Projects hidden state number ``index``: [B, T, D] to float32 [B, T, features]."""
        lead = (self.copies,) if self.copies else ()
        widths = (hidden.shape[-1], *(self.rank,) * bool(self.rank), self.features)
        names = ("down_kernel", "up_kernel") if self.rank else ("kernel",)
        # Entries of a product of two factors have the standard deviation sqrt(rank) std^2.
        std = self.initializer_range
        init = nn.initializers.normal(std**0.5 / self.rank**0.25 if self.rank else std)
        out = hidden.reshape(-1, hidden.shape[-1])
        for name, *shape in zip(names, widths, widths[1:], strict=False):
            kernel = self.param(name, init, (*lead, *shape), jnp.float32)
            kernel = kernel[index] if self.copies else kernel
            out = einsum("nd,df->nf", out, kernel, self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (*lead, self.features), jnp.float32)
        out += bias[index] if self.copies else bias
        return out.reshape(*hidden.shape[:-1], self.features)
