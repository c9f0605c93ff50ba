"""Masks against BERT's rules: rates, purity, whole words, and nothing else changed."""

from __future__ import annotations

import dataclasses
import pickle

import chex
import jax
import numpy as np
import pytest

from jaxbert.data.examples import Examples
from jaxbert.data.masking import MaskedBatches, _take_in_order
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import iterate
from jaxbert.data.tokenizer import load_tokenizer, special_ids
from jaxbert.errors import UserError

ROW, EXAMPLES = 64, 300
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A WordPiece tokenizer of 200 pieces, of which half go on with a word."""
    folder = tmp_path_factory.mktemp("pieces")
    words = [f"w{i}" for i in range(95)]
    lines = [*SPECIALS, *words, *(f"##{i}" for i in range(100))]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_tokenizer(folder)


def stream(tokenizer, packing=True, longest=ROW - 2, **arguments) -> PackedBatches:
    """Random pieces between [CLS] and [SEP], the unknown one among them."""
    rng = np.random.default_rng(5)
    spans = []
    for length in rng.integers(1, longest + 1, EXAMPLES):
        span = rng.integers(5, tokenizer.vocab_size, length)
        span[rng.random(length) < 0.02] = tokenizer.unk_id
        spans.append(np.array([tokenizer.cls_id, *span, tokenizer.sep_id], np.int32))
    return PackedBatches(
        Examples.join(spans),
        batch_size=24,
        row_length=ROW,
        seed=1,
        packing=packing,
        **arguments,
    )


def masked(batches, tokenizer, **arguments) -> MaskedBatches:
    return MaskedBatches(batches, tokenizer, **{"row_length": ROW, "seed": 3, **arguments})


def marks(batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, positions and targets of the masked pieces."""
    rows, columns = np.nonzero(batch.targets >= 0)
    return rows, batch.places[rows, columns], batch.targets[rows, columns]


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_only_the_marked_places_change_and_hold_what_stood_there(pieces, packing, whole_words):
    plain = stream(pieces, packing)
    batches = masked(plain, pieces, whole_words=whole_words)
    for step in range(12):
        before, after = plain[step], batches[step]
        rows, places, targets = marks(after)
        np.testing.assert_array_equal(before.tokens[rows, places], targets)
        assert not np.isin(targets, special_ids(pieces)).any()
        assert (before.segments[rows, places] > 0).all()
        there = np.zeros(before.tokens.shape, bool)
        there[rows, places] = True
        assert there.sum() == len(rows), "a place twice"
        np.testing.assert_array_equal(before.tokens[~there], after.tokens[~there])
        same = dataclasses.replace(after, tokens=before.tokens, places=None, targets=None)
        for field in dataclasses.fields(before):
            np.testing.assert_array_equal(getattr(same, field.name), getattr(before, field.name))
        assert after.places.dtype == after.targets.dtype == after.tokens.dtype == np.int32
        assert after.places.shape == after.targets.shape == (plain.rows, round(0.15 * (ROW - 2)))
        assert not after.places[after.targets < 0].any()


def test_each_row_has_fifteen_percent_and_they_are_masked_as_published(pieces):
    plain = stream(pieces)
    batches = masked(plain, pieces)
    was, now = [], []
    for step in range(400):
        before, after = plain[step], batches[step]
        usable = (before.segments > 0) & ~np.isin(before.tokens, special_ids(pieces))
        counts = usable.sum(axis=1)
        wanted = np.maximum(1, np.rint(0.15 * counts))
        np.testing.assert_array_equal((after.targets >= 0).sum(axis=1), wanted)
        rows, places, targets = marks(after)
        was.append(targets)
        now.append(after.tokens[rows, places])
    was, now = np.concatenate(was), np.concatenate(now)
    size = len(was)
    assert size > 20_000
    assert not np.isin(now[now != pieces.mask_id], special_ids(pieces)).any()
    is_mask, kept = now == pieces.mask_id, now == was
    # A random piece is the old one by chance once in 195. Four standard errors are allowed.
    chance = 0.1 / 195
    for share, expected in ((is_mask, 0.8), (kept, 0.1 + chance), (~is_mask & ~kept, 0.1 - chance)):
        allowed = 4 * np.sqrt(expected * (1 - expected) / size)
        assert abs(share.mean() - expected) < allowed
    replaced = np.bincount(now[~is_mask & ~kept], minlength=pieces.vocab_size)
    assert (replaced[5:] > 0).mean() > 0.99


def test_a_batch_is_a_function_of_seed_and_step_alone(pieces):
    plain = stream(pieces)
    one, two = masked(plain, pieces), masked(stream(pieces), pieces)
    forward = [one[step] for step in range(40)]
    for step in reversed(range(40)):
        again = two[step]
        np.testing.assert_array_equal(forward[step].tokens, again.tokens)
        np.testing.assert_array_equal(forward[step].places, again.places)
    assert len({batch.places.tobytes() for batch in forward}) == 40
    other = masked(plain, pieces, seed=4)
    assert any((other[s].places != forward[s].places).any() for s in range(3))


def test_resuming_at_every_step_of_two_epochs_gives_the_whole_rest(pieces):
    plain = stream(pieces)
    batches = masked(plain, pieces, whole_words=True)
    stop = int(np.ceil(2 * plain.steps_per_epoch))
    whole = list(iterate(batches, 0, stop))
    again = pickle.loads(pickle.dumps(batches))  # as another process has it
    for start in range(stop):
        chex.assert_trees_all_equal(list(iterate(again, start, stop, threads=2)), whole[start:])


def test_rows_that_complete_a_batch_for_more_devices_change_no_mask(pieces):
    few, many = masked(stream(pieces), pieces), masked(stream(pieces, multiple=32), pieces)
    for step in range(5):
        a, b = few[step], many[step]
        rows = len(a.tokens)
        assert len(b.tokens) > rows and (b.targets[rows:] == -1).all()
        np.testing.assert_array_equal(a.tokens, b.tokens[:rows])
        np.testing.assert_array_equal(a.places, b.places[:rows])


@pytest.mark.parametrize("whole_words", [False, True])
def test_rows_made_alone_have_the_masks_that_they_have_among_all(pieces, whole_words):
    batches = masked(stream(pieces, multiple=32), pieces, whole_words=whole_words)
    for step in (0, 1, 7):
        whole = batches[step]
        for rows in (np.arange(5), np.arange(5, 32), np.array([3, 31]), np.arange(0)):
            part = batches.take(step, rows)
            chex.assert_trees_all_equal(part, jax.tree.map(lambda x, rows=rows: x[rows], whole))


def test_whole_words_are_masked_whole_across_no_border(pieces):
    plain = stream(pieces)
    batches = masked(plain, pieces, whole_words=True)
    reached = wanted = 0
    for step in range(60):
        before, after = plain[step], batches[step]
        there = np.zeros(before.tokens.shape, bool)
        rows, places, _ = marks(after)
        there[rows, places] = True
        usable = (before.segments > 0) & ~np.isin(before.tokens, special_ids(pieces))
        goes_on = usable[:, 1:] & usable[:, :-1] & pieces.continues[before.tokens[:, 1:]]
        goes_on &= before.segments[:, 1:] == before.segments[:, :-1]
        np.testing.assert_array_equal(there[:, 1:][goes_on], there[:, :-1][goes_on])
        reached += len(rows)
        wanted += np.maximum(1, np.rint(0.15 * usable.sum(axis=1))).sum()
    assert 0.9 * wanted < reached <= wanted


def test_words_are_taken_as_a_walk_word_by_word_takes_them():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = np.sort(rng.integers(0, 5, rng.integers(0, 40)))
        sizes, room = rng.integers(1, 9, len(rows)), rng.integers(0, 20, 6)
        expected, left = [], room.copy()
        for size, row in zip(sizes, rows, strict=True):
            expected.append(size <= left[row])
            left[row] -= size * expected[-1]
        assert _take_in_order(sizes, rows, room).tolist() == expected


def test_a_row_without_a_piece_to_mask_is_left_alone(pieces):
    empty = np.array([pieces.cls_id, pieces.unk_id, pieces.sep_id], np.int32)
    plain = PackedBatches(
        Examples.join([empty] * 3), batch_size=3, row_length=ROW, seed=0, epochs=1
    )
    batch = masked(plain, pieces)[0]
    np.testing.assert_array_equal(batch.tokens, plain[0].tokens)
    assert (batch.targets == -1).all()


def test_words_of_sentencepiece_begin_with_their_mark(tmp_path):
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("\n".join(["unbelievable stories of unstable tables"] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "spiece"),
        model_type="bpe",
        vocab_size=40,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        pad_id=3,
        unk_piece="[UNK]",
        pad_piece="[PAD]",
        minloglevel=2,
    )
    tokenizer = load_tokenizer(tmp_path)
    (ids,) = tokenizer.encode(["unstable stories"])
    begins = [tokenizer.pieces[i].startswith("▁") for i in ids]
    assert sum(begins) == 2 < len(ids)
    assert tokenizer.continues[ids].tolist() == [not begin for begin in begins]
    assert not tokenizer.continues[list(special_ids(tokenizer))].any()


def test_a_rate_that_is_no_share_is_refused(pieces):
    with pytest.raises(UserError, match="masking rate is 1"):
        masked(stream(pieces), pieces, rate=1.0)
