"""The package that users install: built, installed and run as they would."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import commands
import pytest

PACKAGE, RECIPES = commands.ROOT / "jaxbert", commands.ROOT / "configs"


def test_every_package_is_named_and_the_recipes_are_one():
    parser = configparser.RawConfigParser()
    parser.read(commands.ROOT / "setup.cfg")
    named = parser["options"]["packages"].split()
    found = {path.parent for path in PACKAGE.rglob("*.py")}
    packages = {".".join(path.relative_to(commands.ROOT).parts) for path in found}
    assert sorted(named) == sorted({*packages, "jaxbert.configs"})


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """An environment that has the built wheel, and of this one only what jaxbert depends on."""
    root = tmp_path_factory.mktemp("package")
    source, wheels, clean = (root / name for name in ("source", "wheels", "clean"))
    # Built from a copy: what an earlier build has left in the repository would be packed, too.
    for folder in (PACKAGE, RECIPES):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, source / folder.name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(commands.ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", ".", "--no-deps", f"--wheel-dir={wheels}"], cwd=source, check=True
    )
    (wheel,) = wheels.glob("jaxbert-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clean)], check=True)
    python = clean / "bin" / "python"
    subprocess.run([*pip, f"--python={python}", "install", "--no-deps", str(wheel)], check=True)
    # A folder named by a .pth file is searched, and its own .pth files, an editable jaxbert's
    # among them, are not read.
    (site,) = clean.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return clean


def run(clean: Path, place: Path, cache: Path, command: str, *words: str) -> str:
    """Runs a command of the clean environment in a folder; what it says."""
    environment = commands.environment(cache=cache)
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(clean / "bin" / command), *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_built_package_is_whole(clean, tmp_path, cache):
    """Every module and every recipe is in the wheel, and imports from where it was installed."""
    (site,) = clean.glob("lib/python*/site-packages")
    modules = {path.relative_to(commands.ROOT) for path in PACKAGE.rglob("*.py")}
    recipes = {Path("jaxbert", "configs", path.name) for path in RECIPES.glob("*.py")}
    installed = {path.relative_to(site) for path in site.rglob("*.py")}
    assert recipes and installed == modules | recipes
    said = run(clean, tmp_path, cache, "python", "-c", "import jaxbert.run as r; print(r.__file__)")
    assert Path(said.strip()) == site / "jaxbert" / "run.py"


@pytest.mark.slow
def test_the_installed_commands_distil_a_student_in_an_empty_folder(clean, tmp_path, cache):
    commands.write_small_teacher(tmp_path / "teacher")
    text = "\n\n".join(f"Film {i} is " + "rather long and " * 9 for i in range(40))
    (tmp_path / "texts.txt").write_text(text, encoding="utf-8")
    train = ["train", "--config.teacher=teacher", *commands.SMALL]
    corpus, start = "--config.corpus=text:texts.txt", "--config.init_from=general"
    general = ["--config=tinybert_general:smoke", "--workdir=general", corpus]
    run(clean, tmp_path, cache, "jaxbert", *train, *general)
    versions = commands.read(tmp_path / "general" / "summary.json")["versions"]
    assert {"jax", "jaxlib", "orbax-checkpoint", "tokenizers"} <= versions.keys()
    task = ["--config=tinybert_task:smoke", "--workdir=task", start]
    run(clean, tmp_path, cache, "jaxbert", *train, *task)
    said = run(clean, tmp_path, cache, "jaxbert", "eval", "--workdir=task")
    assert "distilled student" in said
    assert "student" in commands.read(tmp_path / "task" / "eval.json")["models"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"teacher", "texts.txt", "general", "task", ".jaxbert"}


@pytest.mark.slow
def test_an_editable_install_finds_the_recipes_of_the_checkout(tmp_path, cache):
    """Named from another folder."""
    source, place = tmp_path / "source", tmp_path / "place"
    for folder in (PACKAGE, RECIPES):
        shutil.copytree(folder, source / folder.name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(commands.ROOT / name, source)
    place.mkdir()
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    editable = ["install", "--no-deps", "--editable", str(source)]
    subprocess.run([*pip, f"--python={python}", *editable], check=True)
    code = "from jaxbert.recipe import named_recipes as n; print(*n().values(), sep='\\n')"
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    said = run(environment, place, cache, "python", "-c", code).split()
    assert said == [str(source / "configs" / path.name) for path in sorted(RECIPES.glob("*.py"))]
