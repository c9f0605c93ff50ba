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
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)],
        env=os.environ | off | more,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_program_is_compiled_once(tmp_path):
    first = run(tmp_path / "programs")
    assert first.endswith(" False")
    assert run(tmp_path / "programs") == first.replace("False", "True")


def test_a_damaged_program_is_compiled_anew(tmp_path):
    first = run(tmp_path)
    kept = list(tmp_path.rglob("*-cache"))
    assert kept
    for path in kept:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    assert run(tmp_path) == first


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
