"""The comparison with other ways of doing the same jobs: what it counts, and that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import commands
import printed
import pytest

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
import comparison


def test_lines_without_comments_blanks_and_docstrings_are_counted(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        '"""What it does,\n\nin lines."""\n\n# a comment\nimport os  # one\n\n\n'
        'def name():\n    """Its own."""\n    text = """not\n\n    a docstring"""\n'
        "    return os.path.join(\n        text,\n        # nothing\n    )\n",
        encoding="utf-8",
    )
    assert comparison.count(script) == (1, 8)


def test_a_command_of_the_shell_goes_on_behind_a_backslash(tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("# a comment\nfirst --a \\\n    --b\n\nsecond\n", encoding="utf-8")
    assert comparison.count(script) == (2, 3)


def test_the_page_shows_what_is_counted():
    page = (commands.ROOT / "docs/comparison.md").read_text(encoding="utf-8")
    for job in comparison.JOBS:
        for side in comparison.SIDES:
            if (script := comparison.script_of(side, job)) is not None:
                commands_, lines = comparison.count(script)
                assert f"| {job} | {side} | {commands_} | {lines} |" in page


@pytest.mark.parametrize("job", comparison.JOBS)
def test_the_commands_of_jaxbert_are_ones(job):
    text = Path(comparison.script_of("jaxbert", job)).read_text(encoding="utf-8")
    text = text.replace('"$1"', "7").replace('"$2"', "0")
    for words in commands.commands_of(commands.Block("", 1, "bash", text)):
        assert words[0] == "jaxbert"
        printed.parse(words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "side"), [("general", "jaxbert"), ("general", "hand"), ("classifier", "hand")]
)
def test_a_job_runs(job, side, tmp_path):
    for name in ("torch", "transformers"):
        pytest.importorskip(name)
    words = ["benchmarks/comparison.py", f"--out={tmp_path}/out", "--rounds=1", "--updates=2"]
    words += ["--general_updates=2", "--jobs", job, "--sides", side]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out/comparison.json").read_text(encoding="utf-8"))
    assert results["seconds"][job][side][0] > 0
    (found,) = results["found"][job][side]
    assert found == {"loads": True} if job == "general" else found["student"] > 0.4
    assert f"| {job} | {side} |" in done.stdout
