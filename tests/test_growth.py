"""The benchmark of how cost grows: its points, one of them measured, its figure."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree

import commands
import pytest

PROGRAM = commands.ROOT / "benchmarks" / "growth.py"


@pytest.fixture(scope="module")
def growth():
    spec = importlib.util.spec_from_file_location("growth", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["growth"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["growth"]


def made_up(point) -> dict:
    cost = point.length * point.batch * point.depth * point.width
    return dataclasses.asdict(point) | {
        "seconds": cost / 1e6,
        "cpu_seconds": cost / 1e6,
        "tokens_per_second": 1e6 / point.depth / point.width,
        "flops": cost,
        "memory": cost,
        "device": "a device",
        "platform": "cpu",
        "date": "2026-11-27",
    }


def test_one_thing_changes_at_a_time_and_quick_points_are_some_of_all(growth):
    whole, quick = growth.points(False), growth.points(True)
    assert set(quick) < set(whole) and len(set(whole)) == len(whole)
    middle = dataclasses.asdict(growth.Point())
    for point in whole[1:]:
        assert sum(v != middle[k] for k, v in dataclasses.asdict(point).items()) == 1


def test_the_figure_has_every_point_and_is_the_same_file_again(growth, tmp_path):
    path = tmp_path / "cpu.jsonl"
    rows = [made_up(point) for point in growth.points(False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    growth.plot(path)
    figure = (tmp_path / "cpu.svg").read_bytes()
    tree = xml.etree.ElementTree.fromstring(figure)
    markers = [e for e in tree.iter() if e.tag.endswith("use") and "#0072b2" in str(e.attrib)]
    assert len(markers) == sum(map(len, growth.LINES.values()))
    growth.plot(path)
    assert (tmp_path / "cpu.svg").read_bytes() == figure
    assert len(growth.table(rows)) == 2 + len(rows)


@pytest.mark.slow
def test_a_point_is_measured_in_a_process_of_its_own(growth):
    point = {"length": 16, "batch": 2, "depth": 2, "width": 24}
    done = subprocess.run(
        [sys.executable, PROGRAM, "--point", json.dumps(point)],
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert {key: row[key] for key in point} == point and row["platform"] == "cpu"
    assert row["tokens_per_second"] == pytest.approx(32 / row["seconds"])
    assert row["flops"] > 0 and row["mfu"] is None and row["memory"] > 1e8
    assert 0 < row["seconds"] <= row["slowest"]
