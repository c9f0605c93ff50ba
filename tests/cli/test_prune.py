"""jaxbert prune: the smaller model says of the corpus what the larger one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import commands
import jax
import masked_lm
import numpy as np
import pytest

from jaxbert.cli.main import main
from jaxbert.data.packing import Examples, PackedBatches
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.models.bert import Bert, count_parameters
from jaxbert.models.encoder import Collect

TEXTS = [
    "A moving film, slowly told; the machines of Paris never rest.",
    "Dull rain. 3,141 unbelievable umbrellas & a naïve photographer!",
    "it isn't the first time that nothing happens",
]
HELD_OUT = "A thunderous orchestra, unrelated to anything above."


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A masked language model, its corpus, and what the command makes of them."""
    root = tmp_path_factory.mktemp("prune")
    masked_lm.write(root / "model")
    (root / "corpus.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    (root / "other.txt").write_text(HELD_OUT, encoding="utf-8")
    words = [str(root / "model"), f"--corpus=text:{root}/corpus.txt", f"--out={root}/small"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxbert", "prune", *words, f"--held-out=text:{root}/other.txt"],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (root / "said").write_text(done.stdout, encoding="utf-8")
    return root


def outputs(model: Model) -> tuple[np.ndarray, ...]:
    """Every hidden state and all scores of the corpus, and its word logits [B, T, V]."""
    pieces = load_tokenizer(model.folder).encode(TEXTS)
    batch = PackedBatches(
        Examples.join(pieces), batch_size=3, row_length=48, seed=0, packing=False, epochs=1
    )[0]
    layers = tuple(range(model.config.num_layers))
    collect = Collect(hidden=(0, *(i + 1 for i in layers)), scores=layers)

    def run(params):
        bert = Bert(model.config)
        found = bert.apply({"params": params}, batch, collect=collect)
        hidden = found.last_hidden
        logits = bert.apply({"params": params}, hidden, method="mlm_logits")
        return found.hidden, found.scores, hidden, logits

    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(run)(model.params))


@pytest.mark.usefixtures("optimised")
def test_hidden_states_are_equal_to_the_bit_and_logits_are_those_of_the_kept_pieces(made):
    large, small = read_model(made / "model"), read_model(made / "small")
    before, after = outputs(large), outputs(small)
    jax.tree.map(np.testing.assert_array_equal, after[:3], before[:3])
    names = load_tokenizer(large.folder).pieces
    kept = [names.index(piece) for piece in load_tokenizer(small.folder).pieces]
    np.testing.assert_allclose(after[3], before[3][..., kept], atol=1e-6, rtol=1e-6)


def test_the_report_is_what_was_made(made):
    report = json.loads((made / "small" / "prune.json").read_text())
    small = read_model(made / "small")
    pieces = len((made / "small" / "vocab.txt").read_text(encoding="utf-8").splitlines())
    assert report["pieces"] == {"before": 6_000, "after": pieces}
    assert pieces == small.config.vocab_size < 4_000
    total = count_parameters(small.params)
    # What the embeddings have beside words: positions, types and a LayerNorm.
    others = (commands.TEACHER.max_position_embeddings + 2 + 2) * 48
    assert report["parameters"]["after"] == total
    assert report["without_embeddings"]["after"] == total - 48 * pieces - others
    assert report["megabytes"]["after"] == pytest.approx(4 * total / 1e6)
    corpus, held_out = report["texts"]["corpus"], report["texts"]["held_out"]
    assert corpus["changed"] == 0
    assert corpus["words"] == 37
    assert held_out["changed"] > 0
    assert held_out["unknown_after"] == held_out["unknown_before"] == 0
    said = (made / "said").read_text()
    assert f"6,000 -> {pieces:>15,}" in said
    assert "cut differently 0.000%" in said


def test_transformers_cuts_the_corpus_alike_by_the_new_files(made):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(made / "small")
    ours = load_tokenizer(made / "small").encode(TEXTS)
    for text, ids in zip(TEXTS, ours, strict=True):
        assert theirs.encode(text, add_special_tokens=False) == ids.tolist()


def test_a_task_s_training_rows_are_text_to_count_too(made, tmp_path):
    rows = "text\tlabel\n" + "".join(f"film {word}\t{i % 2}\n" for i, word in enumerate("abcdef"))
    for name in ("rows", "dev"):
        (tmp_path / f"{name}.tsv").write_text(rows, encoding="utf-8")
    source = f"tsv:{tmp_path}/rows.tsv"
    flags = ["--task.columns=text", "--task.label=label", "--task.labels=no,yes"]
    flags += [f"--task.dev=tsv:{tmp_path}/dev.tsv", f"--task.test=tsv:{tmp_path}/dev.tsv"]
    small = read_model(made / "small")  # pruned again
    main(["prune", str(small.folder), f"--task.source={source}", *flags, f"--out={tmp_path}/m"])
    pieces = load_tokenizer(tmp_path / "m").pieces
    assert "film" in pieces
    assert "rain" not in pieces


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=x"], "no text to count pieces on, flag --corpus; give a corpus"),
        (["--out=x", "--corpus=text:none/*.txt"], "none/*.txt"),
        (["--out=x", "--corpus=prepared:there"], "a prepared corpus holds pieces and no words"),
        (["--out=x", "--corpus=text:{}/corpus.txt", "--min-count=0"], "give at least 1"),
        (["--out={}/small", "--corpus=text:{}/corpus.txt"], "there is something already"),
        (["--out=x", "--corpus=text:{}/empty.txt"], "there is no word in it"),
        (["--out=x", "--corpus=text:{}/corpus.txt", "--held-out=nothing"], "unknown corpus"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(made, capsys, flags, message):
    (made / "empty.txt").write_text("\n")
    with pytest.raises(SystemExit) as left:
        main(["prune", str(made / "model"), *(flag.format(made) for flag in flags)])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxbert: error: ")
    assert message in line
    assert not Path("x").exists()
