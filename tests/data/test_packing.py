"""Packed rows against the examples they hold: each once an epoch, from any step, in full rows."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbert.data.examples import Examples, Marks
from jaxbert.data.packing import PackedBatches
from jaxbert.errors import UserError


def make(lengths, labels=True, seed=0, vocab_size=50) -> Examples:
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(1, vocab_size, n, dtype=np.int32) for n in lengths]
    seconds = [int(rng.integers(1, n + 1)) for n in lengths]
    return Examples.join(
        pieces, seconds=seconds, labels=np.arange(len(lengths)) if labels else None
    )


def unpack(batch, row, slot):
    """Reads one example back from the attributes of a batch, as a model would see it."""
    here = np.nonzero(batch.segments[row] == slot + 1)[0]
    return here, batch.tokens[row, here], batch.token_types[row, here], batch.positions[row, here]


def check_batch(batches, examples, step) -> list[int]:
    """Asserts that a batch says of its examples what they are; returns their ids."""
    batch, ids = batches[step], batches.example_ids(step)
    shape = (batches.rows, batches.row_length)
    chex.assert_shape([batch.tokens, batch.segments, batch.token_types, batch.positions], shape)
    chex.assert_shape([batch.starts, batch.weights, batch.labels, ids], (shape[0], batches.slots))
    for array in (batch.tokens, batch.segments, batch.positions, batch.starts, batch.labels):
        assert array.dtype == np.int32
    assert batch.weights.dtype == np.float32 and ids.dtype == np.int64
    found = []
    for row, slot in np.ndindex(ids.shape):
        example = ids[row, slot]
        here, tokens, token_types, positions = unpack(batch, row, slot)
        if example < 0:
            assert not len(here) and batch.starts[row, slot] == 0
            assert batch.weights[row, slot] == 0 and batch.labels[row, slot] == 0
            continue
        first, last = examples.offsets[example : example + 2]
        size = last - first
        np.testing.assert_array_equal(here, batch.starts[row, slot] + np.arange(size))
        np.testing.assert_array_equal(tokens, examples.tokens[first:last])
        np.testing.assert_array_equal(positions, np.arange(size))
        np.testing.assert_array_equal(token_types, np.arange(size) >= examples.seconds[example])
        assert batch.weights[row, slot] == 1 and batch.labels[row, slot] == example
        found.append(int(example))
    padding = batch.segments == 0
    assert not batch.tokens[padding].any() and not batch.positions[padding].any()
    assert (~padding).sum() == examples.lengths[found].sum()
    return found


ARGUMENTS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 9),
        "row_length": st.sampled_from([12, 16, 31]),
        "seed": st.integers(0, 5),
        "packing": st.booleans(),
        "shuffle": st.booleans(),
    }
)


@settings(max_examples=80)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), arguments=ARGUMENTS)
def test_every_example_comes_once_an_epoch_whole_and_as_itself(lengths, arguments):
    examples = make(lengths)
    batches = PackedBatches(examples, epochs=3, **arguments)
    assert batches.slots == 1 or arguments["packing"]
    seen = [i for step in range(len(batches)) for i in check_batch(batches, examples, step)]
    assert sorted(seen) == sorted(list(range(len(lengths))) * 3)
    # Rows of an epoch are a stretch of the stream: no row belongs to two epochs.
    rows = np.concatenate([batches.example_ids(step) for step in range(len(batches))])
    for epoch in np.split(rows[: 3 * batches.rows_per_epoch], 3):
        assert sorted(epoch[epoch >= 0].tolist()) == list(range(len(lengths)))
    assert not (rows[3 * batches.rows_per_epoch :] >= 0).any()


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    arguments=ARGUMENTS,
    step=st.integers(0, 10**7),
)
def test_a_batch_is_the_same_reached_directly_or_after_others(lengths, arguments, step):
    examples = make(lengths)
    direct = PackedBatches(examples, **arguments)[step]
    walked = PackedBatches(examples, **arguments)
    for earlier in (0, 1, step + 1, max(0, step - 1), step + 100):
        walked[earlier]
    chex.assert_trees_all_equal(walked[step], direct)


def test_epochs_and_seeds_differ_in_order_unless_it_is_fixed():
    examples = make([3 + i % 7 for i in range(60)])
    size = {"batch_size": 60, "row_length": 16}

    def epochs(seed, **more):
        batches = PackedBatches(examples, seed=seed, epochs=2, **size, **more)
        rows = np.concatenate([batches.example_ids(step) for step in range(len(batches))])
        return np.split(rows[: 2 * batches.rows_per_epoch], 2)

    (first, second), (other, _) = epochs(0), epochs(1)
    assert (first != second).any() and (first != other).any()
    assert (epochs(0)[0] == first).all()
    (fixed, again) = epochs(0, shuffle=False)
    assert (fixed == again).all() and (epochs(7, shuffle=False)[0] == fixed).all()
    plain = epochs(0, shuffle=False, packing=False)[0]
    np.testing.assert_array_equal(plain[:, 0], np.arange(60))


def test_threads_that_ask_at_once_get_what_one_gets():
    examples = make([3 + i % 7 for i in range(200)])
    arguments = {"batch_size": 16, "row_length": 16, "seed": 3}
    alone = PackedBatches(examples, **arguments)
    shared = PackedBatches(examples, **arguments)
    steps = [(37 * i) % 90 for i in range(90)]
    with ThreadPoolExecutor(4) as pool:
        for step, ids in zip(steps, pool.map(shared.example_ids, steps), strict=True):
            np.testing.assert_array_equal(ids, alone.example_ids(step))


def test_batch_size_counts_examples():
    examples = make(np.random.default_rng(0).integers(5, 40, 2000))
    batches = PackedBatches(examples, batch_size=160, row_length=64, seed=0)
    assert abs(batches.examples_per_batch - 160) < 0.02 * 160
    assert batches.steps_per_epoch * batches.examples_per_batch == pytest.approx(2000)
    held = [(batches.example_ids(step) >= 0).sum() for step in range(100)]
    assert np.mean(held) == pytest.approx(batches.examples_per_batch, rel=0.02)
    assert batches.epoch(0) == 0
    assert batches.epoch(100) == pytest.approx(100 / batches.steps_per_epoch)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("epochs", [None, 2])
def test_devices_get_as_many_rows_each_and_a_batch_holds_the_same_on_any_number(packing, epochs):
    examples = make(np.random.default_rng(0).integers(5, 40, 90))
    sizes = {"batch_size": 29, "row_length": 64, "seed": 0, "packing": packing, "epochs": epochs}
    one = PackedBatches(examples, **sizes)
    assert one.rows == one.filled_rows and one.rows % 8
    assert one.filled_rows == 29 or packing
    for multiple in (2, 8):
        several = PackedBatches(examples, **sizes, multiple=multiple)
        assert several.rows % multiple == 0 and 0 <= several.rows - one.rows < multiple
        for name in ("filled_rows", "slots", "fill", "steps_per_epoch", "examples_per_batch"):
            assert getattr(several, name) == getattr(one, name)
        assert several.epoch(7) == one.epoch(7)
        seen = []
        for step in range(12 if epochs is None else len(several)):
            seen += check_batch(several, examples, step)
            first = jax.tree.map(lambda x: x[: one.rows], several[step])
            chex.assert_trees_all_equal(first, one[step])
            rest = jax.tree.map(lambda x: x[one.rows :], several[step])
            assert not any(leaf.any() for leaf in jax.tree.leaves(rest))
        if epochs:
            assert len(several) == len(one)
            assert sorted(seen) == sorted(list(range(90)) * epochs)


@pytest.mark.parametrize(
    "lengths",
    [
        np.full(500, 64),
        np.clip(np.random.default_rng(0).lognormal(2.3, 0.8, 3000), 3, 64).astype(int),
        np.r_[np.full(3000, 5), np.full(100, 64)],
    ],
)
def test_bounded_slots_keep_rows_full_and_the_bound_low(lengths):
    batches = PackedBatches(make(lengths, labels=False), batch_size=32, row_length=64, seed=0)
    assert batches.fill > 0.93
    assert batches.slots <= np.ceil(3 * 64 / lengths.mean())
    assert batches.fill == pytest.approx(
        np.mean([(batches[s].segments > 0).mean() for s in range(round(batches.steps_per_epoch))]),
        abs=0.02,
    )
    assert batches[0].labels is None


def test_planning_and_gathering_are_fast():
    lengths = np.random.default_rng(0).integers(5, 50, 7000)
    examples = make(lengths)
    started = time.perf_counter()
    batches = PackedBatches(examples, batch_size=37, row_length=128, seed=0)
    batches[0]
    planned = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(100):
        batches[step]
    gathered = (time.perf_counter() - started) / 100
    started = time.perf_counter()
    batches[10**8]
    late = time.perf_counter() - started
    # A hundred times what an idle core takes: a slow path shows, a busy machine does not.
    assert planned < 0.5 and gathered < 0.01 and late < 0.1


def test_labels_keep_their_shape_and_kind():
    pieces = [np.ones(3, np.int32)] * 4
    scores = np.random.default_rng(0).normal(size=(4, 2))
    batches = PackedBatches(
        Examples.join(pieces, labels=scores), batch_size=4, row_length=6, seed=0, epochs=1
    )
    batch, ids = batches[0], batches.example_ids(0)
    chex.assert_shape(batch.labels, (2, 2, 2))
    assert batch.labels.dtype == np.float32
    np.testing.assert_array_equal(batch.labels, scores.astype(np.float32)[ids])


@pytest.mark.parametrize(
    ("examples", "arguments", "message"),
    [
        (make([3, 9, 12]), {"row_length": 8}, "2 of 3 examples longer.*example 1 with 9 pieces"),
        (Examples.join([]), {}, "not one example"),
        (Examples.join([np.ones(2), np.ones(0)]), {}, "without a single piece.*example 1"),
        (Examples.join([np.arange(3), np.array([1, 50])]), {"vocab_size": 50}, "id 50.*1, piece 1"),
        (Examples.join([np.array([1, -1])]), {}, "id -1 is outside"),
        (Examples.join([np.ones(2)], labels=np.zeros(3)), {}, "3 labels for 1 examples"),
        (make([3]), {"batch_size": 0}, "batch_size is 0"),
        (make([3]), {"epochs": 0}, "epochs is 0"),
    ],
)
def test_what_a_device_would_clamp_is_refused_on_the_host(examples, arguments, message):
    with pytest.raises(UserError, match=message):
        PackedBatches(examples, **{"batch_size": 2, "row_length": 16, "seed": 0, **arguments})


def test_steps_that_do_not_exist_raise_and_an_endless_stream_has_no_length():
    finite = PackedBatches(make([3] * 5), batch_size=2, row_length=6, seed=0, epochs=1)
    for step in (-1, len(finite)):
        with pytest.raises(IndexError):
            finite[step]
    endless = PackedBatches(make([3] * 5), batch_size=2, row_length=6, seed=0)
    with pytest.raises(TypeError, match="endless"):
        len(endless)


def test_labels_of_pieces_stand_where_their_examples_do():
    rng = np.random.default_rng(0)
    pieces = [rng.integers(1, 50, n, dtype=np.int32) for n in (5, 9, 3, 7, 4, 4)]
    counts = [2, 3, 0, 4, 1, 2]
    places = [np.sort(rng.permutation(len(p))[:n]) for p, n in zip(pieces, counts, strict=True)]
    targets = [p[i] for p, i in zip(pieces, places, strict=True)]  # a label that can be looked up
    marks = Marks(
        np.concatenate(places), np.concatenate(targets), np.cumsum([0, *counts], dtype=np.int64)
    )
    batches = PackedBatches(
        Examples.join(pieces, marks=marks), batch_size=3, row_length=12, seed=1, epochs=2
    )
    seen = 0
    for step in range(len(batches)):
        batch = batches[step]
        chex.assert_shape([batch.places, batch.targets], (batches.rows, 12))
        row, column = np.nonzero(batch.targets >= 0)
        place = batch.places[row, column]
        assert (batch.tokens[row, place] == batch.targets[row, column]).all()
        assert not batch.places[batch.targets < 0].any()
        seen += len(row)
    assert seen == 2 * sum(counts)


class Reader:
    """A source that is not in memory as one piece, and remembers what was read of it."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.lengths, self.sha256 = examples.lengths, examples.sha256
        self.truncated = self.skipped = 0
        self.read: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._examples)

    def gather(self, ids: np.ndarray) -> Examples:
        self.read.append(ids)
        return self._examples.gather(ids)


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_reads_its_examples_once_and_no_others(packing):
    examples = make([3 + i % 7 for i in range(60)])
    arguments = {"batch_size": 9, "row_length": 16, "seed": 3, "packing": packing}
    reader, whole = Reader(examples), PackedBatches(examples, **arguments)
    batches = PackedBatches(reader, **arguments)
    assert not reader.read and batches.sha256 == whole.sha256
    for step in (0, 5, 400):
        chex.assert_trees_all_equal(batches[step], whole[step])
        ids = whole.example_ids(step)
        np.testing.assert_array_equal(reader.read.pop(), ids[ids >= 0])
        assert not reader.read


def test_pieces_that_are_read_late_are_held_against_the_vocabulary_then():
    pieces = [np.full(3, 7, np.int32) for _ in range(20)]
    pieces[13][2] = 50
    batches = PackedBatches(
        Reader(Examples.join(pieces)),
        batch_size=2,
        row_length=6,
        seed=0,
        shuffle=False,
        epochs=1,
        vocab_size=50,
    )
    with pytest.raises(UserError, match="id 50 is outside the vocabulary of 50, example 13, piece"):
        [batches[step] for step in range(len(batches))]


def test_gathered_examples_are_those_asked_for_in_that_order():
    examples = make([3, 1, 4, 1, 5, 9, 2, 6])
    places = np.array([0, 2, 0, 3, 1, 4, 8], np.int32)
    marks = Marks(places, places * 10, np.array([0, 2, 3, 4, 4, 6, 7, 7, 7]))
    examples = dataclasses.replace(examples, marks=marks)
    ids = np.array([5, 0, 5, 4, 3])
    found = examples.gather(ids)
    assert len(found) == 5
    np.testing.assert_array_equal(found.lengths, [9, 3, 9, 5, 1])
    np.testing.assert_array_equal(found.labels, ids)
    for here, there in enumerate(ids):
        mine, theirs = found.offsets[here : here + 2], examples.offsets[there : there + 2]
        np.testing.assert_array_equal(found.tokens[slice(*mine)], examples.tokens[slice(*theirs)])
        assert found.seconds[here] == examples.seconds[there]
        mine, theirs = found.marks.offsets[here : here + 2], marks.offsets[there : there + 2]
        np.testing.assert_array_equal(found.marks.places[slice(*mine)], places[slice(*theirs)])
        np.testing.assert_array_equal(
            found.marks.targets[slice(*mine)], marks.targets[slice(*theirs)]
        )
    assert len(examples.gather(np.zeros(0, np.int64))) == 0
