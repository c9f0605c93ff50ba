"""The benchmark against PyTorch: all sides are given the same work."""

from __future__ import annotations

import json
import subprocess
import sys

import commands
import pytest

pytest.importorskip("torch")


@pytest.mark.slow
def test_all_sides_begin_with_the_same_loss(tmp_path, tmp_path_factory):
    words = ["benchmarks/against_torch.py", "--tiny", "--dtype=float32", f"--out={tmp_path}/all"]
    words += ["--examples=200", "--rounds=1", "--steps=1", "--warmup=1"]
    done = subprocess.run(
        [sys.executable, *words, f"--ledger={tmp_path}/ledger.md"],
        cwd=commands.ROOT,
        env=commands.environment(cache=commands.shared_cache(tmp_path_factory)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
