"""jaxbert.distill: the job of the commands, from Python, and the notebook of the docs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest

from jaxbert.errors import UserError
from jaxbert.notebook import distill

STEPS, STRUCK = 150, 20
CODE = f"""
import jaxbert
job = jaxbert.distill(
    teacher="teacher",
    data="rotten_tomatoes",
    student={{"num_layers": 2, "hidden_size": 48}},
    workdir="mine",
    corpus="text:texts.txt",
    argument="smoke",
    overrides={{
        "dtype": "float32",
        "max_length": 48,
        "num_documents": 40,
        "general.steps": {STEPS},
        "general.checkpoint_every": 0,
    }},
)
print(job.workdir, job.student.predict(["an utter delight"])[0]["label"])
"""


def metrics_of(workdir: Path, step: int) -> bool:
    """Whether the first stage has logged a step."""
    path, start = workdir / "metrics.jsonl", f'{{"phase": "general", "step": {step},'
    return path.exists() and start in path.read_text(encoding="utf-8")


def interrupt_in_a_kernel(folder: Path, cache: Path) -> None:
    """Runs the code in a cell, interrupts it while it trains, and runs the cell again."""
    manager = pytest.importorskip("jupyter_client").KernelManager(kernel_name="python3")
    given = commands.environment(cache=cache) | {"PYTHONPATH": str(commands.ROOT)}
    manager.start_kernel(env=given, cwd=str(folder))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        # The next cell, sent as soon as this one has failed, is not to be dropped with it.
        cell = client.execute(CODE, stop_on_error=False)
        until = time.monotonic() + 300
        while not metrics_of(folder / "mine" / "general", STRUCK):
            assert time.monotonic() < until and manager.is_alive()
            time.sleep(0.001)
        manager.interrupt_kernel()
        said = client.get_shell_msg(timeout=30)
        assert said["parent_header"]["msg_id"] == cell
        assert said["content"]["status"] == "error", said["content"]
        assert said["content"]["ename"] == "KeyboardInterrupt", said["content"]
        (saved,) = (folder / "mine/general/checkpoints/general").glob("[0-9]*")
        assert STRUCK <= int(saved.name) < STEPS
        client.execute(CODE)
        said = client.get_shell_msg(timeout=300)
        assert said["content"]["status"] == "ok", said["content"]
        assert said["content"]["execution_count"] == 2  # the same kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the kernel's client says of itself
def test_a_notebook_makes_the_student_of_the_commands_even_if_it_is_interrupted(tmp_path, cache):
    pytest.importorskip("ipykernel")
    commands.write_small_teacher(tmp_path / "teacher")
    text = "\n\n".join(f"Film {i} is " + "rather long and " * 9 for i in range(40))
    (tmp_path / "texts.txt").write_text(text, encoding="utf-8")

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=commands.environment(cache=cache),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    interrupt_in_a_kernel(tmp_path, cache)
    where, label = run("-c", CODE).splitlines()[-1].split()  # with nothing to do
    assert where == "mine/task" and label in ("negative", "positive")
    shape = ["--config.student.num_layers=2", "--config.student.hidden_size=48"]
    train = ["-m", "jaxbert", "train", "--config.teacher=teacher", *commands.SMALL, *shape]
    corpus = ["--config.corpus=text:texts.txt", f"--config.general.steps={STEPS}"]
    corpus += ["--config.general.checkpoint_every=0"]
    run(*train, "--config=tinybert_general:smoke", "--workdir=general", *corpus)
    start = "--config.init_from=general"
    run(*train, "--config=tinybert_task:smoke", "--workdir=task", start)
    run("-m", "jaxbert", "eval", "--workdir=task", "--no-latency", "--no-report")
    for stage in ("general", "task"):
        summaries = [commands.read(tmp_path / f / "summary.json") for f in (f"mine/{stage}", stage)]
        assert summaries[0]["parameter_hash"] == summaries[1]["parameter_hash"]
    models = [commands.read(tmp_path / f / "task" / "eval.json")["models"] for f in ("mine", ".")]
    assert models[0]["student"]["accuracy"] == models[1]["student"]["accuracy"]


def test_mistakes_are_those_of_the_commands_and_nothing_is_written(tmp_path):
    for given, said in (
        ({"student": "tinybert5"}, "config key student.preset"),
        ({"data": "no_task"}, "unknown task 'no_task'"),
        ({"data": {"name": "x", "source": "tsv:x", "columns": ("text",)}}, "0 labels"),
        ({"overrides": {"prediction.stesp": 3}}, "did you mean steps?"),
        ({"overrides": {"predicton.steps": 3}}, "config key predicton"),
        ({"argument": "tiny"}, "does not know the argument 'tiny'"),
        # Of each recipe what it has: copies are the task's, an assistant the general one's.
        (
            {
                "data": "no_task",
                "overrides": {"augmentation.model": "m", "intermediate.data": "augmentation"},
            },
            "unknown task 'no_task'",
        ),
        ({"overrides": {"assistant.num_layers": 3}}, "not read, as it has no shape"),
    ):
        with pytest.raises(UserError, match=said.replace("?", r"\?")):
            distill(workdir=tmp_path / "run", **given)
    assert not list(tmp_path.iterdir())


NOTEBOOK = commands.ROOT / "docs" / "notebooks" / "distil.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the kernel's client says of itself
def test_the_notebook_runs_from_top_to_bottom(tmp_path, cache):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    given = commands.environment(cache=cache) | {"PYTHONPATH": str(commands.ROOT)}
    runner = client.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    runner.execute(env=given)  # raises what a cell raises
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in said if output.get("name") == "stderr"]
    drawn = [output for output in said if "<svg" in output.get("data", {}).get("text/html", "")]
    assert len(drawn) == 2
    run = tmp_path / "runs" / "notebook" / "task"
    models = commands.read(run / "eval.json")["models"]
    for name in ("teacher", "student"):
        assert models[name]["accuracy"] > 0.6  # the larger class has half of the rows
    assert (run / "report.html").is_file()


def test_the_notebook_as_it_is_kept_has_been_run():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}
    assert "find_spec" in "".join(cells[0]["source"])
