"""The Transformer encoder stack: takes embeddings and a mask, whatever they are made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.models.attention import AttentionOutput, SelfAttention
from jaxbert.models.dropout import Dropout
from jaxbert.models.linear import Linear

Array = jax.Array


def gelu(x: Array) -> Array:
    """The product of x and the normal distribution function of x (Hendrycks & Gimpel 2016), by erf.

    As PyTorch does it. ``nn.gelu`` takes erfc, which is relatively exact far below zero too, and
    three times slower on a CPU.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


# Rows x positions from which a scan is unrolled. XLA's CPU backend runs the inside of a loop
# slower, but outside of one it copies each layer's weights, which only many positions pay for:
# up to 320 the two take alike, 448 are a seventh faster (2 cores of an AMD EPYC, a task's step).
UNROLL_FROM = 384


@dataclasses.dataclass(frozen=True)
class Collect:
    """What a caller wants to see of the stack; static, so the rest is never computed.

    Attributes:
      hidden: hidden states by index, 0 = the embeddings, i = the output of layer i.
      scores, queries, keys, values: attention features by layer, counted from 0.
      last: whether the last hidden state is needed.
    """

    hidden: tuple[int, ...] = ()
    scores: tuple[int, ...] = ()
    queries: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    last: bool = True

    @property
    def empty(self) -> bool:
        """True if nothing but the last hidden state is asked for."""
        return not (self.hidden or self.scores or self.queries or self.keys or self.values)

    def depth(self, num_layers: int) -> int:
        """How many layers must run."""
        if self.last:
            return num_layers
        layers = (*self.scores, *self.queries, *self.keys, *self.values)
        return max([0, *self.hidden, *(layer + 1 for layer in layers)])

    def reads(self, layer: int, name: str, num_layers: int) -> bool:
        """Whether what is collected depends on a parameter of a layer, counted from 0.

        Args:
          layer: the layer.
          name: of its parameter, such as ``attention/query/kernel``.
          num_layers: of the stack.
        """
        depth = self.depth(num_layers)
        if layer != depth - 1 or self.last or depth in self.hidden:
            return layer < depth
        asked = {
            "attention/query": (*self.scores, *self.queries),
            "attention/key": (*self.scores, *self.keys),
            "attention/value": self.values,
        }
        return layer in asked.get(name.rpartition("/")[0], ())


class EncoderOutput(NamedTuple):
    """What the stack returns, all float32; mappings hold exactly what was collected.

    Attributes:
      last_hidden: [B, T, D], or None if ``Collect.last`` is False.
      hidden: index -> [B, T, D].
      scores: layer -> [B, H, T, T], scaled and masked, before the softmax.
      queries, keys, values: layer -> [B, T, H, D/H].
    """

    last_hidden: Array | None
    hidden: Mapping[int, Array]
    scores: Mapping[int, Array]
    queries: Mapping[int, Array]
    keys: Mapping[int, Array]
    values: Mapping[int, Array]

    def named(self) -> dict[str, Array]:
        """All that was collected, by the names of ``Batch.taught``: ``hidden/3``, ``scores/2``."""
        features = ("hidden", "scores", "queries", "keys", "values")
        return {f"{f}/{i}": x for f in features for i, x in getattr(self, f).items()}


def cut(layers: Any, counts: Sequence[int]) -> list[Any]:
    """Stacked parameters in several stacks of so many layers each.

    By lax.split, which transposes to one concatenation; indexing would to a padded sum a part.
    """
    leaves, tree = jax.tree.flatten(layers)
    parts = zip(*(jax.lax.split(leaf, tuple(counts)) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(tree, part) for part in parts]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_first(
    run: Callable[..., Array], unroll: bool, x: Array, first: Any, whole: Any, given: Any
) -> Array:
    """States after the layers ``first``, with which the stack ``whole`` begins.

    What is cut out of a stack is a copy, which at few positions takes longer than the layers do. So
    they are read out of the whole by index, but for a derivative: that of an index is as large as
    the whole.

    Args:
      run: ``run(x, layer, given)``, a layer.
      unroll: whether the loop is unrolled.
      x: [B, T, D].
      first: parameters and keys, [N, ...].
      whole: the same, [L, ...], N <= L; no gradient reaches it.
      given: what every layer reads.
    """

    def body(x: Array, index: Array) -> tuple[Array, None]:
        layer = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, False), whole)
        return run(x, layer, given), None

    count = len(jax.tree.leaves(first)[0])
    return jax.lax.scan(body, x, jnp.arange(count), unroll=unroll)[0]


def _scan_first_forward(
    run: Callable[..., Array], unroll: bool, x: Array, first: Any, whole: Any, given: Any
) -> tuple[Array, Any]:
    del whole

    def scan(x: Array, first: Any, given: Any) -> Array:
        return jax.lax.scan(lambda x, one: (run(x, one, given), None), x, first, unroll=unroll)[0]

    return jax.vjp(scan, x, first, given)


def _scan_first_backward(
    run: Callable[..., Array], unroll: bool, pull: Callable[..., Any], g: Array
) -> tuple[Any, ...]:
    del run, unroll
    dx, dfirst, dgiven = pull(g)
    return dx, dfirst, None, dgiven


scan_first.defvjp(_scan_first_forward, _scan_first_backward)


class EncoderLayer(nn.Module):
    """One post-norm Transformer layer (Devlin et al. 2019).

    Attributes: as ``Encoder``.
    """

    num_heads: int
    intermediate_size: int
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    rotary: bool = False
    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(
        self,
        x: Array,
        bias: Array,
        positions: Array,
        deterministic: bool,
        places: Array | None = None,
        scored: bool = True,
    ) -> tuple[Array, AttentionOutput]:
        """Maps x [B, T, D] to the layer's output [B, T, D] and what its attention computed.

        With ``places``, int32 [B, Q], the output is that of those positions, [B, Q, D]. Unless it
        is ``scored`` there may be no scores.
        """
        drop = functools.partial(Dropout(self.hidden_dropout), deterministic=deterministic)
        norm = functools.partial(nn.LayerNorm, epsilon=self.layer_norm_eps)
        linear = functools.partial(
            Linear, dtype=self.dtype, initializer_range=self.initializer_range
        )
        attention = SelfAttention(
            self.num_heads,
            self.attention_dropout,
            self.rotary,
            self.dtype,
            self.initializer_range,
            name="attention",
        )(x, bias, positions, deterministic=deterministic, places=places, scored=scored)
        if places is not None:
            x = jnp.take_along_axis(x, places[:, :, None], axis=1)
        x = norm(name="attention_norm")(x + drop(attention.output))
        hidden = linear(self.intermediate_size, rounded=True, name="intermediate")(x)  # [B, T, F]
        hidden = ACTIVATIONS[self.activation](hidden)
        x = norm(name="output_norm")(x + drop(linear(x.shape[-1], name="output")(hidden)))
        return x, attention


class Encoder(nn.Module):
    """A stack of layers whose parameters are stacked along a leading axis [L, ...].

    Scanned when nothing is collected, unrolled when something is; both run the same function on
    the same keys, but that layers whose scores are not collected need not write them (`fuses`).
    The stack stops after the last layer that anyone needs.

    Attributes:
      num_layers: L.
      num_heads: H.
      intermediate_size: the feed-forward width F.
      activation: ``gelu`` (erf), ``gelu_new`` (tanh) or ``relu``.
      layer_norm_eps: added to the variance in every LayerNorm.
      hidden_dropout: rate on each sub-layer's output.
      attention_dropout: rate on attention probabilities.
      rotary: whether attention rotates queries and keys.
      dtype: dtype of the products' operands.
      initializer_range: standard deviation of the initial weights.
    """

    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    rotary: bool = False
    dtype: Any = jnp.float32
    initializer_range: float = 0.02

    @nn.compact
    def __call__(
        self,
        x: Array,
        bias: Array,
        positions: Array,
        *,
        collect: Collect = Collect(),
        deterministic: bool = True,
        places: Array | None = None,
    ) -> EncoderOutput:
        """Runs the stack.

        Args:
          x: float32 [B, T, D], the embeddings.
          bias: float32, broadcastable to [B, H, T, T], added to every layer's scores.
          positions: int32 [B, T], read by rotary attention.
          collect: what to return beside the last hidden state.
          deterministic: True turns dropout off; otherwise an rng named ``dropout`` is needed.
          places: int32 [B, Q], the positions whose last hidden state is wanted, [B, Q, D]: the last
            layer asks and feeds forward at no other. Not with ``collect``.
        """
        assert places is None or (collect.empty and collect.last)
        layer = EncoderLayer(
            self.num_heads,
            self.intermediate_size,
            self.activation,
            self.layer_norm_eps,
            self.hidden_dropout,
            self.attention_dropout,
            self.rotary,
            self.dtype,
            self.initializer_range,
            parent=None,
        )

        def init(key: Array) -> Any:
            def one(k: Array) -> Any:
                return layer.init(k, x[:1], bias[:1], positions[:1], True)["params"]

            return jax.vmap(one)(jax.random.split(key, self.num_layers))

        # Given ones are checked by the layer: those of int8 have scales beside their matrices.
        params: Any = self.get_variable("params", "layers")
        if params is None:
            params = self.param("layers", init)
        key = jax.random.key(0) if deterministic else self.make_rng("dropout")
        keys = jax.random.split(key, self.num_layers)

        def run(
            x: Array, one: Any, given: Any, places: Array | None = None, scored: bool = False
        ) -> tuple[Array, AttentionOutput]:
            params, key = one
            return layer.apply(  # type: ignore[return-value]
                {"params": params},
                *(x, *given, deterministic, places, scored),
                rngs={"dropout": key},
            )

        whole, given = (params, keys), (bias, positions)
        if collect.empty and collect.last:
            unroll = x.shape[0] * x.shape[1] >= UNROLL_FROM
            if places is None:
                last, _ = jax.lax.scan(
                    lambda x, one: (run(x, one, given)[0], None), x, whole, unroll=unroll
                )
            else:
                below, top = cut(params, (self.num_layers - 1, 1))
                first = (below, keys[:-1])
                x = scan_first(lambda *of: run(*of)[0], unroll, x, first, whole, given)
                last_layer = (jax.tree.map(lambda a: a[0], top), keys[-1])
                last, _ = run(x, last_layer, given, places)
            return EncoderOutput(last, {}, {}, {}, {}, {})

        hidden, seen = {0: x}, []
        layers = [jax.tree.map(lambda a: a[0], one) for one in cut(params, (1,) * self.num_layers)]
        for i in range(collect.depth(self.num_layers)):
            x, attention = run(x, (layers[i], keys[i]), given, scored=i in collect.scores)
            hidden[i + 1] = x
            seen.append(attention)

        def pick(feature: str, indices: tuple[int, ...]) -> dict[int, Array]:
            return {i: getattr(seen[i], feature) for i in indices}

        return EncoderOutput(
            x if collect.last else None,
            {i: hidden[i] for i in collect.hidden},
            pick("scores", collect.scores),
            pick("queries", collect.queries),
            pick("keys", collect.keys),
            pick("values", collect.values),
        )
