"""`jaxbert verify` and `jaxbert rerun` as commands, and the advice on memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.cli.main import main
from jaxbert.config import PhaseConfig
from jaxbert.errors import UserError, exit_on_user_error
from jaxbert.files import SEAL, seal
from jaxbert.interop.huggingface import read_model
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import step_advice
from jaxbert.training.hashing import parameter_hash
from jaxbert.verify import verify
from jaxbert.workdir import SEALED, write_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache) -> Path:
    root = tmp_path_factory.mktemp("verified")
    teacher = commands.write_small_teacher(root / "given")
    flags = (f"--config.teacher={teacher}", *commands.SMALL)
    commands.train(f"{commands.GENERAL}:smoke", root / "run", *flags, cache=cache)
    return root / "run"


def jaxbert(*words: str | Path, cache: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxbert", *map(str, words)],
        cwd=commands.ROOT,
        env=commands.environment(cache=cache),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("what", ["gone", "empty"])
def test_what_is_no_folder_of_ours_is_said(what, tmp_path, cache):
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    done = jaxbert("verify", folder, cache=cache)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert str(folder) in done.stderr


@pytest.mark.parametrize("changed", [False, True])
def test_a_trained_model_without_its_hashes_is_named(changed, tmp_path):
    folder = commands.write_small_teacher(tmp_path / "model")
    wanted = parameter_hash(read_model(folder).params)
    write_json(folder / "phase.json", {"parameter_hash": wanted})
    seal(folder, [path.name for path in folder.iterdir()])
    verify(folder, str)
    (folder / SEAL).unlink()
    said = f"its hashes are gone, {folder / SEAL}; copy the folder anew"
    if changed:
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-2] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        said = f"its parameters have the hash .*, and were trained to {wanted}, {folder}; "
    with pytest.raises(UserError, match=said):
        verify(folder, str)


@pytest.fixture
def rerun(tmp_path, monkeypatch):
    """Runs a run of two phases again, of which the hashes come out that are given; where it ran."""
    phases = {name: {"parameter_hash": f"of {name}"} for name in ("finetune", "general")}
    before = {"phases": phases, "parameter_hash": "of general", "git_revision": "a"}
    before |= {"versions": {"jax": "1", "numpy": "2"}, "system": {"cores": 2}, "devices": {}}
    config = resolve(load_recipe(f"{commands.GENERAL}:smoke"), {"teacher": "somewhere"}).to_dict()
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "config.json", config)
    write_json(folder / "summary.json", before | {"config": config})
    seal(folder, SEALED)

    def run(*words: str, elsewhere: dict | None = None, **hashes: str) -> Path:
        ran = []
        after = {name: {"parameter_hash": hashes.get(name, f"of {name}")} for name in phases}

        def train(config, workdir, command):
            ran.append(workdir)
            found = {"phases": after, "parameter_hash": after["general"]["parameter_hash"]}
            return before | found | (elsewhere or {})

        monkeypatch.setattr("jaxbert.run.run", train)
        try:
            main(["rerun", *words])
        finally:
            assert len(ran) == 1
        return ran[0]

    return run


def test_other_parameters_of_any_phase_are_another_result(rerun, tmp_path, capsys):
    again = tmp_path / "run-rerun"
    assert rerun(f"{tmp_path}/run") == again
    assert capsys.readouterr().out == f"{again}: the same parameters, of general\n"
    with pytest.raises(SystemExit) as left:
        rerun(f"{tmp_path}/run", finetune="another")
    assert left.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{again}: other parameters than in {tmp_path}/run",
        "  phase finetune: another parameter_hash",
    ]


def test_what_was_other_where_other_parameters_come_out_is_said(rerun, tmp_path, capsys):
    versions = {"jax": "1", "numpy": "3", "grain": "1"}
    elsewhere = {"versions": versions, "system": {"cores": 4}, "git_revision": "b"}
    with pytest.raises(SystemExit):
        rerun(f"{tmp_path}/run", elsewhere=elsewhere, general="another")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  versions numpy: 2 before, 3 now",
        "  system cores: 2 before, 4 now",
        "  git_revision: a before, b now",
        "  phase general: another parameter_hash",
    ]


@pytest.mark.parametrize("word", [".", "checkpoints/.."])
def test_a_run_is_run_again_from_within_its_folder(word, rerun, tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert rerun(word) == tmp_path / "run-rerun"


@pytest.mark.slow
def test_a_run_that_is_run_again_gives_the_same_bits(finished, cache, tmp_path):
    done = jaxbert("rerun", finished, f"--workdir={tmp_path / 'again'}", cache=cache)
    assert done.returncode == 0, done.stderr
    wanted = commands.read(finished / "summary.json")["parameter_hash"]
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'again'}: the same parameters, {wanted}"
    summary = commands.read(tmp_path / "again" / "summary.json")
    assert summary["parameter_hash"] == wanted
    assert summary["command"] == f"jaxbert rerun {finished} --workdir={tmp_path / 'again'}"


def test_a_run_that_did_not_finish_cannot_be_run_again(tmp_path, cache):
    done = jaxbert("rerun", tmp_path, cache=cache)
    assert done.returncode == 2
    assert "summary.json; give the --workdir of a finished run" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_out_of_memory_says_what_would_need_less():
    said = (
        r"^out of memory: .*, phase general, 32 examples in 2 micro-batches; give "
        r"--config.general.accumulation=4, which"
    )
    with (
        pytest.raises(UserError, match=said),
        step_advice("general", PhaseConfig(accumulation=2), rows=2),
    ):
        jax.block_until_ready(jnp.zeros((2**46,), jnp.float32))


def test_out_of_memory_with_one_row_at_a_time_asks_for_shorter_rows():
    said = "in 8 micro-batches; give a smaller max_length, and another --workdir$"
    with (
        pytest.raises(UserError, match=said),
        step_advice("general", PhaseConfig(accumulation=8), rows=1),
    ):
        jax.block_until_ready(jnp.zeros((2**46,), jnp.float32))


@pytest.mark.parametrize("where", ["device", "library", "host"])
def test_out_of_memory_anywhere_is_one_line_of_ours(where, capsys):
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        if where == "device":
            jax.block_until_ready(jnp.zeros((2**46,), jnp.float32))
        if (
            where == "library"
        ):  # as XLA says it of a process that may have 3 GB, and needs a little more
            raise jax.errors.JaxRuntimeError("INTERNAL: YNNPACK operation failed: error")
        np.zeros(2**60, np.uint8)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxbert: error: out of memory: ") and "give smaller batches" in line
