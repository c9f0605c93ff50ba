"""Whole runs in an object store, on a store of this machine (``object_store``)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import commands
import pytest
import stages
from object_store import BUCKET, Store
from test_several import assert_same_losses, run_in_two

from jaxbert.files import as_path

# Not imported yet: it reads its variables once.
pytestmark = pytest.mark.skipif(find_spec("gcsfs") is None, reason="gcsfs is not installed")


def put_all(store: Store, folder: Path, name: str) -> str:
    """Copies a local folder there; where it is then."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"gs://{BUCKET}/{name}"


def verify(folder: object, cache: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxbert", "verify", str(folder)],
        env=commands.environment(cache=cache),
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_there_and_is_evaluated(store, tmp_path, cache):
    """With teacher and rows there, too: the same bits and lines as of a local run."""
    given = stages.Given.make(tmp_path / "given", cache)
    local = given.finetuning(tmp_path / "local")
    local.run()
    there = put_all(store, given.folder, "given")
    run = given.finetuning(as_path(f"gs://{BUCKET}/runs/task"), there)
    with run.start() as struck:
        saved = "runs/task/checkpoints/finetune/4/commit_success.txt"
        assert struck.wait_for(lambda: saved in store.objects), struck.end()
        assert struck.kill()
    run.run()
    stages.assert_same_run(run.workdir, local.workdir)
    assert "runs/task/.lock" not in store.objects
    assert (
        f"{run.workdir}/report.html"
        in commands.call("eval.py", "", run.workdir, cache=cache).stdout
    )
    assert commands.read(run.workdir / "eval.json")["models"].keys() == {"teacher", "tfidf"}
    done = verify(run.workdir, cache)
    assert done.returncode == 0, done.stderr
    assert "models/teacher: as it was written" in done.stdout


@pytest.mark.chaos
def test_both_stages_killed_on_machine_after_machine(store, tmp_path, cache):
    """Each start has a cache of its own, as another machine has: nothing local is needed."""
    given = stages.Given.make(tmp_path / "given", cache)
    general = given.general(tmp_path / "general")
    general.run()
    local = given.task(tmp_path / "local", general.workdir)
    local.run()
    first = put_all(store, general.workdir, "runs/general")
    run = given.task(as_path(f"gs://{BUCKET}/runs/killed"), as_path(first))
    struck_at = ("intermediate/4", "prediction/2")
    for number, step in enumerate(struck_at):
        other = run.on(tmp_path / f"machine{number}")
        with other.start() as struck:
            saved = f"runs/killed/checkpoints/{step}/commit_success.txt"
            assert struck.wait_for(lambda saved=saved: saved in store.objects), struck.end()
            assert struck.kill()
    run.on(tmp_path / "last").run()
    stages.assert_same_run(run.workdir, local.workdir)
    assert verify(run.workdir, cache).returncode == 0


@pytest.mark.chaos
def test_a_store_that_is_gone_for_seconds_and_a_run_that_is_told_to_stop(store, tmp_path, cache):
    given = stages.Given.make(tmp_path / "given", cache)
    local = given.general(tmp_path / "local")
    local.run()
    run = given.general(as_path(f"gs://{BUCKET}/runs/stopped"))
    names = [f"runs/stopped/checkpoints/general/{step}/commit_success.txt" for step in (2, 6)]
    with run.start() as struck:
        assert struck.wait_for(lambda: names[0] in store.objects), struck.end()
        store.refusing = True
        time.sleep(5)
        store.refusing = False
        assert struck.wait_for(lambda: names[1] in store.objects), struck.end()
        struck.signal(signal.SIGTERM)
        code, said = struck.end()
    assert code == 75, said
    assert "runs/stopped/.lock" not in store.objects
    run.run()
    stages.assert_same_run(run.workdir, local.workdir)


@pytest.mark.chaos
def test_two_processes_write_their_parts_there(store, tmp_path, cache, within):
    given = stages.Given.make(tmp_path / "given", cache)
    alone = given.general(tmp_path / "alone", devices=2)
    alone.run()
    together = given.general(as_path(f"gs://{BUCKET}/runs/two"))
    run_in_two(together)
    parts = {name for name in store.names("runs/two/checkpoints") if "ocdbt.process_1" in name}
    assert parts
    assert_same_losses(together.workdir, alone.workdir, within)
    assert verify(together.workdir, cache).returncode == 0
