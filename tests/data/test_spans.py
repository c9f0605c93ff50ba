"""Spans of prepared documents, against what the tokenizer gives for the text itself."""

from __future__ import annotations

import collections
import json
import pickle
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


def test_what_is_gathered_is_a_part_of_the_whole(prepared, tokenizer):
    corpus = prepared(["film " * n for n in range(1, 90)])
    spans = Spans(corpus, tokenizer, max_length=16, num_documents=70, seed=2)
    whole = everything(spans)
    ids = np.random.default_rng(0).integers(0, len(spans), 200)
    for source in (spans, pickle.loads(pickle.dumps(spans))):
        found, expected = source.gather(ids), whole.gather(ids)
        assert found.sha256 == expected.sha256
    assert len(spans.gather(ids[:0])) == 0


def test_the_hash_is_of_the_text_the_cut_and_the_draw_alone(prepared, tokenizer):
    texts = ["film " * n for n in range(1, 40)]
    corpus, other = prepared(texts), prepared([*texts, "end"])

    def sha256(corpus=corpus, **options):
        return Spans(corpus, tokenizer, **{"max_length": 16, **options}).sha256

    assert sha256() == sha256(seed=1) == sha256(num_documents=99)
    different = [sha256(), sha256(other), sha256(max_length=20), sha256(num_documents=20)]
    different.append(sha256(num_documents=20, seed=1))
    assert len(set(different)) == len(different)


def test_an_epoch_holds_the_pieces_of_each_source_in_its_share(prepared, tokenizer):
    words = [["film"], ["actor"], ["scene"]]
    sources = [
        [f"{w} " * n for n in range(1, top)] for (w,), top in zip(words, (60, 90, 30), strict=True)
    ]
    shares = (2.5, 5, 2.5)
    corpus = prepared(*sources, shares=shares)
    spans = Spans(corpus, tokenizer, max_length=32)
    whole = everything(spans)
    np.testing.assert_array_equal(spans.lengths, whole.lengths)
    rows = [tuple(row) for row in np.split(whole.tokens, whole.offsets[1:-1])]
    held = []
    for number, ((word,), texts) in enumerate(zip(words, sources, strict=True)):
        piece = tokenizer.encode([word])[0][0]
        mine = [row for row in rows if piece in row]
        held.append(sum(map(len, mine)))
        counts = collections.Counter(mine)
        alone = collections.Counter(
            tuple(row)
            for row in np.split(*_cut(everything(Spans(prepared(texts), tokenizer, max_length=32))))
        )
        facts = spans.shares[number]
        assert facts["spans"] == alone.total() and set(counts) == set(alone)
        for row, once in alone.items():  # so many whole times, or one time more
            times = int(facts["times"])
            assert once * times <= counts[row] <= once * (times + 1)
        assert facts["share"] == held[-1] / len(whole.tokens)
    for share, pieces in zip(shares, held, strict=True):
        assert abs(pieces - share / 10 * len(whole.tokens)) <= 2 * 32  # within a span each
    assert min(facts["times"] for facts in spans.shares) == 1.0
    assert spans.facts["epoch"] == len(spans) > spans.facts["spans"]


def _cut(examples):
    return examples.tokens, examples.offsets[1:-1]


def test_sources_without_shares_stand_there_once(prepared, tokenizer):
    one, other = ["film one", "film two"], ["actor " * 50]
    both = everything(Spans(prepared(one, other), tokenizer, max_length=32))
    apart = [everything(Spans(prepared(s), tokenizer, max_length=32)) for s in (one, other)]
    np.testing.assert_array_equal(both.tokens, np.concatenate([part.tokens for part in apart]))
    with pytest.raises(UserError, match=r"a source with a share has no text, jsonl:.*1.jsonl:text"):
        Spans(prepared(one, [""], shares=(1, 1)), tokenizer, max_length=32)


def test_every_example_names_the_document_that_it_is_from(prepared, tokenizer):
    """Drawn documents, and sources whose spans stand there several times."""
    films, scenes = ([f"{w} {i} " * (3 * i + 5) for i in range(9)] for w in ("film", "scene"))
    corpus = prepared(films, scenes[:3], shares=(0.5, 0.5))
    for count in (0, 8):
        spans = Spans(corpus, tokenizer, max_length=16, num_documents=count, seed=3)
        examples = everything(spans)
        assert spans.documents.shape == (len(spans),)
        assert len(np.unique(spans.documents)) == (count or 12)
        for index, text in enumerate(corpus.read(spans.documents)):
            span = examples.tokens[examples.offsets[index] + 1 : examples.offsets[index + 1] - 1]
            starts = range(0, len(text), 14)
            assert any(
                text[start : start + len(span)].tolist() == span.tolist() for start in starts
            )
