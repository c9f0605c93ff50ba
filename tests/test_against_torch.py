"""The benchmark against PyTorch: all sides are given the same work."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import commands
import pytest

# The ratios that the check lets pass: nine tenths of what each has to reach.
LEAST = {
    ("stage1", "authors"): 2.25,
    ("stage1", "expert"): 0.63,
    ("layers", "authors"): 5.4,
    ("layers", "expert"): 0.72,
    ("predictions", "authors"): 9.0,
    ("predictions", "expert"): 0.0,
}


@pytest.mark.parametrize("low", [None, *list(LEAST)[:-1]], ids=str)
def test_the_check_fails_where_a_ratio_is_a_tenth_below_its_floor(low, monkeypatch):
    monkeypatch.syspath_prepend(commands.ROOT / "benchmarks")
    against_torch = importlib.import_module("against_torch")

    def compare(name: str, args: object) -> dict[str, object]:
        ratios = {
            side: least + (-0.01 if (work, side) == low else 0.01)
            for (work, side), least in LEAST.items()
            if work == name
        }
        sides = ("jaxbert", *ratios)
        measured = {"rates": {side: [1.0] for side in sides}, "memory": dict.fromkeys(sides, 1)}
        said = {"work": name, "unit": "examples", "first": {}, "tflops": 1.0}
        return said | measured | {"ratios": ratios}

    monkeypatch.setattr(against_torch, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["against_torch.py"])
    against_torch.main()  # whatever the ratios, it was not asked to check
    monkeypatch.setattr(sys, "argv", ["against_torch.py", "--check"])
    if low is None:
        against_torch.main()
        return
    with pytest.raises(SystemExit) as caught:
        against_torch.main()
    work, side = low
    said = f"{work} against {side}: {LEAST[low] - 0.01:.2f}, floor {LEAST[low] / 0.9:.1f}"
    assert caught.value.code == said


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
    words = ["benchmarks/against_torch.py", "--tiny", "--dtype=float32", f"--out={tmp_path}/all"]
    words += ["--examples=200", "--rounds=1", "--steps=1", "--warmup=1"]
    tell([*words, f"--ledger={tmp_path}/ledger.md"], tmp_path_factory)
    found = {one["work"]: one for one in json.loads((tmp_path / "all").read_text())}
    assert list(found) == ["stage1", "layers", "predictions"]
    for name, one in found.items():
        first = one["first"]
        # Its losses are masked as ours, its operands bfloat16.
        assert first["expert"] == pytest.approx(first["jaxbert"], rel=1e-2), name
        assert set(one["ratios"]) == {"authors", "expert"} and one["tflops"] > 0
    # Predictions have no padding to differ in.
    first = found["predictions"]["first"]
    assert first["authors"] == pytest.approx(first["jaxbert"], rel=1e-5)
    rows = (tmp_path / "ledger.md").read_text().splitlines()
    assert len(rows) == 6 and all(row.count("|") == 10 for row in rows)


@pytest.mark.slow
def test_the_bounds_of_each_work_are_said(tmp_path_factory):
    words = ["benchmarks/roofline.py", "--tiny", "--examples=200", "--rounds=1", "--size=256"]
    lines = tell([*words, "--megabytes=16"], tmp_path_factory).splitlines()
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert [row[1] for row in rows] == ["stage1", "layers", "predictions"]
    assert {len(row) for row in rows} == {len(head)}
    rates = head.index("bfloat16, GFLOP/s"), head.index("float32"), head.index("memory, GB/s")
    assert all(float(row[at].replace(",", "")) > 0 for row in rows for at in rates)
