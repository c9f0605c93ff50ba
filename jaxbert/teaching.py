"""Asks a frozen teacher once about all that a phase learns from, and keeps what it says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbert.batch import Batch
from jaxbert.config import PhaseConfig
from jaxbert.data.examples import ExampleSource
from jaxbert.data.packing import PackedBatches
from jaxbert.data.taught import (
    Output,
    Taught,
    TaughtWriter,
    count_bytes,
    item_sizes,
    open_taught,
)
from jaxbert.errors import UserError
from jaxbert.files import size_text
from jaxbert.models.linear import hold_operands
from jaxbert.objectives.distillation import Distillation
from jaxbert.training import sharding
from jaxbert.training.hashing import parameter_hash
from jaxbert.training.loop import place

FORMAT = 1
_POSITIONS = 4096  # rows x positions of a batch at least: of fewer, devices see little work


def check_foreign(name: str, phase: PhaseConfig, head: str) -> None:
    """Checks that a phase can learn from a teacher whose vocabulary is not its student's.

    Raises:
      UserError: it reads what belongs to single pieces, or asks at each step.
    """
    what = f"the teacher {phase.teacher} has another vocabulary than the student"
    other = "or give a teacher with the student's vocabulary"
    if any(term and term.taught and term.feature != "logits" for term in phase.terms.values()):
        what += ", and layers are compared piece by piece"
        fix = f"learn from its predictions alone (preset=logits), {other}"
        raise UserError(what, f"config key {name}.terms", fix)
    if len(phase.teachers) > 1:
        what += ", and several teachers read one batch"
        fix = f"give it as the only teacher, {other}"
        raise UserError(what, f"config key {name}.teacher", fix)
    if head == "spans":
        what += ", and answers are counted in pieces"
        fix = f"fine-tune the student on the labels (objective=finetune), {other}"
        raise UserError(what, f"config key {name}.teacher", fix)
    if phase.teacher_cache == "none":
        what += ", so that it cannot read the student's batches"
        raise UserError(what, f"config key {name}.teacher_cache", f"give auto, {other}")


def ask(
    objective: Distillation,
    frozen: Any,
    phase: PhaseConfig,
    learnt: PackedBatches,
    folder: Path,
    mesh: Mesh,
    *,
    read: ExampleSource | None = None,
) -> Taught | None:
    """What a teacher says of all examples of a phase: as it lies in a folder, else asked now.

    Args:
      objective: of a single teacher, whose words it gives as a ``Batch.taught``.
      frozen: what that reads, ``{"teachers": (params,)}``; on the devices while it is asked, held
        as a step would hold it.
      phase: the phase.
      learnt: the phase's batches.
      folder: where it is kept.
      mesh: what it is asked on.
      read: the examples in the teacher's own pieces; None if they are the student's.

    Returns:
      None if it is to be asked at each step, as the phase's ``teacher_cache`` has it.

    Raises:
      UserError: the disk has too little room, what it says is not finite, or it reads less of a
        sentence than the student.
    """
    (model,) = objective.teachers

    def hold(frozen: Any) -> Any:
        return {"teachers": tuple(hold_operands(one, model.dtype) for one in frozen["teachers"])}

    shapes = jax.eval_shape(lambda *of: objective.teach(hold(of[0]), of[1]), frozen, learnt[0])
    outputs = {key: Output.of(key, x.shape, model.head) for key, x in sorted(shapes.items())}
    again = learnt.epoch(phase.steps) > 1 and set(outputs) == {"logits"}
    if read is None and (
        phase.teacher_cache == "none" or (phase.teacher_cache == "auto" and not again)
    ):
        return None
    source = learnt.source if read is None else read
    check_words(learnt.source, source)
    sizes = item_sizes(learnt.source)
    size = count_bytes(outputs, sizes)
    identity = {
        "format": FORMAT,
        "teacher": parameter_hash(frozen),
        "model": dataclasses.asdict(model),
        "compat": phase.compat,
        "row_length": learnt.row_length,
        "data": source.sha256,
        "learnt": learnt.sha256,
        "bytes": size,
    }
    found = open_taught(folder, outputs, identity)
    if found is not None:
        return found
    print(
        f"what the teacher says ({', '.join(outputs)}) of {len(source):,} examples takes "
        f"{size_text(size)} -> {folder}",
        flush=True,
    )
    began = time.monotonic()
    asked = PackedBatches(
        source,
        batch_size=max(phase.batch_size, _POSITIONS // learnt.row_length),
        row_length=learnt.row_length,
        seed=0,
        packing=phase.packing,
        shuffle=False,
        epochs=1,
        multiple=sharding.row_multiple(mesh),
        vocab_size=model.vocab_size,
    )
    writer = TaughtWriter(folder, outputs, sizes)
    for batch, ids, said in _answers(objective.teach, hold(frozen), asked, mesh):
        writer.put(batch, ids, said)
    writer.finish(identity | {"seconds": time.monotonic() - began})
    return Taught(folder)


def _answers(
    teach: Callable[[Any, Batch], Any], frozen: Any, asked: PackedBatches, mesh: Mesh
) -> Iterator[tuple[Batch, np.ndarray, Any]]:
    """Yields each batch, its examples int64 [B, S] and what the teacher says of it.

    A batch is handed out when the next one is under way: the devices work meanwhile.
    """
    rows = sharding.rows(mesh)
    frozen = jax.device_put(frozen, sharding.tree_shardings(mesh, frozen))
    run = jax.jit(teach, in_shardings=(None, rows))
    before = None
    for step in range(len(asked)):
        batch = asked[step]
        now = batch, asked.example_ids(step), run(frozen, place(batch, rows))
        if before is not None:
            yield before
        before = now
    if before is not None:
        yield before


def check_words(learnt: ExampleSource, read: ExampleSource) -> None:
    """Checks that a teacher of tags reads every word that its student learns.

    Both read the first words of a sentence, so that the n-th of one is the n-th of the other.

    Raises:
      UserError: it reads less of a sentence than the student.
    """
    mine, theirs = (item_sizes(source).get("marks") for source in (learnt, read))
    if mine is None or theirs is None:
        return
    if (short := theirs < mine).any():
        raise UserError(
            f"the teacher's pieces hold fewer words of {int(short.sum()):,} sentences than the "
            "student's",
            f"the first is sentence {int(short.argmax())}: {int(theirs[short][0])} of "
            f"{int(mine[short][0])} words",
            "raise max_length, or give a teacher with the student's vocabulary",
        )
