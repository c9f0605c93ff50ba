"""A student cut out of its teacher: layers copied, widths reduced by keeping coordinates."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxbert.errors import UserError
from jaxbert.models.bert import BertConfig, Params, init_params

READERS = ("query", "key", "value")


def init_from_teacher(
    student: BertConfig,
    teacher: BertConfig,
    params: Params,
    layers: tuple[int, ...],
    key: jax.Array,
) -> Params:
    """Initial student parameters that compute what the teacher does, as far as they fit.

    Student layer i is teacher layer ``layers[i]``. Of each width the coordinates with the largest
    share in the products are kept, the same hidden coordinates everywhere:

    - hidden coordinate d: sum over LayerNorms of layers of (scale_d^2 + bias_d^2) |rows d of what
      reads it|^2 (what reads the embeddings does not count);
    - query and key coordinate j of a head: |Wq_j| |Wk_j|, value coordinate: |Wv_j| |Wo_j|;
    - feed-forward coordinate j: |W1_j| |W2_j|.

    Queries are scaled by sqrt(K_s / K_t), so that scores keep their size. A projection into the
    teacher's width starts as the map back to the kept coordinates, one of rank r as the best of
    that rank for the sizes that LayerNorms give the coordinates of hidden states. What the teacher
    lacks is as ``init_params`` makes it.

    Args:
      student: widths at most the teacher's; heads and vocabulary equal.
      teacher: the teacher's configuration.
      params: the teacher's parameters.
      layers: a teacher layer, counted from 0, for each student layer.
      key: a jax.random key for what is fresh.

    Raises:
      UserError: if the student does not fit into the teacher.
    """
    _check(student, teacher)
    out: Params = jax.tree.map(lambda x: np.array(x), init_params(student, key))
    tree = jax.tree.map(np.asarray, params["encoder"]["layers"])
    hidden = _top(_reading(tree), student.hidden_size)

    source, target = params["embeddings"], out["embeddings"]
    for name in ("word", "token_type"):
        target[name] = np.asarray(source[name])[: target[name].shape[0], hidden]
    if student.position == teacher.position == "learned":
        table = np.asarray(source["position"]["embedding"])
        target["position"]["embedding"] = table[: student.max_position_embeddings, hidden]
    target["norm"] = {k: np.asarray(v)[hidden] for k, v in source["norm"].items()}
    cut = [_cut_layer(tree, layer, student, hidden) for layer in layers]
    out["encoder"]["layers"] = jax.tree.map(lambda *x: np.stack(x), *cut)
    if "pooler" in params:
        dense = params["pooler"]["dense"]
        kernel, bias = np.asarray(dense["kernel"]), np.asarray(dense["bias"])
        out["pooler"]["dense"] = {"kernel": kernel[np.ix_(hidden, hidden)], "bias": bias[hidden]}
    if student.projection_size == teacher.hidden_size:  # otherwise it leads to another model
        back = np.zeros((student.hidden_size, teacher.hidden_size), np.float32)
        back[np.arange(student.hidden_size), hidden] = 1.0
        norms = [target["norm"], *(layer["output_norm"] for layer in cut)]
        powers = np.stack([_power(norm) for norm in norms])  # [M + 1, D]
        power = powers if student.projection_per_layer else powers.sum(0)
        out["projection"] |= _map_back(back, power, student.projection_rank)
    return out


def _map_back(back: np.ndarray, power: np.ndarray, rank: int) -> dict[str, np.ndarray]:
    """The projection's kernels that map states back, [D, D'], or one for each row of ``power``.

    Scaled by the coordinates' root mean squares s, diag(s) back has them as its singular values,
    because back only moves coordinates. So its truncated decomposition, the best map of rank r
    (Eckart and Young 1936), is that of the r largest coordinates: s need not be divided out again.
    """
    lead = power.shape[:-1]
    if not rank:
        return {"kernel": np.broadcast_to(back, (*lead, *back.shape)).copy()}
    kept = _top(power, rank)  # [..., r]
    down = np.swapaxes(np.eye(len(back), dtype=np.float32)[kept], -1, -2)  # [..., D, r]
    return {"down_kernel": np.ascontiguousarray(down), "up_kernel": back[kept]}


def _check(student: BertConfig, teacher: BertConfig) -> None:
    for name in (
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
    ):
        mine, theirs = getattr(student, name), getattr(teacher, name)
        if mine > theirs:
            raise UserError(
                f"a student with {name} = {mine} cannot be cut out of a teacher with {theirs}",
                "config key student.init",
                "give random, or a smaller student",
            )
    if student.position == teacher.position != "learned":
        # What a position does to a coordinate depends on how many there are.
        name = "head_size" if student.position == "rotary" else "hidden_size"
        mine, theirs = getattr(student, name), getattr(teacher, name)
        if mine != theirs:
            raise UserError(
                f"a student with {student.position} positions and {name} = {mine} cannot be cut "
                f"out of a teacher with {theirs}",
                "config key student.init",
                "give random, or the teacher's",
            )
    for name in ("vocab_size", "type_vocab_size"):
        mine, theirs = getattr(student, name), getattr(teacher, name)
        if mine != theirs:
            raise UserError(
                f"a student with {name} = {mine} cannot be cut out of a teacher with {theirs}",
                "config key student.init",
                "give random, or a student with its teacher's vocabulary",
            )
    if student.num_heads != teacher.num_heads:
        raise UserError(
            f"a student with {student.num_heads} heads cannot be cut out of a teacher with "
            f"{teacher.num_heads}",
            "config key student.init",
            f"give random, or student.num_heads={teacher.num_heads}",
        )


def _top(weight: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest along the last axis, in their original order."""
    order = np.argsort(-weight, axis=-1, kind="stable")[..., :count]
    return np.sort(order, axis=-1)


def _reading(tree: Any) -> np.ndarray:
    """How much each hidden coordinate weighs in the products that read it, [D]."""
    attention = tree["attention"]
    read = sum(np.square(attention[name]["kernel"]).sum(-1) for name in READERS)  # [L, D]
    first = np.square(tree["intermediate"]["kernel"]).sum(-1)  # [L, D]
    # Attention of layer l + 1 reads the output norm of layer l.
    read_by_next = (_power(tree["output_norm"])[:-1] * read[1:]).sum(0)
    return read_by_next + (_power(tree["attention_norm"]) * first).sum(0)


def _power(norm: Any) -> np.ndarray:
    """The mean square of each coordinate behind a LayerNorm that evens them out, [..., D]."""
    return np.square(norm["scale"]) + np.square(norm["bias"])


def _cut_layer(tree: Any, layer: int, student: BertConfig, hidden: np.ndarray) -> Any:
    """One layer's parameters at the kept coordinates."""
    one = jax.tree.map(lambda x: x[layer], tree)
    heads, size = student.num_heads, student.head_size
    kernels = {name: one["attention"][name]["kernel"] for name in (*READERS, "output")}
    width = kernels["query"].shape[1]
    norms = {
        name: np.linalg.norm(kernel, axis=1 if name == "output" else 0).reshape(heads, -1)
        for name, kernel in kernels.items()
    }  # [H, K]
    base = np.arange(0, width, width // heads)[:, None]
    matched = (base + _top(norms["query"] * norms["key"], size)).ravel()
    mixed = (base + _top(norms["value"] * norms["output"], size)).ravel()

    def pick(dense: Any, rows: np.ndarray, columns: np.ndarray, factor: float = 1.0) -> Any:
        kernel = dense["kernel"][np.ix_(rows, columns)] * np.float32(factor)
        return {"kernel": kernel, "bias": dense["bias"][columns] * np.float32(factor)}

    first, second = one["intermediate"], one["output"]
    strength = np.linalg.norm(first["kernel"], axis=0) * np.linalg.norm(second["kernel"], axis=1)
    inner = _top(strength, student.intermediate_size)
    scale = np.sqrt(size * heads / width)
    attention = one["attention"]
    return {
        "attention": {
            "query": pick(attention["query"], hidden, matched, scale),
            "key": pick(attention["key"], hidden, matched),
            "value": pick(attention["value"], hidden, mixed),
            "output": pick(attention["output"], mixed, hidden),
        },
        "attention_norm": {k: v[hidden] for k, v in one["attention_norm"].items()},
        "intermediate": pick(first, hidden, inner),
        "output": pick(second, inner, hidden),
        "output_norm": {k: v[hidden] for k, v in one["output_norm"].items()},
    }
