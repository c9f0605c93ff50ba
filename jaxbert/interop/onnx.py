"""ONNX: a model as a graph for onnxruntime and transformers.js, and its quantised copy.

The graph is written operator by operator (opset 20), so that neither torch nor a tracer is needed.
Inputs are int64 ``input_ids``, ``attention_mask`` and ``token_type_ids``, all [batch, length], and
both dimensions are free. Outputs are float32 ``logits``, [batch, C] of heads that read whole texts
and [batch, length, C] of ``tagging``; of ``spans`` ``start_logits`` and ``end_logits`` [batch,
length]; of a model without a head ``last_hidden_state`` [batch, length, D].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxbert.batch import MASKED
from jaxbert.errors import UserError
from jaxbert.models.bert import POOLED, BertConfig
from jaxbert.models.positional import sinusoidal_table

OPSET, IR_VERSION = 20, 9  # LayerNormalization and Gelu are single operators
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_FIX = 'pip install "jaxbert[onnx]"'


def write_onnx(path: Path, config: BertConfig, params: Mapping[str, Any]) -> None:
    """Writes a model as an ONNX file.

    Args:
      path: the file.
      config: the model.
      params: its groups; a classifier, if there is one, is its head.

    Raises:
      UserError: onnx is not installed.
    """
    onnx = _library("onnx")
    graph = _Graph(onnx)
    outputs = _bert(graph, config, params)
    free: list[Any] = ["batch", "length"]
    number, integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        graph.nodes,
        "bert",
        [value(name, integer, free) for name in INPUTS],
        [value(name, number, shape) for name, shape in outputs.items()],
        graph.constants,
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(made, opset_imports=opsets, producer_name="jaxbert")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def quantize_onnx(source: Path, path: Path) -> None:
    """Writes a copy whose weights, the word table among them, are int8.

    Activations are quantised as they come, by their own range (dynamic quantisation).

    Raises:
      UserError: onnxruntime is not installed.
    """
    _library("onnxruntime")
    _library("onnx")
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(_no_advice)  # to pre-process graphs that a tracer made
    try:
        quantize_dynamic(str(source), str(path), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: Any) -> bool:
    return "pre-processing" not in record.getMessage()


class Session:
    """An ONNX file that is asked through onnxruntime, on the CPU.

    Args:
      path: the file.
      threads: of one operator; 0 = as many as there are cores.
      spinning: whether threads without work wait busily, as onnxruntime has it by default.

    Raises:
      UserError: onnxruntime is not installed, or the file is none that it reads.
    """

    def __init__(self, path: Path, threads: int = 0, *, spinning: bool = True) -> None:
        library = _library("onnxruntime")
        options = library.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        try:
            self._session = library.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # what it raises is its own
            raise UserError(f"onnxruntime does not load it: {error}", str(path), _FIX) from error

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """Asks the model.

        Args:
          inputs: ids, mask and token types, int [B, T].

        Returns:
          Its output; of ``spans`` both, float32 [B, T, 2].
        """
        given = {n: x.astype(np.int64) for n, x in zip(INPUTS, inputs, strict=True)}
        found = self._session.run(None, given)
        return np.stack(found, axis=-1) if len(found) > 1 else found[0]


def _library(name: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed", "ONNX", _FIX) from error


class _Graph:
    """Operators and constants, each with a name of its own."""

    def __init__(self, onnx: ModuleType) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._shared: dict[tuple, str] = {}

    def constant(self, value: Any, name: str = "") -> str:
        """A constant tensor; of a bare number or a shape the same one each time."""
        # np.ascontiguousarray would make a scalar a vector, which broadcasts otherwise.
        array = np.array(value, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if not name else (name,)
        if key not in self._shared:
            self._shared[key] = name or f"constant_{len(self.constants)}"
            made = self._onnx.numpy_helper.from_array(array, self._shared[key])
            self.constants.append(made)
        return self._shared[key]

    def add(self, operator: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """An operator's output; inputs that are no names become constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = output or f"{operator}_{len(self.nodes)}"
        node = self._onnx.helper.make_node(operator, names, [output], output, **attributes)
        self.nodes.append(node)
        return output


def _bert(g: _Graph, c: BertConfig, params: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The graph of a model; its outputs' shapes."""
    length = g.add("Gather", g.add("Shape", "input_ids"), np.int64(1), axis=0)
    positions = g.add("Range", np.int64(0), length, np.int64(1))  # [T]
    hidden = _embed(g, c, params["embeddings"], positions)
    masked = g.add("Cast", g.add("Equal", "attention_mask", np.int64(0)), to=1)
    bias = g.add("Mul", masked, np.float32(MASKED))
    bias = g.add("Unsqueeze", bias, np.array([1, 2]))  # [B, 1, 1, T]
    turns = _turns(g, c, positions) if c.position == "rotary" else None
    layers = params["encoder"]["layers"]
    pooled = "classifier" in params and c.head in POOLED
    for index in range(c.num_layers):
        # Of the last layer the head reads [CLS] alone.
        first = pooled and index == c.num_layers - 1
        hidden = _layer(g, c, _one(layers, index), f"layer_{index}", hidden, bias, turns, first)
    free: list[Any] = ["batch", "length"]
    if "classifier" not in params:
        g.add("Identity", hidden, output="last_hidden_state")
        return {"last_hidden_state": [*free, c.hidden_size]}
    state = hidden
    if pooled:
        state = g.add("Squeeze", hidden, np.array([1]))  # [B, D]
        state = g.add("Tanh", _dense(g, params["pooler"]["dense"], "pooler", state))
        if c.classifier == "tinybert":
            state = g.add("Relu", state)
    logits = _dense(g, params["classifier"]["dense"], "classifier", state)
    if c.head == "spans":
        for index, name in enumerate(("start_logits", "end_logits")):
            g.add("Gather", logits, np.int64(index), axis=2, output=name)
        return {"start_logits": free, "end_logits": free}
    g.add("Identity", logits, output="logits")
    return {"logits": [*(free[:1] if c.head in POOLED else free), c.num_labels]}


def _one(tree: Any, index: int) -> Any:
    """The parameters of one layer out of the stacked ones."""
    if isinstance(tree, Mapping):
        return {name: _one(value, index) for name, value in tree.items()}
    return np.asarray(tree)[index]


def _embed(g: _Graph, c: BertConfig, params: Mapping[str, Any], positions: str) -> str:
    word = g.constant(np.asarray(params["word"], np.float32), "embeddings.word")
    types = g.constant(np.asarray(params["token_type"], np.float32), "embeddings.token_type")
    total = g.add("Add", g.add("Gather", word, "input_ids"), g.add("Gather", types, INPUTS[2]))
    table = None
    if c.position == "learned":
        table = np.asarray(params["position"]["embedding"], np.float32)
    elif c.position == "sinusoidal":
        table = sinusoidal_table(c.max_position_embeddings, c.hidden_size)
    if table is not None:
        there = g.add("Gather", g.constant(table, "embeddings.position"), positions)  # [T, D]
        total = g.add("Add", total, there)
    return _norm(g, c, params["norm"], "embeddings.norm", total)


def _turns(g: _Graph, c: BertConfig, positions: str) -> tuple[str, str]:
    """Sines and cosines [T, K/2] of rotary positions, as `jaxbert.models.positional.rotate`."""
    half = c.head_size // 2
    rates = 10000.0 ** (-np.arange(half) / half)
    angles = (np.arange(c.max_position_embeddings)[:, None] * rates).astype(np.float32)
    tables = {"sines": np.sin(angles), "cosines": np.cos(angles)}
    sin, cos = (g.add("Gather", g.constant(t, name), positions) for name, t in tables.items())
    return sin, cos


def _rotate(g: _Graph, x: str, turns: tuple[str, str]) -> str:
    """Turns [B, H, T, K]."""
    sin, cos = turns
    first, second = f"{x}_first", f"{x}_second"
    g.nodes.append(
        g._onnx.helper.make_node("Split", [x], [first, second], f"{x}_split", axis=3, num_outputs=2)
    )
    left = g.add("Sub", g.add("Mul", first, cos), g.add("Mul", second, sin))
    right = g.add("Add", g.add("Mul", second, cos), g.add("Mul", first, sin))
    return g.add("Concat", left, right, axis=3)


def _layer(
    g: _Graph,
    c: BertConfig,
    params: Mapping[str, Any],
    name: str,
    hidden: str,
    bias: str,
    turns: tuple[str, str] | None,
    first: bool,
) -> str:
    """One encoder layer: [B, T, D] to [B, T, D], or to [B, 1, D] of each text's first piece."""
    asking = hidden
    if first:
        asking = g.add("Slice", hidden, np.array([0]), np.array([1]), np.array([1]))

    def heads(which: str, hidden: str = hidden) -> str:
        x = _dense(g, params["attention"][which], f"{name}.{which}", hidden)
        x = g.add("Reshape", x, np.array([0, 0, c.num_heads, c.head_size]))
        return g.add("Transpose", x, perm=[0, 2, 1, 3])  # [B, H, T, K]

    query, key, value = heads("query", asking), heads("key"), heads("value")
    if turns:  # that of position 0 is none
        query, key = query if first else _rotate(g, query, turns), _rotate(g, key, turns)
    scores = g.add("MatMul", query, g.add("Transpose", key, perm=[0, 1, 3, 2]))
    scores = g.add("Add", g.add("Div", scores, np.float32(c.head_size**0.5)), bias)
    mixed = g.add("MatMul", g.add("Softmax", scores, axis=-1), value)
    mixed = g.add("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = g.add("Reshape", mixed, np.array([0, 0, c.hidden_size]))
    out = _dense(g, params["attention"]["output"], f"{name}.attention", mixed)
    hidden = _norm(g, c, params["attention_norm"], f"{name}.1", g.add("Add", asking, out))
    inner = _dense(g, params["intermediate"], f"{name}.intermediate", hidden)
    if c.activation == "relu":
        inner = g.add("Relu", inner)
    else:
        exact = c.activation == "gelu"
        inner = g.add("Gelu", inner, approximate="none" if exact else "tanh")
    out = _dense(g, params["output"], f"{name}.output", inner)
    return _norm(g, c, params["output_norm"], f"{name}.2", g.add("Add", hidden, out))


def _dense(g: _Graph, params: Mapping[str, Any], name: str, x: str) -> str:
    kernel = g.constant(np.asarray(params["kernel"], np.float32), f"{name}.kernel")
    bias = g.constant(np.asarray(params["bias"], np.float32), f"{name}.bias")
    return g.add("Add", g.add("MatMul", x, kernel), bias)


def _norm(g: _Graph, c: BertConfig, params: Mapping[str, Any], name: str, x: str) -> str:
    scale = g.constant(np.asarray(params["scale"], np.float32), f"{name}.scale")
    bias = g.constant(np.asarray(params["bias"], np.float32), f"{name}.bias")
    return g.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=c.layer_norm_eps)
