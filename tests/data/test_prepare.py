"""Corpora on disk: what is read back is what the tokenizer gives, however they were made."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import commands
import hypothesis
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tfds_files
from hypothesis import strategies

from jaxbert.data import dedup
from jaxbert.data.manifest import make_plan
from jaxbert.data.prepare import open_reference, prepare, unfinished
from jaxbert.data.prepared import Corpus, open_corpus
from jaxbert.data.transform import RECORD_PIECES
from jaxbert.errors import UserError

WORDS = "the film was a slow and quiet story of two sisters who paint in an old house by the sea"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def make(tokenizer, tokenizer_folder, tmp_path):
    """Prepares a reference."""

    def make(reference: str, name: str = "", workers: int = 1, **options) -> Corpus:
        plan = make_plan(reference, tokenizer, **options)
        return prepare(plan, tokenizer_folder, tmp_path / (name or plan.key), workers=workers)

    return make


def write_lines(path: Path, texts) -> str:
    """A JSON Lines file of texts; returns the reference to it."""
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return f"jsonl:{path}:text"


def story(number: int) -> str:
    """One of many different texts of some sentences."""
    words = np.random.default_rng(number).choice(WORDS.split(), 40 + 37 * (number % 7))
    return f"Chapter {number}.\n" + " ".join(words)


def assert_holds(corpus: Corpus, texts, tokenizer) -> None:
    """Asserts that a corpus is these documents, in this order."""
    expected = tokenizer.encode(texts)
    assert corpus.lengths.tolist() == [len(pieces) for pieces in expected]
    for found, wanted in zip(corpus.read(np.arange(len(texts))), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def contents(folder: Path) -> dict[str, str]:
    """The hashes of a folder's files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- every kind of source ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["text", "text.gz", "text.zst", "file", "jsonl", "parquet", "tfds"]
)
def test_what_is_read_back_is_the_text_tokenised(kind, make, tokenizer, tmp_path):
    texts = [story(i) for i in range(60)]
    source = tmp_path / "source"
    source.mkdir()
    if kind.startswith("text"):
        texts = [text.replace("\n", " \u2028") for text in texts]
        for part in range(3):
            data = "\r\n \t\n\n".join(texts[20 * part : 20 * part + 20]).encode()
            path = source / f"{part}.{kind}"
            if kind.endswith("gz"):
                path.write_bytes(gzip.compress(data))
            elif kind.endswith("zst"):
                with pyarrow.output_stream(path, compression="zstd") as stream:
                    stream.write(data)
            else:
                path.write_bytes(b"\xef\xbb\xbf" + data)
        reference = f"text:{source}/*"
    elif kind == "file":
        for number, text in enumerate(texts):
            (source / f"{number:03d}").write_text(text, encoding="utf-8")
        reference = f"text:{source}/*#file"
    elif kind == "jsonl":
        reference = write_lines(source / "rows", texts)
    elif kind == "parquet":
        table = pyarrow.table({"text": texts})
        pyarrow.parquet.write_table(table, source / "rows", row_group_size=7)
        reference = f"parquet:{source}/rows:text"
    else:
        rows = [{"text": text} for text in texts]
        tfds_files.prepare(source, "stories", "en", {"text": None}, {"train": rows})
        corpus = make("tfds:stories/en:text", data_dir=str(source), shard_size=5_000)
        assert sorted(map(len, corpus.read(np.arange(60)))) == sorted(
            map(len, tokenizer.encode(texts))
        )
        assert len(corpus.manifest["shards"]) > 3
        return
    corpus = make(reference, shard_size=5_000)
    assert_holds(corpus, texts, tokenizer)
    assert len(corpus.manifest["shards"]) > 3
    assert corpus.manifest["text_bytes"] == sum(len(text.encode()) for text in texts)


def test_a_data_set_of_the_library_datasets(make, tokenizer, tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = [story(i) for i in range(30)]
    rows = datasets.Dataset.from_dict({"text": [*texts, None], "id": list(range(31))})
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "dict"))
    rows.save_to_disk(str(tmp_path / "rows"))
    write_lines(tmp_path / "files.jsonl", texts)
    for name in ("dict", "rows"):
        corpus = make(f"hf:{tmp_path}/{name}:train:text", shard_size=5_000)
        assert_holds(corpus, texts, tokenizer)
        assert corpus.manifest["empty"] == 1 and len(corpus.manifest["shards"]) > 2
    for reference, message in (
        ("dict:train:body", "no column 'body'.*it has text, id"),
        ("dict:test:text", "it cannot be opened"),
    ):
        with pytest.raises(UserError, match=message):
            make(f"hf:{tmp_path}/{reference}")


def test_a_data_set_without_the_library_names_the_command(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"the library datasets is not installed.*pip install datasets"
    ):
        make(f"hf:org/name@{COMMIT}:train:text")


@pytest.mark.parametrize(
    "name",
    ["org/name", "org/name/config", "org/name@main", "org/name@v1.0", f"name@{COMMIT}", "nowhere"],
)
def test_a_data_set_of_the_hub_needs_a_commit(make, name, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it was asked for"))
    with pytest.raises(UserError, match=r"a commit, .*give .*hf:ORG/NAME\[/CONFIG\]@COMMIT"):
        make(f"hf:{name}:train:text")


def test_a_data_set_of_the_hub_is_that_of_its_commit(make, tokenizer, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    texts = [story(i) for i in range(3)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / COMMIT))
    asked = []

    def load(*args, **options):
        asked.append((args, options))
        return datasets.load_from_disk(str(tmp_path / COMMIT))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert_holds(make(f"hf:org/name/20231101.en@{COMMIT}:train:text"), texts, tokenizer)
    assert asked[0] == (("org/name", "20231101.en"), {"split": "train", "revision": COMMIT})
    with pytest.raises(UserError, match="the cache holds another commit"):
        make(f"hf:org/name@{COMMIT[::-1]}:train:text")


@pytest.mark.parametrize("name", ["a.zip", "a.txt", "a.csv"])
def test_an_archive_in_a_folder_of_a_data_set_is_refused(make, name, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    (tmp_path / "b.txt").write_text("a film\n")
    if name == "a.csv":
        with tarfile.open(folder / name, "w:gz") as archive:
            archive.add(tmp_path / "b.txt", "b.txt")
    else:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.write(tmp_path / "b.txt", "b.txt")
    with pytest.raises(
        UserError, match=rf"archive, which is not unpacked, {folder / name}; unpack"
    ):
        make(f"hf:{folder}:train:text")
    assert not list((tmp_path / "cache").rglob("b.txt"))


def test_a_long_document_is_cut_in_bounded_pieces_and_read_in_the_middle(make, tokenizer, tmp_path):
    line = "one two three four " * 50_000
    (tmp_path / "long.txt").write_text(f"{line}\n{line.upper()}\n\nshort")
    corpus = make(f"text:{tmp_path}/long.txt")
    lengths = [200_000, 200_000, 1]  # a line is shorter than 2**20 characters, two are not
    assert corpus.lengths.tolist() == lengths
    assert corpus.manifest["records"] == 2 * -(-200_000 // RECORD_PIECES) + 1
    whole = np.concatenate(corpus.read(np.array([1, 2])))
    starts = np.array([0, 4_000, RECORD_PIECES, 199_990, 0])
    sizes = np.array([5, 9_000, 1, 10, 1])
    documents = np.array([1, 1, 1, 1, 2])
    found = corpus.pieces(documents, starts, sizes)
    offsets = np.array([0, 0, 0, 0, 200_000]) + starts
    expected = [whole[a : a + n] for a, n in zip(offsets, sizes, strict=True)]
    np.testing.assert_array_equal(found, np.concatenate(expected))


HOSTILE = strategies.lists(
    strategies.text(
        strategies.sampled_from("ab \n\r\t\0\u2028\u0085\ufeff\u200b\U0001f600é中"), max_size=12
    ),
    max_size=12,
)


@hypothesis.settings(
    max_examples=12,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(texts=HOSTILE, size=strategies.sampled_from([1, 40, 1 << 20]))
def test_hostile_texts_are_used_or_counted(texts, size, make, tokenizer, tmp_path):
    texts = [*texts, "the end"]
    reference = write_lines(tmp_path / "hostile.jsonl", texts)
    corpus = make(reference, shard_size=size)
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    kept = [text for text in distinct if len(tokenizer.encode([text])[0])]
    assert_holds(corpus, kept, tokenizer)
    facts = corpus.manifest
    assert facts["empty"] == sum(not text.strip() for text in texts) + len(distinct) - len(kept)
    assert facts["documents"] + facts["empty"] + facts["duplicates"] == len(texts)
    whole = make(reference, shard_size=size, dedup=False).manifest
    assert (whole["documents"] + whole["empty"], whole["duplicates"]) == (len(texts), 0)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    data=strategies.text(strategies.sampled_from("ab \n\r\t\u2028é"), max_size=60),
    size=strategies.integers(1, 20),
    packed=strategies.booleans(),
)
def test_text_files_hold_the_same_documents_however_they_are_divided(
    data, size, packed, tmp_path_factory
):
    from test_corpus import documents_of

    path = tmp_path_factory.getbasetemp() / ("divided.gz" if packed else "divided.txt")
    path.write_bytes(gzip.compress(data.encode()) if packed else data.encode())
    lines = [line.removesuffix("\r") for line in data.removesuffix("\n").split("\n")]
    expected, held = [], []
    for line in [*lines, ""]:
        if line.strip():
            held.append(line)
        elif held:
            expected.append("\n".join(held))
            held = []
    assert documents_of(f"text:{path}", size=size) == expected


def test_a_bad_line_is_named_as_it_stands_in_the_whole_file(make, tmp_path):
    path = tmp_path / "rows.jsonl"
    reference = write_lines(path, [story(i) for i in range(50)])
    lines = path.read_bytes().split(b"\n")
    lines[40] = b'{"text": "\\ud800"}'
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"no character of UTF-8, .*rows.jsonl:41:text"):
        make(reference, shard_size=3_000, workers=2)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]  # nothing is left of it
    path = tmp_path / "text.txt"
    path.write_bytes(b"a line\n\n" * 1_000 + b"caf\xe9\n")
    with pytest.raises(UserError, match=r"byte 0xe9 is not UTF-8, .*text.txt:2001:4"):
        make(f"text:{path}", shard_size=100)


def test_a_text_file_without_an_empty_line_is_said_to_be_one_document(tokenizer, tmp_path, capsys):
    lines = [f"document {i} is " + "long and " * 30 for i in range(6_000)]
    texts = {"lines": "\n".join(lines), "apart": "\n\n".join(lines), "small": "\n".join(lines[:9])}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(texts["lines"].encode()))
    for reference, named in (
        ("*.txt", "lines.txt has"),
        ("*.t*", "lines.txt (and of 1 more) has"),
        ("[as]*.txt", ""),
        ("*.txt#file", ""),
    ):
        make_plan(f"text:{tmp_path}/{reference}", tokenizer)
        said = capsys.readouterr().err
        assert said.startswith(f"warning: the first MiB of {tmp_path}/{named}") or not named
        assert said.count("\n") == bool(named) and ("put an empty line" in said) == bool(named)


# --- duplicates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keys_a_partition", [1, 50, 1 << 20])
def test_the_first_of_equal_keys_is_kept_in_however_many_partitions(keys_a_partition, tmp_path):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2, (600, 32), np.uint8)
    keys[:, 3:] = 7  # few different ones
    keys[::50] = 0  # these are none
    paths = []
    for number, part in enumerate(np.split(keys, [0, 100, 101, 450])):
        paths.append(tmp_path / f"{number}.npy")
        np.save(paths[-1], part)
    dedup.find_duplicates(paths, tmp_path / "out.npy", keys_a_partition=keys_a_partition)
    seen, expected = set(), []
    for key in keys:
        expected.append(bool(key.any()) and key.tobytes() in seen)
        seen.add(key.tobytes())
    assert np.load(tmp_path / "out.npy").tolist() == expected
    assert {path.name for path in tmp_path.iterdir()} == {*(p.name for p in paths), "out.npy"}


def test_duplicates_are_found_across_files_and_sources(make, tokenizer, tmp_path):
    one = write_lines(tmp_path / "a.jsonl", ["film one", "film two", "film one", "Film one"])
    other = write_lines(tmp_path / "b.jsonl", ["film two", "film three", "", "film one\n"])
    corpus = make(f"{one} + {other}")
    kept = ["film one", "film two", "Film one", "film three", "film one\n"]
    assert_holds(corpus, kept, tokenizer)
    counts = ("documents", "empty", "duplicates")
    assert [[s[key] for key in counts] for s in corpus.manifest["sources"]] == [
        [3, 0, 1],
        [2, 1, 1],
    ]


# --- workers, kills, damage ----------------------------------------------------------------------


def test_any_number_of_workers_makes_the_same_bytes(make, tmp_path):
    reference = write_lines(tmp_path / "rows.jsonl", [story(i % 150) for i in range(200)])
    made = [
        contents(make(reference, str(workers), workers, shard_size=10_000).folder)
        for workers in (1, 2, 3)
    ]
    assert made[0] == made[1] == made[2]
    assert sum(name.endswith(".array_record") for name in made[0]) > 5


def test_a_killed_preparation_goes_on_where_it_was(tokenizer_folder, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [story(i) * 40 for i in range(240)])

    def command(out: str) -> list[str]:
        flags = ["--corpus", f"jsonl:{tmp_path}/rows.jsonl:text", "--shard-size=1", "--workers=2"]
        flags += ["--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / out)]
        return [sys.executable, "-m", "jaxbert", "prepare", *flags]

    # Whoever comes to the fourth unit reads its record first, and waits at a pipe for a writer: so
    # the work is under way when it is stopped, however long this process has to wait for a core.
    work = tmp_path / "broken" / "unfinished"
    work.mkdir(parents=True)
    pipe = work / "000003.json"
    os.mkfifo(pipe)

    def stop(number: int) -> subprocess.CompletedProcess:
        writer = None
        with subprocess.Popen(
            command("broken"), cwd=commands.ROOT, stderr=subprocess.PIPE
        ) as process:
            while writer is None:
                assert process.poll() is None and not time.sleep(0.01)
                with contextlib.suppress(OSError):  # there is no reader yet
                    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            os.kill(process.pid, number)
            said = process.stderr.read()  # until its workers have gone, too
        os.close(writer)
        return subprocess.CompletedProcess([], process.returncode, stderr=said.decode())

    assert stop(signal.SIGKILL).returncode == -signal.SIGKILL
    asked = stop(signal.SIGTERM)
    assert (asked.returncode, asked.stderr) == (
        75,
        "interrupted and saved: run the same command again\n",
    )
    pipe.unlink()
    shards = [work.parent / f"{path.stem}.array_record" for path in work.glob("*.json")]
    kept = {path: path.stat().st_mtime_ns for path in shards}
    damaged = min(kept)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    for out in ("broken", "whole", "whole"):  # the last time it is there already
        done = subprocess.run(
            command(out), cwd=commands.ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("240 documents, ")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    again = {path for path, when in kept.items() if path.stat().st_mtime_ns != when}
    assert again == {damaged}


@pytest.mark.parametrize("fails", [False, True])
def test_those_who_wait_for_a_folder_go_on_when_it_is_free(
    fails, tokenizer, tokenizer_folder, tmp_path, capsys
):
    plan = make_plan(write_lines(tmp_path / "rows.jsonl", ["film one", "film two"]), tokenizer)
    out, found = tmp_path / "out", []

    def wait() -> None:
        found.append(prepare(plan, tokenizer_folder, out).num_documents)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    said = f"waiting for another process that prepares {out}\n"
    with contextlib.suppress(UserError), unfinished(plan, out) as work:
        for thread in threads:
            thread.start()
        heard = ""
        while heard.count(said) < len(threads):
            assert all(thread.is_alive() for thread in threads)
            heard += capsys.readouterr().err
            time.sleep(0.01)
        assert not found and heard == 2 * said
        if fails:
            raise UserError("a line that is no text")
        shutil.copytree(prepare(plan, tokenizer_folder, tmp_path / "x").folder, out,
                        dirs_exist_ok=True)  # fmt: skip
        assert work.is_dir()
    for thread in threads:
        thread.join()
    assert found == [2, 2] and not work.exists()


def test_a_finished_folder_is_used_where_nothing_may_be_written(make, tmp_path):
    reference = write_lines(tmp_path / "rows.jsonl", [story(i) for i in range(9)])
    folder = make(reference, "x").folder
    before = folder.stat().st_mtime_ns  # changes with any name that is made or removed in it
    folder.chmod(0o500)
    assert make(reference, "x").num_documents == 9
    folder.chmod(0o700)
    assert folder.stat().st_mtime_ns == before
    (folder / "unfinished").mkdir()  # of a process that was killed when all was done
    assert make(reference, "x").num_documents == 9 and not (folder / "unfinished").exists()


def test_a_damaged_folder_is_refused_by_the_name_of_its_file(make, tmp_path):
    corpus = make(write_lines(tmp_path / "rows.jsonl", [story(i) for i in range(90)]), "x",
                  shard_size=5_000)  # fmt: skip
    shard = sorted(corpus.folder.glob("*.array_record"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"a shard is damaged: {len(whole) - 1} bytes.*{shard}"):
        open_corpus(corpus.folder)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(UserError, match=f"a shard is damaged.*{shard.name}"):
        reopened = open_corpus(corpus.folder)  # of its size
        reopened.read(np.arange(reopened.num_documents))
    done = subprocess.run(
        [sys.executable, "-m", "jaxbert", "verify", corpus.folder],
        cwd=commands.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and str(shard) in done.stderr and "SHA-256" in done.stderr
    shard.unlink()
    with pytest.raises(UserError, match=f"a shard is damaged: missing, {shard}"):
        open_corpus(corpus.folder)
    shard.write_bytes(whole)
    assert open_corpus(corpus.folder, verify=True).sha256 == corpus.sha256
    records = np.load(corpus.folder / "records.npy")
    np.save(corpus.folder / "records.npy", np.where(np.arange(91) == 5, records + 1, records))
    with pytest.raises(UserError, match=r"it has changed.*records.npy"):
        open_corpus(corpus.folder, verify=True)
    np.save(corpus.folder / "records.npy", records)
    (corpus.folder / "lengths.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot be read.*lengths.npy"):
        open_corpus(corpus.folder)
    for content, message in (
        ("{", "not a JSON file"),
        ('{"format": 9}', "its format is 9"),
        ('{"format": 1}', "not a manifest: it is missing"),
    ):
        (corpus.folder / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=f"{message}.*manifest.json"):
            open_corpus(corpus.folder)
    with pytest.raises(UserError, match=f"no prepared corpus, {tmp_path}/none"):
        open_corpus(tmp_path / "none")


def test_a_folder_that_holds_something_else_is_left_alone(make, tmp_path):
    reference = write_lines(tmp_path / "rows.jsonl", ["film"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"it holds thesis.txt.*give a new or an empty folder"):
        make(reference, "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    before = contents(make(reference, "out").folder)
    write_lines(tmp_path / "rows.jsonl", ["actor"])
    with pytest.raises(UserError, match="it holds a corpus of other text"):
        make(reference, "out")
    assert contents(tmp_path / "out") == before


def test_threads_and_other_processes_read_the_same(make, tmp_path):
    texts = [story(i) for i in range(80)]
    corpus = make(write_lines(tmp_path / "rows.jsonl", texts), shard_size=3_000)
    ids = np.random.default_rng(0).integers(0, 80, 500)
    expected = np.concatenate(corpus.read(ids))
    np.testing.assert_array_equal(
        np.concatenate(pickle.loads(pickle.dumps(corpus)).read(ids)), expected
    )
    found = {}

    def read(thread: int) -> None:
        found[thread] = np.concatenate(corpus.read(ids))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[i] == expected).all() for i in range(4))


# --- the cache, prepared: and what a run says of them --------------------------------------------


def test_a_corpus_is_prepared_once_and_anew_when_its_content_changes(
    tokenizer, tokenizer_folder, tmp_path
):
    path = tmp_path / "rows.jsonl"
    reference = write_lines(path, ["film one", "film two"])

    def opened() -> Corpus:
        return open_reference(reference, tokenizer, tokenizer_folder, cache=tmp_path / "cache")

    first = opened()
    made = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert opened().folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == made
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"two", b"six"))  # as long, and as old
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = opened()
    assert second.folder != first.folder and second.sha256 != first.sha256
    assert_holds(second, ["film one", "film six"], tokenizer)


def test_a_prepared_folder_is_opened_if_its_tokenizer_is_the_teachers(
    make, tokenizer, tokenizer_folder, tmp_path
):
    corpus = make(write_lines(tmp_path / "rows.jsonl", ["film one"]))
    reference = f"prepared:{corpus.folder}"
    found = open_reference(reference, tokenizer, tokenizer_folder, cache=tmp_path / "none")
    assert found.sha256 == corpus.sha256 and not (tmp_path / "none").exists()
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    manifest["tokenizer"]["fingerprint"] = "another"
    (corpus.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"tokenised by another tokenizer than that of .*prepare"):
        open_reference(reference, tokenizer, tokenizer_folder, cache=tmp_path / "none")


def test_shares_and_references_that_do_not_fit_are_refused(make, tmp_path):
    reference = write_lines(tmp_path / "rows.jsonl", ["film one"])
    for wrong, message in (
        (f"0.5 {reference} + {reference}", "1 of 2 sources have a share"),
        (f"{reference} + ", "unknown corpus"),
        (f"-1 {reference}", "unknown corpus"),
        (f"0 {reference}", "0 of 1 sources have a share"),
        (f"prepared:{tmp_path}", "unknown corpus"),
        ("hf:name:text", "unknown corpus"),
    ):
        with pytest.raises(UserError, match=message):
            make(wrong)
