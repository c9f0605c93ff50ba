"""The package that users install: built, installed and imported as they would."""

import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest


@pytest.mark.slow
def test_the_built_package_is_whole(tmp_path):
    """Every module of the package is in the wheel, and imports from where it was installed."""
    source, wheels, target = (tmp_path / name for name in ("source", "wheels", "target"))
    package = commands.ROOT / "jaxbert"
    # Built from a copy: what an earlier build has left in the repository would be packed, too.
    shutil.copytree(package, source / "jaxbert", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(commands.ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "wheel", ".", "--no-deps", f"--wheel-dir={wheels}"], cwd=source, check=True
    )
    (wheel,) = wheels.glob("jaxbert-*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={target}", str(wheel)], check=True)
    modules = {path.relative_to(package) for path in package.rglob("*.py")}
    assert modules == {
        path.relative_to(target / "jaxbert") for path in (target / "jaxbert").rglob("*.py")
    }
    done = subprocess.run(
        [sys.executable, "-c", "import jaxbert.run; print(jaxbert.run.__file__)"],
        cwd=tmp_path,
        env=commands.environment() | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == target / "jaxbert" / "run.py"
