"""The benchmark against PyTorch: all sides are given the same work."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import commands
import numpy as np
import pytest

# The ratios that the check lets pass: what each has to reach, less what may be noise.
LEAST = {
    ("cpu", "bfloat16"): {
        ("stage1", "authors"): 2.5 * 0.9,
        ("stage1", "expert"): 0.7 * 0.9,
        ("layers", "authors"): 6.0 * 0.9,
        ("layers", "expert"): 0.8 * 0.9,
        ("predictions", "authors"): 10.0 * 0.9,
    },
    ("cpu", "float32"): {
        ("stage1", "authors"): 1.2 * 0.9,
        ("stage1", "expert"): 1.0 * 0.9,
        ("layers", "authors"): 4.0 * 0.9,
        ("layers", "expert"): 1.1 * 0.9,
        ("predictions", "authors"): 6.2 * 0.9,
    },
    ("gpu", "bfloat16"): {("stage1", "expert"): 1.1 * 0.9},
}
WORKS, SIDES = ("stage1", "layers", "predictions"), ("authors", "expert")
Change = tuple[str, str, float] | tuple[()]  # of a work against a side


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module; it imports its neighbours by their names."""
    monkeypatch.syspath_prepend(commands.ROOT / "benchmarks")
    return importlib.import_module("against_torch")


@pytest.fixture
def check(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command, with what it would measure given: a bit above each floor, but for a change."""

    def run(
        *words: str,
        device: str = "cpu",
        dtype: str = "bfloat16",
        ratio: Change = (),
        memory: Change = (),
    ) -> None:
        def compare(name: str, args: object) -> dict[str, object]:
            floors = LEAST.get((device, dtype), {})
            ratios = {side: floors.get((name, side), 0.0) + 0.01 for side in SIDES}
            shares = dict.fromkeys(SIDES, 0.99)
            for found, change in ((ratios, ratio), (shares, memory)):
                if change[:1] == (name,):
                    found[change[1]] = change[2]
            return {
                "work": name,
                "unit": "examples",
                "first": {},
                "tflops": 1.0,
                "product": 806.4e12 if device == "gpu" else None,
                "rates": {side: [1.0] for side in ("jaxbert", *SIDES)},
                "memory": {"jaxbert": 1.0} | {side: 1 / share for side, share in shares.items()},
                "ratios": ratios,
            }

        monkeypatch.setattr(benchmark, "compare", compare)
        monkeypatch.setattr(benchmark, "machine", lambda args: "a machine")
        given = [f"--device={device}", *[f"--dtype={dtype}"] * bool(dtype), *words]
        monkeypatch.setattr(sys, "argv", ["against_torch.py", *given])
        benchmark.main()

    return run


@pytest.mark.parametrize(
    ("on", "work", "side"),
    [(on, *which) for on, floors in LEAST.items() for which in floors],
)
def test_the_check_fails_where_a_ratio_is_below_its_floor_by_more_than_noise(
    on, work, side, benchmark, check
):
    where = dict(zip(("device", "dtype"), on, strict=True))
    low = where | {"ratio": (work, side, LEAST[on][work, side] - 0.01)}
    check(**low)  # it was not asked to check
    check("--check", **where)
    with pytest.raises(SystemExit) as caught:
        check("--check", **low)
    floor = benchmark.FLOORS[on][work, side]
    assert caught.value.code == f"{work} against {side}: {low['ratio'][2]:.2f}, floor {floor}"


@pytest.mark.parametrize("work", WORKS)
def test_the_check_fails_where_more_memory_is_taken_than_the_experts_on_a_cpu(work, check):
    with pytest.raises(SystemExit) as caught:
        check("--check", memory=(work, "expert", 1.01))
    assert caught.value.code == f"{work} against expert: 1.01 of its memory, at most 1.0"
    check("--check", memory=(work, "authors", 1.01))
    check("--check", memory=(work, "expert", 1.24), device="gpu")


def test_rows_say_which_text_was_read_and_a_gpus_rate_stands_above_them(check, capsys):
    check()
    cells = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row[0] == "|"]
    assert {row[3].partition(", length")[0] for row in cells} == {
        "stage1, IMDB",
        "layers, Rotten Tomatoes",
        "predictions, Rotten Tomatoes",
    }
    check("--glue=data/glue", "--works=layers", device="gpu")
    said = capsys.readouterr().out
    assert "| layers, SST-2, length 64, 32 an update, bfloat16 |" in said
    assert "layers: a bfloat16 product of 8192 x 8192 reaches 806 TFLOP/s\n" in said


@pytest.mark.parametrize(("sets", "dtype"), [({"avx2"}, "float32"), ({"amx_bf16"}, "bfloat16")])
def test_all_sides_have_the_operands_that_the_processor_multiplies_faster(
    sets, dtype, check, capsys, monkeypatch
):
    monkeypatch.setattr("jaxbert.workdir.instruction_sets", lambda: sets)
    check("--works=layers", dtype="")
    assert f", 32 an update, {dtype} |" in capsys.readouterr().out


def test_the_check_is_refused_where_there_are_no_floors(check, capsys):
    check(device="gpu", dtype="float32")
    with pytest.raises(SystemExit):
        check("--check", device="gpu", dtype="float32")
    assert "there are no floors for a gpu in float32" in capsys.readouterr().err


def test_a_revision_is_dirty_where_code_was_changed(benchmark, monkeypatch, tmp_path):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(benchmark, "HERE", tmp_path / "benchmarks")
    for name in ("jaxbert", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").touch()
    assert benchmark.revision() == "-"
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "-a", "v1", "-m", "v1")
    clean = git("rev-parse", "--short", "HEAD")
    (tmp_path / "benchmarks" / "RESULTS.md").write_text("a row")
    assert benchmark.revision() == clean
    for name in ("jaxbert", "benchmarks"):
        (tmp_path / name / "a.py").write_text("pass")
        assert benchmark.revision() == f"{clean}-dirty"
        git("checkout", ".")
    assert benchmark.revision() == clean


def test_a_wait_for_batches_is_not_charged_to_the_teacher(benchmark, tmp_path):
    """What is asked of a teacher is shared by epochs; a wait is each epoch's own."""
    works, ours = (importlib.import_module(name) for name in ("works", "ours"))
    shape = {"vocab_size": 64, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    shape["intermediate_size"] = 16
    rng = np.random.default_rng(0)
    examples = [rng.integers(5, 64, 6, dtype=np.int32) for _ in range(16)]
    works.write(tmp_path, works.Work("predictions", shape, shape, 8, 8, 4), examples)
    side = ours.Side(tmp_path, "float32", cached=True)
    stream, pause = side.stream, 0.05
    side.steps(1)  # compiles

    def slow() -> Iterator[Any]:
        for each in stream:
            time.sleep(pause)
            yield each

    side.stream = slow()
    found = side.steps(3)
    assert 0 < found["asked"] <= found["seconds"] - 3 * pause
    assert benchmark.rate(found, "examples", epochs=3) < 12 / (3 * pause)
    assert side.product(64)["flops_per_second"] > 0


def tell(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a benchmark says that runs to its end."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=commands.ROOT,
        env=commands.environment(cache=commands.shared_cache(tmp_path_factory)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_all_sides_begin_with_the_same_loss(tmp_path, tmp_path_factory):
    pytest.importorskip("torch")
    words = ["benchmarks/against_torch.py", "--tiny", f"--out={tmp_path}/all"]
    words += ["--examples=200", "--rounds=1", "--steps=1", "--warmup=1"]
    tell([*words, "--dtype=float32", f"--ledger={tmp_path}/ledger.md"], tmp_path_factory)
    found = {one["work"]: one for one in json.loads((tmp_path / "all").read_text())}
    assert list(found) == ["stage1", "layers", "predictions"]
    for name, one in found.items():
        first = one["first"]  # its losses are masked as ours
        assert first["expert"] == pytest.approx(first["jaxbert"], rel=1e-5), name
        assert set(one["ratios"]) == {"authors", "expert"} and one["tflops"] > 0
    # Predictions have no padding to differ in.
    first = found["predictions"]["first"]
    assert first["authors"] == pytest.approx(first["jaxbert"], rel=1e-5)
    rows = (tmp_path / "ledger.md").read_text().splitlines()
    assert len(rows) == 6 and all(row.count("|") == 10 for row in rows)
    tell([*words, "--dtype=bfloat16", "--works=layers", "--ways=expert"], tmp_path_factory)
    (one,) = json.loads((tmp_path / "all").read_text())
    first = {"float32": found["layers"]["first"], "bfloat16": one["first"]}
    assert first["bfloat16"]["expert"] == pytest.approx(first["float32"]["expert"], rel=1e-2)
    assert first["bfloat16"]["expert"] != first["float32"]["expert"]


@pytest.mark.slow
def test_the_bounds_of_each_work_are_said(tmp_path_factory):
    words = ["benchmarks/roofline.py", "--tiny", "--examples=200", "--rounds=1", "--size=256"]
    lines = tell([*words, "--megabytes=16"], tmp_path_factory).splitlines()
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert [row[1] for row in rows] == ["stage1", "layers", "predictions"]
    assert {len(row) for row in rows} == {len(head)}
    rates = head.index("bfloat16, GFLOP/s"), head.index("float32"), head.index("memory, GB/s")
    assert all(float(row[at].replace(",", "")) > 0 for row in rows for at in rates)
