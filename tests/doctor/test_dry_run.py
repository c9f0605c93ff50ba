"""train.py --dry-run: the phases as they will be, with nothing compiled and nothing written."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import commands
import pytest
from jax.tree_util import tree_leaves_with_path

from jaxbert.doctor.dry_run import dry_run
from jaxbert.doctor.forecast import Forecast
from jaxbert.errors import UserErrors
from jaxbert.interop.huggingface import read_model
from jaxbert.models.bert import count_parameters
from jaxbert.recipe import load_recipe, resolve
from jaxbert.run import Run

PHASE = re.compile(r"phase (\w+): trains (\w+), parameters ([\d,]+), frozen ([\d,]+), .*")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("dry")
    commands.write_small_teacher(root / "teacher")
    rows = [f"a {('dull', 'moving')[i % 2]} film, number {i}\t{i % 2}" for i in range(100)]
    (root / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return root


def flags(place) -> list[str]:
    given = [f"--config.teacher={place / 'teacher'}", *commands.SMALL, "--config.task.name=own"]
    given += [f"--config.task.source=tsv:{place / 'rows.tsv'}", "--config.task.columns=text"]
    return [*given, "--config.task.labels=no,yes"]


# What train.py calls, in a process that says how much XLA compiles, and what is slow to import.
RUN = """
import sys
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
)
from jaxbert.cli.main import run_script
try:
    run_script("train", sys.argv[1:])
finally:
    print(f"compiled {len(compiled)}")
    print("imported", *sorted({"pandas", "scipy.stats", "sklearn"} & set(sys.modules)))
    before = len(compiled)
    jax.jit(lambda x: x + 1)(1)
    assert len(compiled) > before
"""


def test_a_dry_run_says_what_the_run_will_be(place):
    before = sorted(place.rglob("*"))
    words = commands.command("train.py", f"{commands.TASK}:smoke", place / "run", *flags(place))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words[2:], "--dry-run"],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(place.rglob("*")) == before
    *said, compiled, imported = done.stdout.splitlines()
    assert (compiled, imported) == ("compiled 0", "imported")
    start, end = said.index("{"), said.index("}")
    config = json.loads("\n".join(said[start : end + 1]))
    phases = [PHASE.fullmatch(line) for line in said if line.startswith("phase ")]
    assert [match[1] for match in phases] == config["phases"]
    assert re.fullmatch(r"the run: at least [\d.]+ minutes, .* of memory a device, .*", said[-1])
    trained = {match[1]: int(match[3].replace(",", "")) for match in phases}
    frozen = {match[1]: int(match[4].replace(",", "")) for match in phases}
    teacher = read_model(place / "teacher").params
    # An encoder and embeddings as they are, a pooler and a classifier of two classes.
    assert trained["finetune"] == count_parameters(teacher) + 2 * 48 + 2
    assert frozen["finetune"] == frozen["baseline"] == 0
    read = count_parameters({g: teacher[g] for g in ("embeddings", "encoder")})
    assert read * 0.7 < frozen["intermediate"] <= read < frozen["prediction"]


@pytest.mark.parametrize("axis", ["fsdp", "model"])
def test_along_an_axis_a_device_holds_less_and_the_work_is_the_same(place, tmp_path, axis):
    given = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags(place))

    def phases(along: str):
        overrides = given | {"mesh.data": "1", f"mesh.{axis}": along}
        job = Run(resolve(load_recipe(f"{commands.TASK}:smoke"), overrides), tmp_path / "run")
        return list(Forecast(job, compiles=False).phases())

    def models(phase) -> int:
        return phase.memory - phase.cost.activations - phase.cost.batch

    for one, many in zip(phases("1"), phases("2"), strict=True):
        assert models(many) < 0.75 * models(one)  # nearly all of it is tables and matrices
        assert one.flops * many.rows == many.flops * one.rows
        assert one.disk == many.disk


def forecast(place, tmp_path, **overrides: str):
    given = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags(place))
    given |= {key.replace("__", "."): value for key, value in overrides.items()}
    job = Run(resolve(load_recipe(f"{commands.TASK}:smoke"), given), tmp_path / "run")
    return {phase.name: phase for phase in Forecast(job, compiles=False).phases()}


def test_labels_after_the_layers_need_no_teacher(place, tmp_path):
    terms = {"prediction__teacher": "", "prediction__terms__prediction__loss": "labels"}
    phases = forecast(place, tmp_path, **terms)
    assert phases["prediction"].cost.frozen == 0 < phases["intermediate"].cost.frozen


def test_a_teacher_in_int8_takes_less(place, tmp_path):
    """A byte of each matrix instead of two, and a scale of each of its outputs."""
    held = [
        forecast(place, tmp_path, teacher_dtype=dtype)["prediction"].cost.held_frozen
        for dtype in ("bfloat16", "int8")
    ]
    layers = read_model(place / "teacher").params["encoder"]["layers"]
    kernels = [x for path, x in tree_leaves_with_path(layers) if path[-1].key == "kernel"]
    saved = sum(x.size - 4 * x.size // x.shape[-2] for x in kernels)
    head = 2 * (48 * 48 - 4 * 48)  # about: the pooler's and the classifier's, small beside it
    assert held[0] - held[1] == pytest.approx(saved, abs=head)


def test_what_a_run_would_be_refused_for_is_said(place, tmp_path):
    given = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags(place))
    given |= {"max_length": "65", "student.num_heads": "6"}
    config = resolve(load_recipe(f"{commands.TASK}:smoke"), given)
    with pytest.raises(UserErrors) as raised:
        dry_run(config, tmp_path / "run")
    said = "\n".join(raised.value.lines)
    assert "max_length = 65 is beyond the 64 positions" in said
    assert "6 attention heads" in said
    assert not (tmp_path / "run").exists()
