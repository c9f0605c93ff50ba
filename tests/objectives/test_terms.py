"""Every feature of a distillation against PyTorch in float64, one example at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import random_params
from small import (
    STUDENT,
    TEACHER,
    assert_same_gradients,
    distillation,
    examples,
    one_batch,
    visible_params,
)

from jaxbert.models.bert import init_params
from jaxbert.objectives.distillation import Distillation
from jaxbert.presets import PRESETS

torch = pytest.importorskip("torch")
from torch_bert import TorchBert, inputs  # noqa: E402  (needs torch)

pytestmark = pytest.mark.usefixtures("matmul_highest")
LENGTHS = [9, 3, 12, 5, 7, 2, 4]
functional = torch.nn.functional


@dataclasses.dataclass
class Example:
    """What one model says of one example."""

    model: TorchBert
    states: list[Any]  # [T, D]
    scores: list[Any]  # [H, T, T]
    tokens: Any  # [T]
    label: Any
    mlm: Any = None  # jaxbert's parameters of a masked-LM head

    def fit(self, layer: int) -> Any:
        config = self.model.config
        return (
            self.model.fit_dense(self.states[layer])
            if config.projection_size
            else (self.states[layer])
        )

    def relation(self, name: str, layer: int, heads: int) -> Any:
        """Logits [R, T, T] of a layer's vectors with themselves."""
        dense = self.model.encoder["layer"][layer - 1]["attention"]["self"][name]
        vectors = dense(self.states[layer - 1]).unflatten(1, (heads, -1)).transpose(0, 1)
        return vectors @ vectors.mT / vectors.shape[-1] ** 0.5

    def pooled(self) -> Any:
        return torch.tanh(self.model.pooler["dense"](self.states[-1][0]))

    def logits(self) -> Any:
        return self.model.logits(self.states)

    def words(self) -> Any:
        """The masked-LM head's logits of the first two pieces."""
        table = self.model.embeddings["word_embeddings"].weight.numpy(force=True)
        states = self.states[-1][:2].numpy(force=True)
        return torch.from_numpy(words(self.model.config, self.mlm, table, states))


def kl(student: Any, teacher: Any) -> Any:
    """[...] of logits [..., C]."""
    p = teacher.log_softmax(-1)
    return (p.exp() * (p - student.log_softmax(-1))).sum(-1)


def kl_of_probabilities(student: Any, teacher: Any) -> Any:
    return (teacher * (teacher.log() - student.log())).sum(-1)


def cosine(a: Any, b: Any) -> Any:
    return 1 - functional.cosine_similarity(a, b, dim=-1)


def unit(x: Any) -> Any:
    return x / x.norm(dim=-1, keepdim=True)


Compare = Callable[[Example, Example], Any]
DEEP = TEACHER.replace(num_layers=3)
RELATION = {"layers": "last", "relation_heads": 4}
# Each term, and its value at one example: what is averaged over tokens or pairs, as one flat list.
CASES: dict[str, tuple[dict[str, Any], Compare]] = {
    "hidden_cosine": (
        {"feature": "hidden", "loss": "cosine", "layers": "last"},
        lambda a, b: cosine(a.fit(2), b.states[3]),
    ),
    "hidden_top": (
        {"feature": "hidden", "layers": "top", "student_layers": (1,)},
        lambda a, b: (a.fit(1) - b.states[2]) ** 2,
    ),
    "cls": (
        {"feature": "cls", "loss": "cosine", "layers": "1", "student_layers": (2,)},
        lambda a, b: cosine(a.fit(2)[:1], b.states[1][:1]),
    ),
    "sentence": (
        {"feature": "sentence", "layers": "last"},
        lambda a, b: (a.fit(2).mean(0) - b.states[3].mean(0)) ** 2,
    ),
    "probabilities": (
        {"feature": "probabilities", "layers": "last"},
        lambda a, b: kl(a.scores[-1], b.scores[-1]),
    ),
    "probabilities_mse": (
        {"feature": "probabilities", "loss": "mse", "layers": "last"},
        lambda a, b: (a.scores[-1].softmax(-1) - b.scores[-1].softmax(-1)) ** 2,
    ),
    "value_relation": (
        {"feature": "value_relation", **RELATION},
        lambda a, b: kl(a.relation("value", 2, 4), b.relation("value", 3, 4)),
    ),
    "query_relation": (
        {"feature": "query_relation", **RELATION, "loss": "mse"},
        lambda a, b: (a.relation("query", 2, 4) - b.relation("query", 3, 4)) ** 2,
    ),
    "key_relation": (
        {"feature": "key_relation", "layers": "last"},
        lambda a, b: kl(a.relation("key", 2, 8), b.relation("key", 3, 8)),
    ),
    "logits_mse": (
        {"feature": "logits", "loss": "mse"},
        lambda a, b: (a.logits() - b.logits()) ** 2,
    ),
    "logits_kl": (
        {"feature": "logits", "loss": "kl", "temperature": 3.0, "temperature_squared": True},
        lambda a, b: 9 * kl(a.logits() / 3, b.logits() / 3)[None],
    ),
}
OF_HEADS: dict[str, tuple[dict[str, Any], Compare]] = {
    "mean_of_heads": (
        {"feature": "probabilities", "heads": "mean", "layers": "last"},
        lambda a, b: kl_of_probabilities(
            a.scores[-1].softmax(-1).mean(0), b.scores[-1].softmax(-1).mean(0)
        ),
    ),
    "groups_of_heads": (
        {"feature": "scores", "heads": "group", "layers": "last"},
        lambda a, b: (a.scores[-1] - b.scores[-1].unflatten(0, (2, 2)).mean(1)) ** 2,
    ),
}


# Each preset's total for a student of 2 layers and a teacher of 3, with its weights as numbers.
PUBLISHED: dict[str, list[tuple[float, Compare]]] = {
    "logits": [(1, lambda a, b: -b.logits().softmax(-1) * a.logits().log_softmax(-1))],
    "soft_and_hard": [
        (0.5 * 2**2, lambda a, b: kl(a.logits() / 2, b.logits() / 2)),
        (0.5, lambda a, b: functional.cross_entropy(a.logits(), a.label)),
    ],
    "distilbert": [
        (5 * 2**2, lambda a, b: kl(a.words() / 2, b.words() / 2)),
        (
            2,
            lambda a, b: functional.cross_entropy(
                a.words(), target(a.tokens[:2]), reduction="none"
            ),
        ),
        (1, lambda a, b: cosine(a.fit(2), b.states[3])),
    ],
    "pkd": [
        (0.3, lambda a, b: functional.cross_entropy(a.logits(), a.label)),
        (0.35 * 10**2, lambda a, b: kl(a.logits() / 10, b.logits() / 10)),
        (0.13, lambda a, b: ((unit(a.fit(1)[0]) - unit(b.states[2][0])) ** 2).sum()),
    ],
    "minilm": [
        (1, lambda a, b: kl(a.scores[1], b.scores[2])),
        (1, lambda a, b: kl(a.relation("value", 2, 4), b.relation("value", 3, 4))),  # A_h heads
    ],
    "minilmv2": [
        (1, lambda a, b, name=name: kl(a.relation(name, 2, 12), b.relation(name, 3, 12)))
        for name in ("query", "key", "value")
    ],
    "mobilebert": [
        (1, lambda a, b: (a.fit(1) - b.states[2]) ** 2),
        (1, lambda a, b: (a.fit(2) - b.states[3]) ** 2),
        (1, lambda a, b: kl(a.scores[0], b.scores[1])),
        (1, lambda a, b: kl(a.scores[1], b.scores[2])),
    ],
    "sentence": [
        (1, lambda a, b: cosine(a.fit(2).mean(0), b.states[3].mean(0))),
        (1, lambda a, b: (a.fit(2).mean(0) - b.states[3].mean(0)) ** 2),
    ],
}


# PKD as its authors' code computes it, a mean over all there is, with their alpha = 0.7 and
# beta = 500; and the preset with the weights that docs/objectives.md makes of them.
_OF_CODE = {"labels": 0.3, "prediction": 0.7 / 3, "patience": 2 * 500 / (1 * 24)}
_PKD = {name: term | {"weight": _OF_CODE[name]} for name, term in PRESETS["pkd"].items()}
HELD = PRESETS | {"pkd_code": _PKD}
PUBLISHED["pkd_code"] = [
    (0.3, lambda a, b: functional.cross_entropy(a.logits(), a.label)),
    (
        0.7 * 10**2,
        lambda a, b: functional.kl_div(
            (a.logits() / 10).log_softmax(-1), (b.logits() / 10).softmax(-1), reduction="none"
        ),
    ),
    (500, lambda a, b: functional.mse_loss(unit(a.fit(1)[0]), unit(b.states[2][0]))),
]


def seen(model: TorchBert, some: Any, mlm: Any = None) -> list[Example]:
    labelled = zip(inputs(some), some.labels, strict=True)
    return [
        Example(model, *model(*one), one[0], torch.tensor(int(label)), mlm)
        for one, label in labelled
    ]


def torch_value(compare: Compare, mine: list[Example], theirs: list[Example]) -> Any:
    pairs = zip(mine, theirs, strict=True)
    return torch.cat([compare(a, b).flatten() for a, b in pairs]).mean()


@pytest.mark.parametrize(
    ("student", "cases"), [(STUDENT, CASES), (STUDENT.replace(num_heads=2), OF_HEADS)]
)
def test_terms_and_gradients_are_those_of_pytorch(student, cases, within):
    weights = {name: 1 + 0.37 * i for i, name in enumerate(cases)}
    terms = {name: term | {"weight": weights[name]} for name, (term, _) in cases.items()}
    objective = distillation(student, DEEP, **terms)
    mine, given, some = visible_params(student, 1), visible_params(DEEP, 2), examples(LENGTHS)
    model = TorchBert(student, mine)
    with torch.no_grad():
        theirs = seen(TorchBert(DEEP, given), some)
    ours = seen(model, some)
    values = {name: torch_value(compare, ours, theirs) for name, (_, compare) in cases.items()}
    sum(weights[name] * value for name, value in values.items()).backward()
    batch = one_batch(some, packing=True, row_length=16)

    @jax.jit
    def both(params: Any) -> Any:
        def loss(params: Any) -> Any:
            made = objective(params, {"teachers": (given,)}, batch, jax.random.key(0))
            means = {name: made[name].mean() for name in cases}
            return sum(weights[name] * mean for name, mean in means.items()), means

        return jax.grad(loss, has_aux=True)(params)

    gradients, found = both({group: mine[group] for group in objective.groups})
    within(found, {name: value.item() for name, value in values.items()})
    wanted = {group: model.gradients()[group] for group in objective.groups}
    within(gradients, wanted)
    assert_same_gradients(gradients, wanted)


def target(tokens: Any) -> Any:
    """The word that stands behind a masked one: any, but the same wherever its row lies."""
    return (7 * tokens + 3) % STUDENT.vocab_size


@functools.cache
def published() -> tuple[dict[str, float], list[Example], list[Example]]:
    """Every preset's total, all in one program, and what its models say in PyTorch."""
    configs = STUDENT.replace(hidden_size=12), DEEP  # widths that 12 relation heads divide
    some, plain = examples(LENGTHS), [visible_params(c, i) for i, c in enumerate(configs)]
    heads = [random_params(c, ("mlm",)) for c in configs]
    with torch.no_grad():
        mine, theirs = (
            seen(TorchBert(config, params), some, head["mlm"])
            for config, params, head in zip(configs, plain, heads, strict=True)
        )
    batch = one_batch(some, packing=True, row_length=16)
    places = np.concatenate([batch.starts, batch.starts + 1], axis=1)
    targets = target(np.take_along_axis(batch.tokens, places, axis=1))
    targets = np.where(np.tile(batch.weights, 2) > 0, targets, -1)
    batch = dataclasses.replace(batch, places=places, targets=targets)
    terms = {f"{p} {n}": term for p in PUBLISHED for n, term in HELD[p].items()}
    objective = distillation(*configs, **terms)
    student, teacher = (params | head for params, head in zip(plain, heads, strict=True))
    values = jax.jit(objective)(student, {"teachers": (teacher,)}, batch, jax.random.key(0))
    totals = dict.fromkeys(PUBLISHED, 0.0)
    for name, weight in objective.weights(jnp.int32(0)).items():
        totals[name.split()[0]] += weight * float(values[name].mean())
    return totals, mine, theirs


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_is_the_total_of_its_paper(preset, within):
    totals, mine, theirs = published()
    with torch.no_grad():
        wanted = sum(w * torch_value(compare, mine, theirs) for w, compare in PUBLISHED[preset])
    within(totals[preset], wanted.item())


def value_of(objective: Distillation, params: Any, teachers: Any, batch: Any) -> float:
    params = {group: params[group] for group in objective.groups}

    @jax.jit
    def loss(params: Any) -> Any:
        terms = objective(params, {"teachers": teachers}, batch, jax.random.key(0))
        return sum(w * terms[name].mean() for name, w in objective.weights(jnp.int32(0)).items())

    return float(loss(params))


def test_pooled_outputs_of_equal_width_are_compared(within):
    mine, given = visible_params(TEACHER, 1), visible_params(TEACHER, 2)
    some = examples(LENGTHS)
    objective = distillation(TEACHER, TEACHER, it={"feature": "pooled"})
    assert objective.groups == ("embeddings", "encoder", "pooler")
    batch = one_batch(some, packing=True, row_length=16)
    with torch.no_grad():
        both = (seen(TorchBert(TEACHER, params), some) for params in (mine, given))
        wanted = torch_value(lambda a, b: (a.pooled() - b.pooled()) ** 2, *both)
    within(value_of(objective, mine, (given,), batch), wanted.item())


def assert_mean_of(one, other, mine, given, batch, within, **terms: Any) -> None:
    """Asserts that what two teachers teach is the mean of what each does."""
    one_by_one = [
        value_of(distillation(STUDENT, config, **terms), mine, (params,), batch)
        for config, params in zip((one, other), given, strict=True)
    ]
    both = value_of(distillation(STUDENT, one, other, **terms), mine, given, batch)
    within(both, np.mean(one_by_one))


def test_several_teachers_are_the_mean_over_them(within):
    """Of soft cross-entropy that is the loss with the mean of their probabilities."""
    wide = TEACHER.replace(hidden_size=32, num_layers=4)
    mine, some = visible_params(STUDENT, 1), examples(LENGTHS)
    given = (visible_params(TEACHER, 2), visible_params(wide, 3))
    batch = one_batch(some, packing=True, row_length=16)
    terms = PRESETS["logits"] | PRESETS["minilmv2"]
    assert_mean_of(TEACHER, wide, mine, given, batch, within, **terms)
    # The authors' means are over heads, too, of which the second has more in common.
    fewer = TEACHER.replace(num_heads=2)
    given = (visible_params(fewer, 2), visible_params(TEACHER, 3))
    padded = one_batch(some, packing=False, row_length=16)
    terms = {"it": {"feature": "scores", "heads": "group"}}
    assert_mean_of(fewer, TEACHER, mine, given, padded, within, compat="huawei", **terms)


def test_weights_move_in_a_line_and_multiply_their_terms(within):
    terms = {
        "prediction": {"feature": "logits", "weight": 0.0, "final_weight": 2.0},
        "labels": {"feature": "logits", "loss": "labels", "weight": 3.0},
    }
    objective = distillation(STUDENT, TEACHER, steps=5, **terms)
    at = [objective.weights(jnp.int32(step)) for step in (0, 1, 4, 9)]
    within([w["prediction"] for w in at], [0.0, 0.5, 2.0, 2.0])
    assert {w["labels"] for w in at} == {3.0}


def test_labels_beside_a_teacher_are_the_loss_of_fine_tuning(within):
    mine, some = visible_params(STUDENT, 1), examples(LENGTHS)
    batch = one_batch(some, packing=True, row_length=16)
    found = value_of(
        distillation(STUDENT, it={"feature": "logits", "loss": "labels"}), mine, (), batch
    )
    with torch.no_grad():
        logits = torch.stack([one.logits() for one in seen(TorchBert(STUDENT, mine), some)])
    wanted = functional.cross_entropy(logits, torch.from_numpy(some.labels.astype(np.int64)))
    within(found, wanted.item())


@pytest.mark.parametrize("loss", ["kl", "labels"])
def test_masked_words_are_compared_at_their_places(loss, within):
    """The head's logits at the marked places, by float64 NumPy from its parameters."""
    key = jax.random.key(0)
    models = [c.replace(projection_size=0) for c in (STUDENT, TEACHER)]
    params = [
        {**visible_params(c, i), **jax.tree.map(np.asarray, init_params(c, key, ("mlm",)))}
        for i, c in enumerate(models)
    ]
    some = examples(LENGTHS)
    batch = one_batch(some, packing=True, row_length=16)
    rng = np.random.default_rng(0)
    real = np.argwhere(batch.segments > 0)
    places, targets = (
        np.zeros((len(batch.tokens), 3), np.int32),
        np.full((len(batch.tokens), 3), -1),
    )
    for row in range(len(batch.tokens)):
        inside = real[real[:, 0] == row, 1]
        places[row, :2] = rng.choice(inside, 2, replace=False)
        targets[row, :2] = rng.integers(0, STUDENT.vocab_size, 2)
    batch = dataclasses.replace(batch, places=places, targets=targets.astype(np.int32))
    term = {"feature": "mlm_logits", "loss": loss}
    objective = distillation(models[0], *models[1:] * (loss == "kl"), it=term)
    found = value_of(objective, params[0], params[1:] * (loss == "kl"), batch)
    logits = [words_at(c, p, batch) for c, p in zip(models, params, strict=True)]
    if loss == "kl":
        wanted = kl(*map(torch.from_numpy, logits))[:, :2].mean()
    else:
        flat = torch.from_numpy(logits[0][:, :2]).flatten(0, 1)
        wanted = functional.cross_entropy(flat, torch.from_numpy(targets[:, :2].ravel()))
    within(found, wanted.item())


def words_at(config: Any, params: Any, batch: Any) -> np.ndarray:
    """Float64 [B, M, V] at the batch's places."""
    from jaxbert.models.bert import encode

    hidden = np.asarray(encode(config, params, batch).last_hidden, np.float64)
    at = np.take_along_axis(hidden, batch.places[:, :, None], axis=1)
    return words(config, params["mlm"], params["embeddings"]["word"], at)


def words(config: Any, mlm: Any, table: Any, states: np.ndarray) -> np.ndarray:
    """Float64 [..., V] of a masked-LM head, whose table [V, D] is that of the embeddings."""
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), mlm)
    x = states @ head["transform"]["kernel"] + head["transform"]["bias"]
    x = functional.gelu(torch.from_numpy(x)).numpy()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_eps)
    x = x * head["norm"]["scale"] + head["norm"]["bias"]
    return x @ np.asarray(table, np.float64).T + head["bias"]


def test_a_cache_stands_for_the_teacher(within):
    """What it says is read in the place of the teacher's parameters, which are not there."""
    mine, given, some = visible_params(STUDENT, 1), visible_params(TEACHER, 2), examples(LENGTHS)
    batch = one_batch(some, packing=True, row_length=16)
    terms = {**PRESETS["tinybert"], **PRESETS["logits"], **PRESETS["minilmv2"]}
    objective = distillation(STUDENT, TEACHER, **terms)
    live = value_of(objective, mine, (given,), batch)
    from jaxbert.models.bert import class_logits, encode
    from jaxbert.objectives.features import collect

    seen = encode(TEACHER, given, batch, collect=collect(objective.matches, 0))
    fields = ("hidden", "scores", "queries", "keys", "values")
    taught = {f"{name}/{i}": x for name in fields for i, x in getattr(seen, name).items()}
    taught["logits"] = class_logits(TEACHER, given, batch)
    cached = dataclasses.replace(batch, taught=taught)
    within(value_of(objective, mine, (), cached), live)
