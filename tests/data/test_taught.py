"""What a teacher said, against the same values put into a batch piece by piece."""

from __future__ import annotations

import dataclasses
import json
import pickle

import chex
import jax
import numpy as np
import pytest

from jaxbert.batch import MASKED
from jaxbert.data.examples import Examples, Marks
from jaxbert.data.packing import PackedBatches
from jaxbert.data.taught import (
    RECORD,
    Output,
    Taught,
    TaughtBatches,
    TaughtWriter,
    count_bytes,
    item_sizes,
    open_taught,
)
from jaxbert.errors import UserError
from jaxbert.verify import verify

ROW, COUNT, CLASSES, WIDTH, HEADS = 24, 40, 3, 5, 2
HEADS_OF = {"classification": "examples", "tagging": "marks", "spans": "pieces"}


def some_examples() -> Examples:
    """Unequal lengths and numbers of marks, none among them."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, ROW // 2, COUNT)
    pieces = [rng.integers(1, 50, n) for n in lengths]
    counts = [int(rng.integers(0, n - 1)) for n in lengths]
    places = [
        np.sort(rng.choice(n, k, replace=False)) for n, k in zip(lengths, counts, strict=True)
    ]
    targets = rng.integers(0, CLASSES, sum(counts))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    marks = Marks(np.concatenate(places).astype(np.int32), targets.astype(np.int32), offsets)
    return Examples.join(pieces, labels=rng.integers(0, 2, COUNT), marks=marks)


def packed(examples: Examples, **changes) -> PackedBatches:
    given = {"batch_size": 7, "row_length": ROW, "seed": 5, "multiple": 2}
    return PackedBatches(examples, **given | changes)


def outputs_of(head: str) -> dict[str, Output]:
    batch = packed(some_examples())[0]
    rows, slots = batch.starts.shape
    logits = {"tagging": (rows, ROW), "spans": (rows, ROW)}.get(head, (rows, slots))
    shapes = {
        "logits": (*logits, CLASSES),
        "pooled": (rows, slots, WIDTH),
        "hidden/2": (rows, ROW, WIDTH),
        "keys/0": (rows, ROW, HEADS, WIDTH),
        "scores/1": (rows, HEADS, ROW, ROW),
    }
    return {key: Output.of(key, shape, head) for key, shape in shapes.items()}


def values_of(outputs: dict[str, Output], examples: Examples) -> dict[str, list[np.ndarray]]:
    """Random values of every example: [items, ...], and of pairs [H, n, n]."""
    rng, sizes, found = np.random.default_rng(2), item_sizes(examples), {}
    for key, output in outputs.items():
        shapes = [(n, *output.tail) for n in sizes[output.items]]
        if output.items == "pairs":
            shapes = [(*output.tail, n, n) for n in examples.lengths]
        found[key] = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return found


def put_together(output: Output, values: list[np.ndarray], batch, ids) -> np.ndarray:
    """The batch's array, by its definition: each slot's own pieces, marks or place."""
    rows, slots = ids.shape
    if output.items == "pairs":
        out = np.full((rows, *output.tail, ROW, ROW), MASKED, np.float32)
    else:
        out = np.zeros((rows, slots if output.items == "examples" else ROW, *output.tail))
    for row in range(rows):
        for slot in range(slots):
            if ids[row, slot] < 0:
                continue
            value = values[ids[row, slot]]
            there = np.flatnonzero(batch.segments[row] == slot + 1)
            if output.items == "examples":
                out[row, slot] = value[0]
            elif output.items == "pieces":
                out[row, there] = value
            elif output.items == "pairs":
                out[row][:, there[:, None], there[None]] = value
            else:
                labelled = batch.targets[row] >= 0
                mine = labelled & np.isin(batch.places[row], there)
                out[row, mine] = value
    return out


def write(folder, head: str, examples: Examples, upto: int | None = None) -> tuple[dict, dict]:
    """Writes random values of every example, from batches in another order than they are read."""
    outputs = outputs_of(head)
    values = values_of(outputs, examples)
    writer = TaughtWriter(folder, outputs, item_sizes(examples))
    source = packed(examples, batch_size=11, multiple=1, shuffle=False, epochs=1)
    for step in range(len(source) if upto is None else upto):
        batch, ids = source[step], source.example_ids(step)
        said = {k: put_together(outputs[k], values[k], batch, ids) for k in outputs}
        writer.put(batch, ids, said)
    if upto is None:
        writer.finish({"teacher": "me"})
    return outputs, values


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("head", HEADS_OF)
def test_a_batch_has_what_was_said_of_its_examples_wherever_they_stand(tmp_path, head, packing):
    examples = some_examples()
    outputs, values = write(tmp_path / "mine", head, examples)
    assert outputs["logits"].items == HEADS_OF[head]
    batches = packed(examples, packing=packing)
    taught = pickle.loads(pickle.dumps(TaughtBatches(batches, Taught(tmp_path / "mine"))))
    for step in (3, 0, 17):  # any order, several epochs
        plain, batch, ids = batches[step], taught[step], batches.example_ids(step)
        assert (ids < 0).any()  # an empty slot or row
        assert set(batch.taught) == set(outputs)
        for key, output in outputs.items():
            found = batch.taught[key]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, put_together(output, values[key], plain, ids))
        for field in dataclasses.fields(plain):
            if field.name != "taught":
                mine = getattr(batch, field.name)
                np.testing.assert_array_equal(mine, getattr(plain, field.name))
        rows = np.arange(1, batches.rows, 2)  # some of them, without the others
        part = taught.take(step, rows)
        chex.assert_trees_all_equal(part, jax.tree.map(lambda x, rows=rows: x[rows], batch))


def test_its_size_is_known_before(tmp_path):
    examples = some_examples()
    outputs, _ = write(tmp_path / "mine", "tagging", examples)
    files = list((tmp_path / "mine").glob("*.npy"))
    header = 128  # of an npy file
    size = sum(path.stat().st_size - header for path in files)
    assert count_bytes(outputs, item_sizes(examples)) == size
    assert Taught(tmp_path / "mine").bytes == size


def test_it_is_there_once_it_is_whole_and_is_opened_as_what_it_is(tmp_path):
    folder, examples = tmp_path / "cache" / "mine", some_examples()
    outputs, _ = write(folder, "spans", examples, upto=2)  # killed here
    assert not folder.exists() and open_taught(folder, outputs, {}) is None
    write(folder, "spans", examples)
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    assert open_taught(folder, outputs, {"teacher": "me"}) is not None
    assert open_taught(folder, outputs, {"teacher": "another"}) is None
    assert open_taught(folder, {"logits": outputs["logits"]}, {"teacher": "me"}) is None
    path = folder / "hidden-2.values.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert open_taught(folder, outputs, {"teacher": "me"}) is None
    path.write_bytes(data[:-100])
    assert open_taught(folder, outputs, {"teacher": "me"}) is None
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record)[:-10])
    assert open_taught(folder, outputs, {"teacher": "me"}) is None


def test_a_flipped_byte_of_what_a_run_keeps_is_named(tmp_path):
    folder = tmp_path / "cache" / "taught_prediction"
    (tmp_path / "models").mkdir()
    write(folder, "tagging", some_examples())
    said: list[str] = []
    verify(tmp_path, said.append)
    assert said[-1] == "cache/taught_prediction: a teacher's answers, as they were written"
    files = sorted(folder.iterdir())
    assert {"record.json", "logits.values.npy", "marks.npy", "jaxbert.sha256"} <= {
        path.name for path in files
    }
    for path in files:
        good = path.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(UserError, match=r"cache/taught_prediction/.*; remove the folder"):
                verify(tmp_path, str)
        path.unlink()
        with pytest.raises(UserError, match=str(path)):
            verify(tmp_path, str)
        path.write_bytes(good)


def test_a_disk_without_the_room_is_said_before_anything_is_asked(tmp_path):
    sizes = item_sizes(some_examples())
    with pytest.raises(UserError) as error:
        TaughtWriter(tmp_path / "mine", {"hidden/0": Output("pieces", (10**12,))}, sizes)
    assert "what the teacher says takes" in error.value.line and "are free" in error.value.line
    assert error.value.line.endswith("or ask it live with the phase's teacher_cache=none")
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_refused(tmp_path):
    examples, outputs = some_examples(), {"logits": Output("examples", (CLASSES,))}
    writer = TaughtWriter(tmp_path / "mine", outputs, item_sizes(examples))
    source = packed(examples, epochs=1)
    said = {"logits": np.full((*source[0].starts.shape, CLASSES), np.nan)}
    with pytest.raises(UserError, match="the teacher's logits are not finite"):
        writer.put(source[0], source.example_ids(0), said)
