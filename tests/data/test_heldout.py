"""What pre-training reads and what it is measured on never meet."""

from __future__ import annotations

import numpy as np
import pytest

from jaxbert.data.examples import Examples
from jaxbert.data.heldout import Subset, held_out, pretraining_text
from jaxbert.data.packing import PackedBatches
from jaxbert.errors import UserError


def spans(count: int, length: int = 20) -> Examples:
    """Spans whose pieces name them."""
    return Examples.join([np.full(length, 5 + i, np.int32) for i in range(count)])


def test_a_hundredth_of_the_documents_is_held_out_with_all_their_spans():
    documents = np.repeat(np.arange(1_000), np.random.default_rng(0).integers(1, 5, 1_000))
    out = held_out(documents)
    assert len(np.unique(documents[out])) == 10
    assert not np.isin(documents[~out], documents[out]).any()
    np.testing.assert_array_equal(out, held_out(documents))
    # Spread over the corpus, which may be sorted.
    chosen = np.unique(documents[out])
    assert chosen.min() < 400 and chosen.max() > 600


def test_a_small_corpus_has_two_documents_on_each_side_or_is_refused():
    assert len(np.unique(np.arange(4)[held_out(np.arange(4))])) == 2
    with pytest.raises(UserError, match=r"3 documents are too few .* at least 4"):
        held_out(np.array([0, 0, 1, 2]))


def test_a_subset_is_a_source_of_its_examples():
    source, ids = spans(30), np.array([4, 2, 29, 7])
    subset = Subset(source, ids)
    assert len(subset) == 4 and (subset.lengths == source.lengths[ids]).all()
    found = subset.gather(np.array([3, 0, 0]))
    assert found.tokens.reshape(3, 20)[:, 0].tolist() == [12, 9, 9]
    assert subset.sha256 == Subset(spans(30), ids).sha256
    hashes = {source.sha256, subset.sha256, Subset(source, ids[::-1]).sha256}
    assert len(hashes | {Subset(spans(31), ids).sha256}) == 4
    batches = PackedBatches(subset, batch_size=4, row_length=64, seed=0, epochs=1)
    pieces = np.unique(np.concatenate([b.tokens[b.segments > 0] for b in batches]))
    assert pieces.tolist() == [7, 9, 12, 34]


@pytest.mark.parametrize("pairs", [False, True])
def test_no_piece_of_a_measured_document_is_trained_on_nor_the_other_way_round(pairs, tokenizer):
    """Second halves of pairs come from the same side, too."""
    source, documents = spans(600), np.arange(600) // 3
    both = [
        pretraining_text(source, documents, tokenizer, pairs=pairs, measured=measured, seed=1)
        for measured in (False, True)
    ]
    special = {tokenizer.cls_id, tokenizer.sep_id}
    found = [set(text.gather(np.arange(len(text))).tokens.tolist()) - special for text in both]
    assert not found[0] & found[1]
    assert [len(text) for text in both] == [594, 6]


def test_an_evaluation_reads_a_thousand_spans_at_most(tokenizer):
    many = Examples.join([np.full(9, 6, np.int32)] * 110_000)
    arguments = (many, np.arange(110_000), tokenizer)
    assert len(pretraining_text(*arguments, pairs=False, measured=True)) == 1_000
    # They are of all documents that are held out, not of the first long one.
    long = np.repeat(np.arange(400), 1_200)
    text = Examples.join([np.full(9, 6, np.int32)] * len(long))
    measured = pretraining_text(text, long, tokenizer, pairs=True, measured=True)
    assert len(measured) == 1_000
    # The others are not trained on all the same.
    assert len(pretraining_text(*arguments, pairs=False, measured=False)) == 110_000 - 1_100
