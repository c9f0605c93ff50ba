"""Which student layer learns from which teacher layer."""

from __future__ import annotations

import dataclasses

from jaxbert.errors import UserError
from jaxbert.models.bert import BertConfig


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Pairs of what is matched, students' first in order.

    Attributes:
      hidden: teacher hidden state (0 = embeddings) for each student hidden state 0..M.
      attention: teacher layer (from 0) for each student layer 0..M-1.
    """

    hidden: tuple[int, ...]
    attention: tuple[int, ...]


def uniform(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Teacher layers, counted from 1, for the student's layers 1..M: ceil(i N / M).

    Where M divides N this is g(m) = m N / M (Jiao et al. 2020, section 4.2); 6 -> 4 gives
    2, 3, 5, 6: the last layer always learns from the last.
    """
    return tuple(-(-i * teacher_layers // student_layers) for i in range(1, student_layers + 1))


def layer_map(rule: str, teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Teacher layers, counted from 1, for the student's layers 1..M.

    Args:
      rule: ``uniform``, ceil(i N / M); ``top``, the last M; ``bottom``, the first M; or a layer for
        each student layer, ``2,4,6``.
      teacher_layers: N.
      student_layers: M.

    Raises:
      UserError: no such rule, or one that does not fit these depths.
    """
    n, m = teacher_layers, student_layers
    rules = {
        "uniform": uniform(n, m),
        "top": tuple(range(n - m + 1, n + 1)),
        "bottom": tuple(range(1, m + 1)),
    }
    layers = rules.get(rule) or tuple(int(x) for x in rule.split(",") if x.strip().isdecimal())
    good = len(layers) == m and all(1 <= layer <= n for layer in layers)
    if not good or (rule not in rules and len(rule.split(",")) != m):
        what = f"{rule!r} names no teacher layers for {m} student layers"
        fix = f"give uniform, top or bottom, or {m} numbers from 1 to {n}, such as "
        fix += ",".join(map(str, uniform(n, m)))
        raise UserError(what, "a map of layers", fix)
    return layers


def align(
    teacher: BertConfig,
    student: BertConfig,
    layer_map: tuple[int, ...] = (),
    *,
    scores: bool = True,
) -> Alignment:
    """Checks that student and teacher can be matched, and says how.

    Args:
      teacher: N layers.
      student: M layers.
      layer_map: teacher layers, counted from 1, for the student's layers 1..M; empty = uniform.
      scores: whether attention scores are matched, for which the heads must be as many.

    Raises:
      UserError: if the map does not fit, or heads or widths cannot be matched one to one.
    """
    if not layer_map:
        if student.num_layers > teacher.num_layers:
            raise UserError(
                f"the student has {student.num_layers} layers and its teacher {teacher.num_layers}",
                "config key layer_map",
                "give a shallower student, or an explicit layer_map that repeats teacher layers",
            )
        layer_map = uniform(teacher.num_layers, student.num_layers)
    if len(layer_map) != student.num_layers:
        raise UserError(
            f"{len(layer_map)} teacher layers are named for {student.num_layers} student layers",
            "config key layer_map",
            "name one teacher layer, counted from 1, for each student layer",
        )
    for layer in layer_map:
        if not 1 <= layer <= teacher.num_layers:
            raise UserError(
                f"teacher layer {layer} does not exist",
                "config key layer_map",
                f"give layers from 1 to {teacher.num_layers}",
            )
    if scores and student.num_heads != teacher.num_heads:
        raise UserError(
            f"the student has {student.num_heads} attention heads and its teacher "
            f"{teacher.num_heads}, so scores cannot be matched one to one",
            "config key student.num_heads",
            f"give {teacher.num_heads} heads, or take the scores out with attention_weight=0",
        )
    return Alignment((0, *layer_map), tuple(layer - 1 for layer in layer_map))
