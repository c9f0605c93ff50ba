"""Folders in an object store, on a store of this machine (``object_store``)."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import commands
import jax.numpy as jnp
import numpy as np
import pytest
from object_store import BUCKET, Store

from jaxbert import objects
from jaxbert.data.manifest import make_plan
from jaxbert.data.prepare import prepare
from jaxbert.data.prepared import open_corpus
from jaxbert.data.tables import matching_files
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError
from jaxbert.files import (
    SEAL,
    as_path,
    check_seal,
    hold,
    is_whole,
    local_path,
    read_object,
    seal,
    whole,
)
from jaxbert.interop import hub
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.recipe import load_recipe, resolve
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.journal import Journal
from jaxbert.training.stored import Damaged, Stored
from jaxbert.workdir import check_claim, claim

# Not imported yet: it reads its variables once.
pytestmark = pytest.mark.skipif(find_spec("gcsfs") is None, reason="gcsfs is not installed")
SHORT = {"LEASE": 2.0, "BEAT": 0.1}  # seconds
# Holds a folder, and says so, in a process whose times are short.
HOLDS = """
import sys, time
from jaxbert import objects
from jaxbert.files import as_path, hold
objects.LEASE, objects.BEAT = 2.0, 0.1
with hold(as_path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(store: Store, request: pytest.FixtureRequest, monkeypatch, tmp_path) -> Path:
    """A folder of the store for one test, and a cache of this machine of its own."""
    monkeypatch.setenv("JAXBERT_CACHE", str(tmp_path / "cache"))
    return as_path(f"gs://{BUCKET}/{request.node.name}")


@pytest.fixture
def short(monkeypatch) -> None:
    for name, seconds in SHORT.items():
        monkeypatch.setattr(objects, name, seconds)


def name_of(path: Path) -> str:
    """An object's name in the bucket."""
    return str(path).removeprefix(f"gs://{BUCKET}/")


def flip(store: Store, name: str) -> None:
    content = bytearray(store.objects[name].content)
    content[len(content) // 2] ^= 1
    store.put(name, bytes(content))


def test_a_local_path_is_what_it_was_and_a_remote_one_is_refused_where_it_cannot_be():
    assert type(as_path("runs/a")) is type(Path("runs/a"))
    assert local_path("runs/a") == Path("runs/a")
    with pytest.raises(UserError, match="only gs:// is known, s3://b/a; copy it"):
        as_path("s3://b/a")
    with pytest.raises(UserError, match="no object store is read or written here, gs:"):
        local_path("gs://b/a")


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError) as error:
        as_path("gs://bucket/run")
    line = 'gcsfs is not installed, gs://bucket/run; pip install "jaxbert[gcs]"'
    assert error.value.line == line


def test_a_file_is_written_in_one_put_or_not_at_all(store, place):
    path = place / "a.json"
    with whole(path) as file:
        file.write("one")
    before = store.objects[name_of(path)].generation
    with pytest.raises(ZeroDivisionError), whole(path) as file:
        file.write(str(1 / 0))
    assert store.objects[name_of(path)].generation == before
    with whole(path) as file:
        file.write("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert store.names(place.name) == [name_of(path)]


def test_sealed_files_are_checked(store, place):
    for name in ("a.json", "b.json"):
        with whole(place / name) as file:
            file.write(name)
    seal(place, ["a.json", "b.json"])
    check_seal(place, "")
    flip(store, f"{place.name}/b.json")
    with pytest.raises(UserError, match=r"not what was written.*b\.json"):
        check_seal(place, "")


def test_one_holds_a_folder_and_the_next_one_has_it_afterwards(store, place, short):
    lock = place / ".lock"
    with hold(lock):
        first = json.loads(store.objects[name_of(lock)].content)
        assert first["process"].startswith(f"{os.getpid()} on ")
        with pytest.raises(BlockingIOError), hold(lock):
            pytest.fail("two hold it")
    assert name_of(lock) not in store.objects
    with hold(lock):
        assert json.loads(store.objects[name_of(lock)].content)["token"] != first["token"]


def test_a_second_run_in_a_folder_is_refused_with_the_name_of_the_first(place, short):
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), {})
    with (
        claim(place, config),
        pytest.raises(UserError, match=rf"the process {os.getpid()} on \S+ trains there"),
        claim(place, config),
    ):
        pytest.fail("two train there")
    assert read_object(place / "config.json", "")["seed"] == 0
    check_claim(place, config)
    other = resolve(load_recipe(f"{commands.TASK}:smoke"), {"seed": "1"})
    with pytest.raises(UserError, match="it is 1 and was 0 when this run began"):
        check_claim(place, other)


def test_one_waits_for_the_other_if_it_is_told_to(place, short):
    lock, asked, inside = place / ".lock", threading.Event(), []

    def second() -> None:
        with hold(lock, asked.set):
            inside.append("second")

    with hold(lock):
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(60)
        inside.append("first")
    thread.join()
    assert inside == ["first", "second"]


@pytest.mark.slow
def test_what_a_killed_process_of_this_machine_held_is_free_at_once(store, place):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(place / ".lock")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    assert store.names(place.name) == [f"{place.name}/.lock"]
    with hold(place / ".lock"):  # in far less than a lease, whose length is as it is here
        pass


def test_what_nobody_renews_is_taken_over_and_of_two_one_takes_it(store, place, short, capsys):
    other = {"process": "7 on elsewhere", "machine": "another", "number": 7, "token": "x"}
    store.put(f"{place.name}/.lock", json.dumps(other).encode())
    outcomes = []
    both = threading.Barrier(2)

    def take() -> None:
        both.wait()
        try:
            with hold(place / ".lock"):
                outcomes.append("held")
                both.wait(60)  # until the other one has given up
        except BlockingIOError:
            outcomes.append("refused")
            both.wait(60)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]
    assert "is held by 7 on elsewhere: waiting up to 2 s" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("why", ["taken over", "without the object store", "stood still"])
def test_who_loses_a_folder_ends_before_it_writes_on(store, place, why):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(place / ".lock")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            if why == "taken over":
                store.put(f"{place.name}/.lock", b"{}")
            elif why == "stood still":
                process.send_signal(signal.SIGSTOP)
                time.sleep(SHORT["LEASE"] + 1)
                process.send_signal(signal.SIGCONT)
            else:
                store.refusing = True
            _, said = process.communicate(timeout=120)
        finally:
            store.refusing = False
    assert process.returncode == 2
    assert said.startswith("jaxbert: error: ")
    assert why in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_model_is_there_with_its_seal_and_read_by_way_of_a_copy(store, place, tmp_path):
    commands.write_small_teacher(tmp_path / "teacher")
    model = read_model(tmp_path / "teacher")
    folder = place / "models" / "student"
    store.put(f"{name_of(folder)}/left.json", b"of an older one")
    assert not is_whole(folder)
    with pytest.raises(UserError, match="no model 'student' among none"):
        hub.resolve(f"run:{place}#student")

    write_model(folder, model.config, model.params, (), load_tokenizer(tmp_path / "teacher"))

    assert is_whole(folder)
    assert f"{name_of(folder)}/left.json" not in store.objects
    assert store.objects[f"{name_of(folder)}/{SEAL}"].generation == max(
        store.objects[name].generation for name in store.names(name_of(folder))
    )
    read = read_model(folder)
    np.testing.assert_array_equal(
        read.params["embeddings"]["word"], model.params["embeddings"]["word"]
    )
    asked = len(store.requests)
    for reference in (f"run:{place}#student", str(place), str(folder)):
        assert hub.resolve(reference) == read.folder  # the same copy, which is not copied again
    weights = [path for _, path in store.requests[asked:] if "safetensors?alt=media" in path]
    assert not weights

    flip(store, f"{name_of(folder)}/model.safetensors")
    with pytest.raises(UserError, match=r"not what was written.*model\.safetensors"):
        read_model(folder)


def test_a_copy_that_is_damaged_is_made_again_and_one_damaged_on_the_way_is_none(store, place):
    store.put(f"{place.name}/rows.tsv", b"text\tlabel\n")
    copy = objects.fetch(place)
    (copy / "rows.tsv").write_text("cut")
    assert objects.fetch(place) == copy
    assert (copy / "rows.tsv").read_bytes() == b"text\tlabel\n"
    changed = store.put(f"{place.name}/rows.tsv", b"text\tlabel\nmore\t1\n")
    assert objects.fetch(place) != copy
    store.put(f"{place.name}/rows.tsv", changed.content)
    with store.damaged_on_the_way(), pytest.raises(UserError, match="cannot be copied"):
        objects.fetch(place)


def test_a_cache_that_cannot_be_written_is_said_in_one_line(store, place, monkeypatch, tmp_path):
    store.put(f"{place.name}/rows.tsv", b"text\tlabel\n")
    copy = objects.fetch(place)
    monkeypatch.delenv("JAXBERT_CACHE")
    (tmp_path / "home").write_text("no folder, which stops even one who may write everywhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for use in (Journal, objects.fetch):
        with pytest.raises(UserError) as error:
            use(place)
        assert error.value.what == "what this machine keeps cannot be written: Not a directory"
        assert error.value.where.startswith(str(tmp_path / "home" / ".cache" / "jaxbert"))
        assert error.value.fix == "set JAXBERT_CACHE to a folder that can be written"

    def refuse(**named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setenv("JAXBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert objects.fetch(place) == copy  # which is there needs no writing
    with pytest.raises(UserError, match="Read-only file system"):
        Journal(place)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a/../../outside"])
def test_no_name_of_an_object_leads_out_of_its_copy(store, monkeypatch, tmp_path, name):
    monkeypatch.setenv("JAXBERT_CACHE", str(tmp_path / "cache"))
    store.put(f"hostile/{name}", b"payload")
    with pytest.raises(UserError, match="that of no file in a folder"):
        objects.fetch(as_path(f"gs://{BUCKET}/hostile"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    del store.objects[f"hostile/{name}"]


def test_files_of_a_pattern_are_copied_in_the_order_of_their_names(store, place):
    for name in ("b.txt", "a.txt", "c.md", "deeper/d.txt"):
        store.put(f"{place.name}/{name}", name.encode())
    found = matching_files(f"{place}/*.txt", "")
    assert [path.read_text() for path in found] == ["a.txt", "b.txt"]
    assert matching_files(f"{place}/c.md", "")[0].read_text() == "c.md"
    with pytest.raises(UserError, match="no object matches"):
        matching_files(f"{place}/*.none", "")


def test_a_prepared_corpus_is_opened_by_way_of_a_copy(store, place, corpus, tmp_path):
    for path in corpus.folder.iterdir():
        store.put(f"{place.name}/{path.name}", path.read_bytes())
    opened = open_corpus(place, verify=True)
    assert opened.sha256 == corpus.sha256
    np.testing.assert_array_equal(opened.read(np.array([1]))[0], corpus.read(np.array([1]))[0])
    with pytest.raises(UserError, match="there is no such folder"):
        open_corpus(place / "none")


@pytest.fixture
def corpus(tmp_path):
    commands.write_vocabulary(tmp_path / "vocabulary")
    (tmp_path / "text.txt").write_text("a film\n\nof two sisters\n")
    plan = make_plan(f"text:{tmp_path}/text.txt", load_tokenizer(tmp_path / "vocabulary"))
    return prepare(plan, tmp_path / "vocabulary", tmp_path / "prepared")


def saved(folder: Path, *steps: int) -> None:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, {"w": jnp.full(3, float(step))}, {}, due=step == 1)
        if step == 1:
            checkpoints.judge(step, 0.5, {})
    checkpoints.close()


def test_checkpoints_are_kept_read_and_set_aside(store, place, capsys):
    """The best and the two latest; half of one is none; a damaged one is named."""
    saved(place, 1, 2, 3, 4)
    like = {"w": jnp.zeros(3)}
    assert {name.split("/")[1] for name in store.names(f"{place.name}/")} == {"1", "3", "4"}
    data = [n for n in store.names(f"{place.name}/4/state/") if "/d/" in n]
    for name in data:
        store.put(name, b"")
    store.put(f"{place.name}/7/state/manifest.ocdbt", b"what a killed process has left")

    checkpoints = Checkpoints(place)
    step, state = checkpoints.restore_newest(like)

    assert (step, state["w"].tolist()) == (3, [3.0] * 3)
    assert checkpoints.development() == {"best_step": 1, "best_dev": 0.5, "last_dev": None}
    checkpoints.close()
    assert f"moved to {place}/damaged/4" in capsys.readouterr().err
    assert store.names(f"{place.name}/damaged/4/record/metadata")
    assert not store.names(f"{place.name}/4/")
    assert not store.names(f"{place.name}/7/")


def test_a_store_that_refuses_is_no_damage(store, place, monkeypatch):
    saved(place, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(place), "read_text", _forbidden)
        with pytest.raises(UserError, match="cannot be read from the object store") as error:
            Stored(place / "1")
    assert not isinstance(error.value, Damaged)


def _forbidden(*words: object, **named: object) -> str:
    raise OSError("Forbidden")


@pytest.mark.slow
def test_the_journal_of_another_machine_goes_on_from_what_was_kept(place, monkeypatch, tmp_path):
    first = Journal(place)
    first.rewind("task", 0)
    first.write("task", 2, {"loss": 1.0})
    first.keep()
    first.write("task", 4, {"loss": 2.0})  # and the machine is gone

    monkeypatch.setenv("JAXBERT_CACHE", str(tmp_path / "another"))
    second = Journal(place)
    second.rewind("task", 2)
    second.write("task", 4, {"loss": 2.0})
    second.close()

    steps = [json.loads(line)["step"] for line in (place / "metrics.jsonl").open("rb")]
    assert steps == [2, 4]
    assert list((place / "tensorboard" / "task").iterdir())
    first.close()
