"""A teacher that was asked before, against the same teacher asked at each step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small import (
    STUDENT,
    TEACHER,
    assert_same_gradients,
    distillation,
    soft,
    visible_params,
)

from jaxbert import teaching
from jaxbert.config import PhaseConfig, TermConfig
from jaxbert.data.examples import Examples, Marks
from jaxbert.data.packing import PackedBatches
from jaxbert.data.taught import Taught, TaughtBatches
from jaxbert.errors import UserError
from jaxbert.models.bert import scored_groups
from jaxbert.models.linear import hold_operands
from jaxbert.objectives.objective import weighted_loss
from jaxbert.training.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("matmul_highest")
ROW = 16
LENGTHS = [9, 3, 12, 5, 7, 2, 4, 16, 6, 8]
OUTPUTS = {"classification": 3, "multi_label": 3, "regression": 1, "tagging": 4, "spans": 2}


def objective_of(name: str) -> Any:
    """Layers, relations, or predictions of a kind of head, by models of few layers."""
    if name == "layers":
        student, teacher = STUDENT.replace(num_layers=1), TEACHER.replace(num_layers=2)
        return distillation(student, teacher, preset="tinybert")
    if name == "relations":  # and pooled outputs, which want one width
        student, teacher = TEACHER.replace(num_layers=1), TEACHER.replace(num_layers=2)
        return distillation(student, teacher, preset="minilmv2", pooled={"feature": "pooled"})
    given = {"num_layers": 1, "head": name, "num_labels": OUTPUTS[name], "projection_size": 0}
    return distillation(STUDENT.replace(**given), TEACHER.replace(**given), prediction=soft(name))


def examples_of(name: str) -> Examples:
    """Examples of unequal length with random labels of a kind."""
    rng = np.random.default_rng(4)
    pieces = [rng.integers(1, STUDENT.vocab_size, n, dtype=np.int32) for n in LENGTHS]
    labels, marks = rng.integers(0, 3, len(LENGTHS), np.int32), None
    if name == "multi_label":
        labels = rng.integers(0, 2, (len(LENGTHS), 3)).astype(np.float32)
    elif name == "regression":
        labels = labels.astype(np.float32)
    elif name == "spans":
        labels = np.sort([rng.integers(0, n, 2) for n in LENGTHS]).astype(np.int32)
    elif name == "tagging":
        counts = [n // 2 for n in LENGTHS]
        places = [np.sort(rng.choice(n, n // 2, replace=False)) for n in LENGTHS]
        targets = rng.integers(0, 4, sum(counts), dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        marks = Marks(np.concatenate(places).astype(np.int32), targets, offsets)
    return Examples.join(pieces, labels=None if marks else labels, marks=marks)


def packed(examples: Examples, **changes: Any) -> PackedBatches:
    given = {"batch_size": 4, "row_length": ROW, "seed": 3}
    return PackedBatches(examples, **given | changes)


def ask(objective: Any, params: Any, batches: PackedBatches, folder: Path, **phase: Any) -> Any:
    """What a teacher says, from a folder, or None if it is to be asked at each step."""
    given = {"steps": 3, "batch_size": 4, "teacher_cache": "layers"} | phase
    return teaching.ask(
        objective,
        {"teachers": (params,)},
        PhaseConfig(**given),
        batches,
        folder,
        make_mesh(data=1),
    )


def learn(objective: Any, params: Any, others: Any, batches: Any) -> tuple[Any, Any, Any]:
    """The losses, the first gradients and the parameters after three steps, one an epoch."""

    @jax.jit
    def gradient(params: Any, others: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            terms = objective(params, others, batch, jax.random.key(0))
            counts = {name: term.count for name, term in terms.items()}
            return weighted_loss(terms, counts, objective.weights(0))

        return jax.value_and_grad(loss)(params)

    seen, first = [], None
    for number in range(3):
        loss, found = jax.device_get(gradient(params, others, batches[number]))
        params = jax.tree.map(lambda x, g: x - np.float32(0.1) * g, params, found)
        seen.append(loss)
        first = found if first is None else first
    return np.array(seen), first, params


FAST = ("layers", "relations", "classification", "tagging")
CASES = [(name, packing) for name in ("layers", *OUTPUTS) for packing in (True, False)]
CASES.append(("relations", True))
KEPT = {
    "layers": {"hidden/0", "hidden/2", "scores/1"},
    "relations": {"queries/1", "keys/1", "values/1", "pooled"},
}


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[0] not in FAST or not case[1]))
        for case in CASES
    ],
)
def test_what_it_said_before_teaches_as_it_does_live(name, packing, tmp_path, within):
    objective, batches = objective_of(name), packed(examples_of(name), packing=packing)
    mine, theirs = visible_params(objective.student, 1), visible_params(objective.teachers[0], 2)
    mine = {group: mine[group] for group in objective.groups}
    taught = ask(objective, theirs, batches, tmp_path / "said")
    assert set(taught.outputs) == KEPT.get(name, {"logits"})
    live = learn(objective, mine, {"teachers": (theirs,)}, batches)
    # Without a teacher among the parameters: nothing could ask it.
    found = learn(objective, mine, {}, TaughtBatches(batches, taught))
    within(found, live)
    assert_same_gradients(found[1], live[1])
    assert len(set(live[0].tolist())) == 3 and min(live[0]) > 0


def test_a_teacher_in_int8_says_the_same_before_as_live(tmp_path, within):
    """And not what one in bfloat16 says."""
    objective, batches = objective_of("classification"), packed(examples_of("classification"))
    params, said = visible_params(objective.teachers[0], 2), {}
    for dtype in ("bfloat16", "int8"):
        teacher = objective.teachers[0].replace(dtype=dtype)
        asked = dataclasses.replace(objective, teachers=(teacher,))
        taught = TaughtBatches(batches, ask(asked, params, batches, tmp_path / dtype))[0]
        live = asked.teach({"teachers": (hold_operands(params, dtype),)}, batches[0])
        said[dtype] = np.where(batches[0].weights[..., None] > 0, live["logits"], 0.0)
        within(
            np.where(batches[0].weights[..., None] > 0, taught.taught["logits"], 0.0), said[dtype]
        )
    assert np.abs(said["int8"] - said["bfloat16"]).max() > 1e-3


@pytest.mark.slow
def test_the_authors_mask_is_the_teachers_too(tmp_path, within):
    """Their predictions are learned from a cache; their padded means are refused elsewhere."""
    teacher = TEACHER.replace(num_layers=1)
    objective = distillation(STUDENT, teacher, preset="logits", compat="huawei")
    theirs = visible_params(teacher, 2)
    batches = packed(examples_of("classification"), packing=False)
    taught = ask(objective, theirs, batches, tmp_path / "s", packing=False, compat="huawei")
    batch = TaughtBatches(batches, taught)[0]
    live = jax.jit(objective.teach)({"teachers": (theirs,)}, batches[0])
    within(batch.taught, jax.device_get(live))


def test_it_is_asked_again_only_where_something_has_changed(tmp_path, capsys):
    objective = objective_of("classification")
    theirs, some = visible_params(objective.teachers[0], 2), examples_of("classification")
    batches = packed(some)
    folder = tmp_path / "said"
    first = ask(objective, theirs, batches, folder)
    said = capsys.readouterr().out
    assert said == f"what the teacher says (logits) of 10 examples takes 0.0 MB -> {folder}\n"
    seconds = first.record["seconds"]
    # The order in which its examples come is no matter of what is said of them.
    other = packed(some, batch_size=3, seed=4, packing=False)
    assert ask(objective, theirs, other, folder).record["seconds"] == seconds
    assert not capsys.readouterr().out
    changed = visible_params(objective.teachers[0], 3)
    again = ask(objective, changed, batches, folder)
    assert again.record["teacher"] != first.record["teacher"]


def test_by_itself_it_keeps_logits_that_are_read_again_and_nothing_else(tmp_path):
    batches = packed(examples_of("spans"))
    assert batches.epoch(1) < 1 < batches.epoch(3)

    def kept(name: str, folder: str, **phase: Any) -> Taught | None:
        objective = objective_of(name)
        params = visible_params(objective.teachers[0], 2)
        params = {group: params[group] for group in scored_groups(objective.teachers[0])}
        return ask(objective, params, batches, tmp_path / folder, **phase)

    assert kept("spans", "a", teacher_cache="auto") is not None
    assert kept("spans", "b", teacher_cache="auto", steps=1) is None
    assert kept("spans", "c", teacher_cache="none") is None
    assert kept("layers", "d", teacher_cache="auto") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- a vocabulary of its own ----------------------------------------------------------------------


def foreign(name: str, short: int = 0) -> Examples:
    """The same rows in other pieces: longer, with a word's first piece elsewhere."""
    mine = examples_of(name)
    rng = np.random.default_rng(9)
    pieces = [rng.integers(1, TEACHER.vocab_size, n) for n in np.maximum(mine.lengths, 9) + 1]
    if mine.marks is None:
        return Examples.join(pieces, labels=mine.labels)
    counts = np.diff(mine.marks.offsets)
    counts = counts + (1 - short)
    places = np.concatenate([1 + np.arange(n) for n in counts]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Examples.join(pieces, marks=Marks(places, np.zeros_like(places), offsets))


@pytest.mark.parametrize(
    "name", ["tagging", pytest.param("classification", marks=pytest.mark.slow)]
)
def test_a_teacher_reads_rows_in_its_own_pieces(name, tmp_path, within):
    """Row by row and word by word it teaches what it says of those, one a row."""
    objective = objective_of(name)
    theirs = visible_params(objective.teachers[0], 2)
    learnt, read = examples_of(name), foreign(name)
    batches = packed(learnt, row_length=20)
    taught = teaching.ask(
        objective,
        {"teachers": (theirs,)},
        PhaseConfig(steps=1, batch_size=4),
        batches,
        tmp_path / "said",
        make_mesh(data=1),
        read=read,
    )
    one_a_row = {"row_length": 20, "packing": False, "shuffle": False, "batch_size": len(read)}
    asked = packed(read, **one_a_row)[0]
    said = np.asarray(jax.jit(objective.teach)({"teachers": (theirs,)}, asked)["logits"])
    found = TaughtBatches(packed(learnt, **one_a_row), taught)[0].taught["logits"]
    counts = np.ones(len(learnt), int) if learnt.marks is None else np.diff(learnt.marks.offsets)
    for row, count in enumerate(counts):
        within(found[row, :count], said[row, :count])
        assert not found[row, count:].any()


def test_a_teacher_that_reads_fewer_words_than_its_student_is_refused():
    learnt, read = examples_of("tagging"), foreign("tagging", short=2)
    with pytest.raises(UserError) as error:
        teaching.check_words(learnt, read)
    assert error.value.line == (
        "the teacher's pieces hold fewer words of 10 sentences than the student's, the first is "
        "sentence 0: 3 of 4 words; raise max_length, or give a teacher with the student's "
        "vocabulary"
    )


@pytest.mark.parametrize(
    ("head", "phase", "said"),
    [
        (
            "classification",
            {"terms": {"hidden": TermConfig()}},
            "layers are compared piece by piece, config key p.terms; learn from its predictions "
            "alone (preset=logits), or give a teacher with the student's",
        ),
        (
            "classification",
            {"teacher": "run:x#teacher + run:y#teacher"},
            "several teachers read one batch, config key p.teacher; give it as the only teacher",
        ),
        ("spans", {}, "answers are counted in pieces, config key p.teacher; fine-tune the student"),
        (
            "tagging",
            {"teacher_cache": "none"},
            "it cannot read the student's batches, config key p.teacher_cache; give auto, or give "
            "a teacher with the student's vocabulary",
        ),
    ],
)
def test_what_another_vocabulary_cannot_teach_is_refused_with_both_remedies(head, phase, said):
    given = {"terms": {"soft": TermConfig("logits")}, "teacher": "run:x#teacher"} | phase
    with pytest.raises(UserError) as error:
        teaching.check_foreign("p", PhaseConfig(**given), head)
    assert said in error.value.line
    assert "has another vocabulary than the student" in error.value.line


def test_another_vocabulary_can_teach_what_is_said_of_rows_and_words():
    phase = PhaseConfig(terms={"soft": TermConfig("logits")}, teacher="run:x#teacher")
    for head in ("classification", "multi_label", "regression", "tagging"):
        teaching.check_foreign("p", phase, head)
