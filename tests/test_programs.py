"""Compiled programs that are kept: found again, never trusted when damaged, out of the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest

SCRIPT = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from jaxbert.programs import keep_programs
keep_programs(Path(sys.argv[1]))
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(64) * 2).sum(), sum(hits) > 0)
"""


def run(folder: Path, **more: str) -> str:
    off = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=commands.environment() | off | more,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_program_is_compiled_once(tmp_path):
    first = run(tmp_path / "programs")
    assert first.endswith(" False")
    assert run(tmp_path / "programs") == first.replace("False", "True")


def test_a_damaged_program_is_compiled_and_written_anew(tmp_path):
    first = run(tmp_path / "programs")
    (kept,) = tmp_path.rglob("jit__lambda-*-cache")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    again = run(tmp_path / "programs")
    assert again.split()[0] == first.split()[0]
    assert kept.stat().st_size > len(whole) // 2


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no such rights")
def test_a_folder_that_others_may_write_to_is_left_alone(tmp_path):
    for mode in (0o777, 0o1777):
        place = tmp_path / str(mode)
        place.mkdir()
        place.chmod(mode)
        run(place / "programs")
        assert not list(place.rglob("*-cache"))
    (tmp_path / "file").touch()
    run(tmp_path / "file" / "programs")  # no folder at all


def test_a_cache_that_the_user_chose_stays(tmp_path):
    run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    run(tmp_path / "ours", JAX_ENABLE_COMPILATION_CACHE="false")
    assert any((tmp_path / "theirs").iterdir()) and not (tmp_path / "ours").exists()


@pytest.mark.slow
def test_runs_side_by_side_share_what_was_compiled(tmp_path):
    hashes = []
    for name in ("one", "other"):
        words = ["--config.phases=finetune", "--config.seed=3"]
        config = f"{commands.TASK}:smoke"
        done = commands.call("train.py", config, tmp_path / name, *words)
        assert (
            "compilation cache" not in done.stderr
        )  # JAX's word for what it could not read or write
        hashes.append(json.loads((tmp_path / name / "summary.json").read_text())["parameter_hash"])
        kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob(".jaxbert/programs/*/*-cache")}
        assert kept
        if name == "one":
            first = kept
    assert kept == first and hashes[0] == hashes[1]
