"""What may stand at a masked place, against transformers on the same weights, one at a time."""

from __future__ import annotations

import masked_lm
import numpy as np
import pytest

from jaxbert.data.augmentation import Question
from jaxbert.data.wording import piece_words
from jaxbert.errors import UserError
from jaxbert.evaluation.fill_mask import check_masked_lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_lm.write(tmp_path_factory.mktemp("mlm") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return masked_lm.opened(folder, candidates=7)


def questions(tokenizer, count: int, longest: int, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        n = int(rng.integers(3, longest // 2 - 1))
        text = rng.integers(1000, tokenizer.vocab_size, n, dtype=np.int32)
        place = int(rng.integers(n)) + 1
        masked = np.concatenate([[tokenizer.cls_id], text, [tokenizer.sep_id]])
        masked[place] = tokenizer.mask_id
        tokens = np.concatenate([masked, text, [tokenizer.sep_id]]).astype(np.int32)
        found.append(Question(tokens, len(masked), place))
    return found


def answers(fill, asked: list[Question]) -> np.ndarray:
    out = np.zeros((len(asked), fill.candidates), np.int32)
    for index, question in enumerate(asked):
        width = fill.width(len(question.tokens))
        out[index] = fill(width, [question])[0]
    return out


def test_the_candidates_are_those_of_transformers_one_forward_a_word(folder, model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _, tokenizer, fill = model
    theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    words = piece_words(tokenizer)
    asked = questions(tokenizer, 12, 40)
    width = fill.width(40)
    mine = fill(width, asked)
    for question, found in zip(asked, mine, strict=True):
        types = (np.arange(len(question.tokens)) >= question.second).astype(np.int64)
        with torch.no_grad():
            logits = theirs(
                torch.tensor(question.tokens[None].astype(np.int64)),
                token_type_ids=torch.tensor(types[None]),
            ).logits[0, question.place]
        order = torch.argsort(logits, descending=True, stable=True).tolist()
        assert [piece for piece in order if words[piece]][:7] == found.tolist()


@pytest.mark.usefixtures("optimised")
def test_an_answer_does_not_depend_on_what_else_is_asked(model):
    _, tokenizer, fill = model
    asked = questions(tokenizer, 60, 40, seed=1)
    alone = answers(fill, asked)
    assert len({fill.width(len(question.tokens)) for question in asked}) > 2
    for width in (16, 24, 32, 40):
        chosen = [i for i, q in enumerate(asked) if fill.width(len(q.tokens)) == width][::-1]
        together = fill(width, [asked[i] for i in chosen])
        np.testing.assert_array_equal(together, alone[chosen])


def test_only_whole_words_are_candidates(model):
    _, tokenizer, fill = model
    words = piece_words(tokenizer)
    for row in answers(fill, questions(tokenizer, 5, 20)):
        assert all(words[piece].isalpha() for piece in row) and len(set(row)) == len(row)


def test_a_model_that_predicts_no_words_is_refused_with_the_command_that_mends_it():
    with pytest.raises(UserError, match=r"no masked-LM head.*bert_pretrain.*teacher=my/model"):
        check_masked_lm({"embeddings": {}, "encoder": {}}, "my/model")
