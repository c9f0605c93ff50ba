"""jaxbert rerun: what would not be run again is not said to have come out the same."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest

from jaxbert.cli.main import main
from jaxbert.files import seal
from jaxbert.recipe import load_recipe, resolve
from jaxbert.workdir import SEALED, write_json


def write_finished(folder: Path) -> Path:
    """The records of a finished run."""
    config = resolve(load_recipe(f"{commands.GENERAL}:smoke"), {"teacher": "somewhere"}).to_dict()
    folder.mkdir()
    write_json(folder / "config.json", config)
    known = {"config": config, "phases": {}, "parameter_hash": "0", "command": "jaxbert train"}
    write_json(folder / "summary.json", known)
    seal(folder, SEALED)
    return folder


@pytest.mark.parametrize("where", ["run", "run-rerun", "other/../run"])
def test_a_folder_with_a_finished_run_is_left_as_it_is(tmp_path, capsys, where):
    """Its phases would be found finished, be they of another version."""
    folder = write_finished(tmp_path / "run")
    write_finished(tmp_path / "run-rerun")
    (tmp_path / "other").mkdir()
    before = (tmp_path / where / "summary.json").read_bytes()
    with pytest.raises(SystemExit) as left:
        main(["rerun", str(folder), *[f"--workdir={tmp_path / where}"] * (where != "run-rerun")])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxbert: error: a finished run is there, which would not be run again")
    assert (tmp_path / where / "summary.json").read_bytes() == before
