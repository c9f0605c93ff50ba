"""Which student layer learns from which teacher layer, and whether two features can be compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jaxbert.config import FEATURES, LAYER_RULES, TermConfig
from jaxbert.errors import UserError, UserErrors
from jaxbert.models.bert import POOLED, BertConfig

Pairs = tuple[tuple[int, int], ...]

OF_LAYERS = ("hidden", "cls", "sentence")  # hidden states, in the student's width
ATTENTION = ("scores", "probabilities")
RELATIONS = {"query_relation": "queries", "key_relation": "keys", "value_relation": "values"}
PROJECTED = ("embeddings", *OF_LAYERS)
_MOST_RELATION_HEADS = 48  # MiniLMv2's for models of width 768


@dataclasses.dataclass(frozen=True)
class Match:
    """A term whose layers and heads are known.

    Attributes:
      name, feature, loss, weight, final_weight, temperature, temperature_squared, standardize: as
        ``TermConfig`` has them; loss is never empty, final_weight never -1.
      layers: for each teacher, pairs of a student layer and the teacher layer that it learns from,
        counted from 1; 0 = the embeddings. (0, 0) for features that no layer has.
      heads: for each teacher, heads on each side once they are averaged, or that widths are cut
        into; 0 of features that have none.
      projected: whether the student's state is projected first.
    """

    name: str
    feature: str
    loss: str
    layers: tuple[Pairs, ...]
    weight: float = 1.0
    final_weight: float = 1.0
    temperature: float = 1.0
    temperature_squared: bool = False
    standardize: bool = False
    heads: tuple[int, ...] = (0,)
    projected: bool = False


def layer_map(rule: str, teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Teacher layers, counted from 1, for the student's layers 1..M.

    ``uniform`` is ceil(i N / M): where M divides N this is g(m) = m N / M (Jiao et al. 2020,
    section 4.2); 6 -> 4 gives 2, 3, 5, 6, so that the last layer always learns from the last.
    ``top`` and ``bottom`` are the last and the first M. Numbers are taken as they are.

    Args:
      rule: ``uniform``, ``top``, ``bottom`` or numbers such as ``2,4,6``.
      teacher_layers: N.
      student_layers: M.

    Raises:
      UserError: if the rule needs more layers than there are, or the numbers do not fit; its
        ``where`` is empty.
    """
    n, m = teacher_layers, student_layers
    if rule in LAYER_RULES:
        if m > n:
            what = f"the student has {m} layers and its teacher {n}"
            fix = "give a shallower student, or numbers that repeat teacher layers, such as 1,1,2"
            raise UserError(what, "", fix)
        first = {"top": n - m, "bottom": 0}
        if rule in first:
            return tuple(range(first[rule] + 1, first[rule] + m + 1))
        return tuple(-(-i * n // m) for i in range(1, m + 1))
    layers = _numbers(rule)
    if len(layers) != m:
        what = f"{len(layers)} teacher layers are named for {m} student layers"
        raise UserError(what, "", "name one teacher layer, counted from 1, for each")
    for layer in layers:
        if not 1 <= layer <= n:
            raise UserError(f"teacher layer {layer} does not exist", "", f"give 1 to {n}")
    return layers


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.strip("() ").split(","))
    except ValueError:
        fix = f"give {', '.join(LAYER_RULES)}, or numbers from 1 with commas between"
        raise UserError(f"{text!r} names no layers", "", fix) from None


def layer_pairs(term: TermConfig, teacher_layers: int, student_layers: int) -> Pairs:
    """Pairs of a student layer and the teacher layer that it learns from, both counted from 1.

    Args:
      term: of a feature that layers have.
      teacher_layers: N.
      student_layers: M.

    Raises:
      UserError: as ``layer_map``, or a student layer does not exist; its ``where`` is then
        ``student_layers``.
    """
    chosen, rule = term.student_layers, term.layers
    for layer in chosen:
        if layer > student_layers:
            fix = f"give 1 to {student_layers}"
            raise UserError(f"student layer {layer} does not exist", "student_layers", fix)
    if rule not in LAYER_RULES:
        chosen = chosen or tuple(range(1, student_layers + 1))
        return tuple(zip(chosen, layer_map(rule, teacher_layers, len(chosen)), strict=True))
    if rule == "last":
        return tuple((layer, teacher_layers) for layer in chosen or (student_layers,))
    mapped = layer_map(rule, teacher_layers, student_layers)
    if rule == "skip" and student_layers in chosen:
        what = f"skip leaves out the last student layer, {student_layers}"
        raise UserError(what, "student_layers", "remove it there, or give another rule")
    pairs = tuple(enumerate(mapped, 1))[: -1 if rule == "skip" else None]
    return tuple(pair for pair in pairs if pair[0] in chosen) if chosen else pairs


def match_terms(
    terms: Mapping[str, TermConfig],
    student: BertConfig,
    teachers: Sequence[BertConfig],
    compat: str = "",
) -> tuple[Match, ...]:
    """Resolves terms for models of these shapes.

    Args:
      terms: by name; those that weigh nothing are left out.
      student: the trained model, with the head and the projection that it has in the phase.
      teachers: the frozen ones.
      compat: ``huawei``, which knows TinyBERT's own terms alone.

    Raises:
      UserErrors: with every term that cannot be compared, and how to change it.
    """
    matches, errors = [], []
    for name, term in terms.items():
        if not term:
            continue
        try:
            matches.append(_match(name, term, student, teachers, compat))
        except UserError as error:
            where = f"config key terms.{name}.{error.where}".rstrip(".")
            errors.append(UserError(error.what, where, error.fix))
    if errors:
        raise UserErrors(errors)
    return tuple(matches)


def _match(
    name: str,
    term: TermConfig,
    student: BertConfig,
    teachers: Sequence[BertConfig],
    compat: str,
) -> Match:
    loss = _loss(term, student, compat)
    _check_read(term, loss)
    taught_by = teachers if loss != "labels" else ()
    layers: tuple[Pairs, ...] = (((0, 0),),) * max(len(taught_by), 1)
    if term.feature in (*OF_LAYERS, *ATTENTION, *RELATIONS):
        try:
            layers = tuple(
                layer_pairs(term, teacher.num_layers, student.num_layers) for teacher in taught_by
            )
        except UserError as error:
            raise UserError(error.what, error.where or "layers", error.fix) from None
        if not layers[0]:
            raise UserError("no layer is left to match", "layers", "give more, or weight 0")
    projected = term.feature in PROJECTED and term.projection and bool(student.projection_size)
    if term.feature == "pooled" and student.head not in POOLED:
        what = f"the student's head for {student.head} reads no pooled output, and none is kept"
        raise UserError(what, "feature", "leave it out")
    for teacher in taught_by:
        if term.feature == "mlm_logits" and teacher.vocab_size != student.vocab_size:
            what = f"the student has {student.vocab_size} rows of words, its teacher "
            fix = "give models whose tables have as many rows"
            raise UserError(f"{what}{teacher.vocab_size}", "feature", fix)
        if term.feature in (*PROJECTED, "pooled"):
            _check_widths(term, student, teacher, projected)
    return Match(
        name,
        term.feature,
        loss,
        layers,
        term.weight,
        term.weight if term.final_weight < 0 else term.final_weight,
        term.temperature,
        term.temperature_squared,
        term.standardize,
        tuple(_heads(term, student, teacher) for teacher in taught_by) or (0,),
        projected,
    )


def _check_read(term: TermConfig, loss: str) -> None:
    """Refuses options that say nothing to the term's feature and loss."""
    soft = loss in ("kl", "soft_cross_entropy", "dist")
    attention = term.feature in (*ATTENTION, *RELATIONS)
    read = {
        "layers": term.feature in OF_LAYERS or attention,
        "student_layers": term.feature in OF_LAYERS or attention,
        "projection": term.feature in PROJECTED,
        "heads": term.feature in ATTENTION,
        "relation_heads": term.feature in RELATIONS,
        "temperature": soft,
        "temperature_squared": soft,
        "standardize": "logits" in term.feature and loss != "labels",
    }
    plain = TermConfig()
    for option, used in read.items():
        if not used and getattr(term, option) != getattr(plain, option):
            what = f"{loss} of {term.feature} does not read {option}"
            raise UserError(what, option, "remove it")


def _loss(term: TermConfig, student: BertConfig, compat: str) -> str:
    """The term's loss, if it can be."""
    head = student.head
    regression = term.feature == "logits" and head == "regression"
    known = ("mse", "labels") if regression else FEATURES[term.feature]
    loss = term.loss or known[0]
    if loss not in known:
        what = f"{loss} does not compare {term.feature}" + " of a regression" * regression
        raise UserError(what, "loss", f"give one of {', '.join(known)}")
    if loss == "dist" and head not in ("classification", "tagging"):
        what = f"dist correlates classes, and {head} has none that exclude each other"
        raise UserError(what, "loss", "give soft_cross_entropy")
    if term.feature == "logits":
        if loss == "mse" and head == "spans":
            what = "logits of spans are as many as pieces, of which mse knows nothing"
            raise UserError(what, "loss", "give kl or soft_cross_entropy")
        two = head == "multi_label" or student.num_labels == 2
        if term.standardize and (two or head in ("spans", "regression")):
            what = "standardized logits of two classes are always -1 and 1, and others have none"
            raise UserError(what, "standardize", "give false")
    own = {"embeddings": "mse", "hidden": "mse", "scores": "mse", "logits": "soft_cross_entropy"}
    if compat and own.get(term.feature) != loss and not regression:
        what = f"the authors' code does not compare {term.feature} by {loss}"
        raise UserError(what, "loss", "leave compat empty")
    return loss


def _check_widths(
    term: TermConfig, student: BertConfig, teacher: BertConfig, projected: bool
) -> None:
    mine = student.projection_size if projected else student.hidden_size
    theirs = teacher.hidden_size
    if mine == theirs:
        return
    remedy = "give student.projection shared or layer"
    if term.feature == "pooled":
        remedy = "leave it out"
    elif projected:
        remedy = "give teachers of one width"
    elif student.projection_size:
        remedy = "give projection true"
    raise UserError(
        f"the student's {term.feature} are {mine} wide and its teacher's {theirs}",
        "projection" if term.feature != "pooled" else "feature",
        f"{remedy}, student.hidden_size={theirs}, or features without a width, as minilmv2 has",
    )


def _heads(term: TermConfig, student: BertConfig, teacher: BertConfig) -> int:
    """Heads on each side once they are averaged, or that widths are cut into; 0 = no matter."""
    mine, theirs = student.num_heads, teacher.num_heads
    if term.feature in ATTENTION:
        if term.heads == "match" and mine != theirs:
            raise UserError(
                f"the student has {mine} attention heads and its teacher {theirs}, so that "
                f"{term.feature} cannot be matched one to one",
                "heads",
                f"give mean or group, student.num_heads={theirs}, or the preset minilmv2",
            )
        return {"match": mine, "mean": 1, "group": math.gcd(mine, theirs)}[term.heads]
    if term.feature in RELATIONS and term.relation_heads < 0:
        if mine != theirs:
            raise UserError(
                f"the student has {mine} attention heads and its teacher {theirs}, so that "
                f"{term.feature} has not the heads of both",
                "relation_heads",
                f"give relation_heads 0, student.num_heads={theirs}, or the preset minilmv2",
            )
        return mine
    if term.feature in RELATIONS:
        common = math.gcd(student.hidden_size, teacher.hidden_size)
        if term.relation_heads and common % term.relation_heads:
            fitting = [n for n in range(1, common + 1) if common % n == 0]
            raise UserError(
                f"widths {student.hidden_size} and {teacher.hidden_size} cannot be cut into "
                f"{term.relation_heads} relation heads",
                "relation_heads",
                f"give one of {', '.join(map(str, fitting))}",
            )
        most = min(common, _MOST_RELATION_HEADS)
        return term.relation_heads or max(n for n in range(1, most + 1) if common % n == 0)
    return 0
