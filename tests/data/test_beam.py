"""The preparation on Apache Beam: the bytes of the local one, from several workers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import commands
import pytest
from test_prepare import contents, story, write_lines

from jaxbert.data.manifest import make_plan
from jaxbert.data.prepare import prepare

pytestmark = pytest.mark.slow


@pytest.fixture
def python() -> str:
    """An interpreter that has Beam: that of `make test-beam`, or this one."""
    given = os.environ.get("BEAM_PYTHON")
    if not given and importlib.util.find_spec("apache_beam") is None:
        pytest.skip("apache-beam is not installed")
    return given or sys.executable


def test_workers_of_beam_make_the_bytes_of_the_local_preparation(
    python, tokenizer, tokenizer_folder, tmp_path
):
    texts = [story(i % 200) * 30 for i in range(300)] + ["", "\u200b", " "]
    one = write_lines(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.txt").write_text("\n\n".join([story(3) * 30, "the end"]))
    reference = f"0.5 {one} + 0.5 text:{tmp_path}/b.txt"
    plan = make_plan(reference, tokenizer, shard_size=1 << 20)
    local = prepare(plan, tokenizer_folder, tmp_path / "local")
    assert len(plan.units) > 3 and local.manifest["duplicates"] == 101

    def on_beam(out: str, *flags: str) -> subprocess.CompletedProcess:
        words = [python, "-m", "jaxbert.data.beam", f"--corpus={reference}", "--shard-size=1"]
        words += [f"--tokenizer={tokenizer_folder}", f"--out={tmp_path / out}", *flags]
        return subprocess.run(
            words,
            cwd=commands.ROOT,
            env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = on_beam("beam", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
    assert done.returncode == 0, done.stderr
    assert f"{local.num_documents:,} documents" in done.stdout
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    (tmp_path / "b.txt").write_text("another end")
    done = on_beam("beam")
    assert done.returncode == 2 and "it holds a corpus of other text" in done.stderr


def test_what_beam_workers_import_has_neither_jax_nor_tfds(python):
    code = "import sys, json, jaxbert.data.beam; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [python, "-c", code],
        cwd=commands.ROOT,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    packages = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not packages & {"jax", "flax", "tensorflow_datasets", "tensorflow", "grain"}
