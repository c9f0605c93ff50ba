"""Trackers, the real ones without a network: a run that goes on is one run there."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import commands
import pytest

from jaxbert.training.tracking import Tracker, check_tracking

WRITES = """
import sys
from pathlib import Path
from jaxbert.training.journal import Journal
from jaxbert.training.tracking import Tracker
kind, workdir, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
journal = Journal(workdir, Tracker(kind, workdir, {"phases": ["general", "task"], "seed": 3}))
for phase in ("general", "task"):
    journal.write(phase, step, {"loss": 1 / step, "dev": None})
journal.close()
"""
# How trackio's own reader sees what was logged.
READS = """
import json
import trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("jaxbert")
print(json.dumps([run.name, SQLiteStorage.get_logs("jaxbert", run.name)]))
"""


def missing(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(kind) is None, reason=f"{kind} is not installed")


def python(code: str, *words: object, **variables: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=commands.environment() | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"} | variables,
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def lines(workdir: Path) -> list[int]:
    return [line["step"] for line in commands.metrics(workdir)]


def test_what_is_not_installed_is_said_before_a_run_begins(monkeypatch):
    assert check_tracking("") == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (error,) = check_tracking("wandb")
    assert error.line.startswith("wandb is not installed, config key tracking; pip install wandb")


def test_a_folder_of_that_name_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert find_spec("wandb") is not None  # a namespace
    (error,) = check_tracking("wandb")
    assert error.what == "wandb is not installed"


@missing("wandb")
@pytest.mark.parametrize(
    "variables", [{}, {"WANDB_INIT_TIMEOUT": "4", "WANDB_FINISH_TIMEOUT": "5"}]
)
def test_wandb_is_waited_for_within_limits(variables, monkeypatch, tmp_path):
    import wandb

    for name in ("WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, seconds in variables.items():
        monkeypatch.setenv(name, seconds)
    begun: list[dict] = []

    def begin(**named: object) -> object:
        begun.append(named)
        raise OSError("nobody answers")

    monkeypatch.setattr(wandb, "init", begin)
    Tracker("wandb", tmp_path, {}).write("task", 1, {"loss": 1.0})
    # As wandb reads them: what is given goes before what the environment says.
    settings = wandb.Settings()
    settings.update_from_env_vars(variables)
    settings.update_from_settings(begun[0]["settings"])
    limits = (4.0, 5.0) if variables else (15.0, 60.0)
    assert (settings.init_timeout, settings.finish_timeout) == limits
    assert settings.finish_timeout_raises


@pytest.mark.slow
@missing("wandb")
def test_a_server_out_of_reach_is_said_once_and_stops_nothing(tmp_path):
    away = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    away |= {"WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "1"}
    done = python(WRITES, "wandb", tmp_path, 1, **away)
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: wandb is told nothing more: CommError: ")
    (log,) = tmp_path.glob("wandb/run-*/logs/debug.log")
    assert "with 1.0 second timeout" in log.read_text()
    assert lines(tmp_path) == [1, 1]


@pytest.mark.slow
@missing("wandb")
def test_wandb_continues_one_run(tmp_path):
    for step in (1, 3):
        python(WRITES, "wandb", tmp_path, step)
    key = commands.read(tmp_path / "tracking.json")["wandb"]
    first, second = sorted(tmp_path.glob("wandb/offline-run-*"))
    for folder, loss in ((first, b"1"), (second, b"0.3333333333333333")):
        assert folder.name.endswith(f"-{key}")
        content = (folder / f"run-{key}.wandb").read_bytes()
        assert all(name in content for name in (b"general/loss", b"task/step", b"seed", loss))
    assert lines(tmp_path) == [1, 1, 3, 3]


@pytest.mark.slow
@missing("trackio")
def test_trackio_continues_one_run(tmp_path):
    there = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    for step in (1, 3):
        python(WRITES, "trackio", tmp_path, step, **there)
    name, logged = json.loads(python(READS, **there).stdout.splitlines()[-1])
    assert name.endswith(commands.read(tmp_path / "tracking.json")["trackio"])
    general = [(e["general/step"], e["general/loss"]) for e in logged if "general/loss" in e]
    assert general == [(1, 1.0), (3, 1 / 3)]
    assert lines(tmp_path) == [1, 1, 3, 3]


@pytest.mark.slow
@missing("wandb")
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tmp_path):
    done = python(WRITES, "wandb", tmp_path, 1, WANDB_MODE="nonsense")
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: wandb is told nothing more: ")
    assert lines(tmp_path) == [1, 1]
