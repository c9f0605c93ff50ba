"""Spans of prepared documents, against what the tokenizer gives for the text itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jaxbert.data.manifest import make_plan
from jaxbert.data.packing import PackedBatches
from jaxbert.data.prepare import prepare
from jaxbert.data.prepared import Corpus
from jaxbert.data.spans import Spans
from jaxbert.errors import UserError

Prepared = Callable[..., Corpus]


@pytest.fixture
def prepared(tokenizer, tokenizer_folder, tmp_path) -> Prepared:
    """Prepares documents, each list of them a source with a share."""

    def make(*sources: Sequence[str], shares: Sequence[float] = (), dedup: bool = False) -> Corpus:
        terms = []
        for number, texts in enumerate(sources):
            path = tmp_path / f"{number}.jsonl"
            lines = (json.dumps({"text": text}) for text in texts)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            share = f"{shares[number]} " if shares else ""
            terms.append(f"{share}jsonl:{path}:text")
        plan = make_plan(" + ".join(terms), tokenizer, shard_size=4_000, dedup=dedup)
        return prepare(plan, tokenizer_folder, tmp_path / plan.key)

    return make


def everything(spans: Spans):
    return spans.gather(np.arange(len(spans)))


def test_spans_cut_documents_without_loss_but_for_short_remainders(prepared, tokenizer):
    documents = ["film " * n for n in (1, 3, 30, 31, 60, 67, 68, 0, 95)] + ["\u200b \n", "good"]
    spans = Spans(prepared(documents), tokenizer, max_length=32)
    examples = everything(spans)
    np.testing.assert_array_equal(spans.lengths, examples.lengths)
    film = tokenizer.encode(["film"])[0][0]
    # 60 is two full spans, 67 loses 7 pieces, 68 keeps its 8, 31 loses 1 and 95 loses 5.
    expected = [1, 3, 30, 30, 30, 30, 30, 30, 30, 30, 8, 30, 30, 30, 1]
    assert (examples.lengths - 2).tolist() == expected
    assert (spans.truncated, spans.skipped) == (3, 2)
    for index in range(len(examples) - 1):
        first, last = examples.offsets[index : index + 2]
        span = examples.tokens[first:last]
        assert (span[0], span[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
        assert (span[1:-1] == film).all()
    np.testing.assert_array_equal(examples.seconds, examples.lengths)
    assert examples.labels is None
    PackedBatches(spans, batch_size=4, row_length=32, seed=0, vocab_size=tokenizer.vocab_size)


def test_spans_in_order_read_back_the_text(prepared, tokenizer):
    text = " ".join(f"the {i} films of {i * 7}" for i in range(2500))
    documents = [text, "one more", text[:5000]]
    examples = everything(Spans(prepared(documents), tokenizer, max_length=50))
    inner = np.ones(len(examples.tokens), bool)
    inner[examples.offsets[:-1]] = inner[examples.offsets[1:] - 1] = False
    whole = np.concatenate(tokenizer.encode(documents))
    assert inner.sum() >= len(whole) - 14
    np.testing.assert_array_equal(examples.tokens[inner][:12_000], whole[:12_000])


def test_a_number_of_documents_is_a_draw_by_the_seed(prepared, tokenizer):
    words = ["film", "actor", "scene", "music", "plot", "music", "story", "end"]
    documents = [f"{a} {b}" for a in words[:5] for b in words[5:]]
    corpus = prepared(documents)

    def drawn(**options):
        examples = everything(Spans(corpus, tokenizer, max_length=16, **options))
        return {tuple(row) for row in np.split(examples.tokens, examples.offsets[1:-1])}

    whole = drawn()
    assert len(whole) == 15 and drawn(num_documents=99) == whole
    some = drawn(num_documents=6, seed=1)
    assert len(some) == 6 and some < whole
    assert drawn(num_documents=6, seed=1) == some
    assert any(drawn(num_documents=6, seed=seed) != some for seed in (2, 3))
    # More documents with the same seed contain the fewer.
    assert some < drawn(num_documents=9, seed=1)


def test_a_corpus_without_text_and_sizes_that_do_not_fit_are_refused(prepared, tokenizer):
    for documents in ([], ["", " \n", "\u200b"]):
        with pytest.raises(UserError, match=f"the corpus is empty: {len(documents)} documents"):
            prepared(documents)
    corpus = prepared(["film"])
    for options in ({"max_length": 2}, {"num_documents": -1}):
        (name,) = options
        with pytest.raises(UserError, match=f"{name} is {options[name]}"):
            Spans(corpus, tokenizer, **{"max_length": 16, **options})
