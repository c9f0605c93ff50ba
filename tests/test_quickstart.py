"""The README's promise: two commands on a fresh machine."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_make_quickstart_runs_what_the_readme_shows():
    shown = re.findall(r"^    (python .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)[:3]
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(shown) == 3
    assert [line for line in planned if line.startswith("python ")] == shown


@pytest.mark.slow
def test_the_quickstart_distils_a_student_that_beats_labels_alone():
    # Continues what runs/ holds: nothing is trained again where the quickstart has run before.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    subprocess.run(["make", "quickstart"], cwd=ROOT, check=True, env=environment)
    found = json.loads((ROOT / "runs/task/eval.json").read_text())["models"]
    accuracy = {name: values["accuracy"] for name, values in found.items()}
    assert accuracy["teacher"] >= 0.79
    assert accuracy["teacher"] > accuracy["tfidf"]
    assert accuracy["student"] > accuracy["without_distillation"]
    summary = json.loads((ROOT / "runs/general/summary.json").read_text())
    assert summary["phases"]["general"]["real_tokens"] >= 1_000_000
    task = json.loads((ROOT / "runs/task/summary.json").read_text())["phases"]
    assert all(phase["fill"] >= 0.97 and phase["compilations"] == 1 for phase in task.values())
