"""config.json: every mistake named by its key, and the names of the classes."""

from __future__ import annotations

import pytest
from folders import BACKBONE, CONFIG, edit_config, random_params

from jaxbert.errors import UserError
from jaxbert.interop.huggingface import read_model, write_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type = 'roberta'"),
        ({"hidden_act": "silu"}, "hidden_act = 'silu'.*gelu_new"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"position_embedding_type": "relative_key", "jaxbert": None}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_hidden_layers": None}, "key num_hidden_layers is missing"),
        ({"num_attention_heads": "2"}, "num_attention_heads = '2'"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"num_attention_heads": 3}, "hidden_size = 8 is not valid"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout = 1.5"),
        ({"jaxbert": {"position": []}}, r"position = \[\]"),
    ],
)
def test_config_json_errors_name_the_key(backbone, changes, message):
    edit_config(backbone, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_model(backbone)
    assert "config.json" in caught.value.line


def test_all_errors_of_config_json_come_at_once(backbone):
    edit_config(backbone, model_type="t5", hidden_act="tanh", vocab_size=None)
    with pytest.raises(UserError) as caught:
        read_model(backbone)
    assert len(caught.value.lines) == 3


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"]
)
def test_a_broken_config_json_is_a_user_error(backbone, content):
    (backbone / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        read_model(backbone)


def test_gelu_pytorch_tanh_is_gelu_new(backbone):
    edit_config(backbone, hidden_act="gelu_pytorch_tanh")
    assert read_model(backbone).config.activation == "gelu_new"


def test_labels_come_from_id2label_with_a_classifier_only(tmp_path, tokenizer):
    config = CONFIG.replace(num_labels=2)
    params = random_params(config, (*BACKBONE, "classifier"))
    write_model(tmp_path / "m", config, params, ("bad", "good"), tokenizer)
    assert read_model(tmp_path / "m").labels == ("bad", "good")
    edit_config(tmp_path / "m", id2label=None)
    assert read_model(tmp_path / "m").labels == ("LABEL_0", "LABEL_1")
    for wrong in ({"0": "a"}, {"0": "a", "2": "b"}, {"0": "a", "1": "a"}, ["a", "b"]):
        edit_config(tmp_path / "m", id2label=wrong)
        with pytest.raises(UserError, match="id2label"):
            read_model(tmp_path / "m")


def test_a_backbone_has_no_labels_whatever_config_json_says(backbone):
    edit_config(backbone, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    model = read_model(backbone)
    assert model.labels == ()
    assert model.config.num_labels == 0
