"""The site: built as `make docs` builds it, whole, and without anything from elsewhere."""

from __future__ import annotations

import dataclasses
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import browser
import commands
import pytest

from jaxbert.cli.main import COMMANDS
from jaxbert.config import PhaseConfig, RunConfig, TermConfig
from jaxbert.objectives import losses

pytestmark = pytest.mark.slow
# What a page fetches by itself; links that a reader follows are none of it.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc=[\"']?([^\s\"'>]+)"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|prev|next))[^>]*\shref=[\"']?([^\s\"'>]+)"
    r"|url\(\s*[\"']?(?!data:|#)([^)\"']+)|@import\s+[\"']([^\"']+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    given = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(commands.ROOT), "JAX_PLATFORMS": "cpu"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    done = subprocess.run(
        build,
        cwd=commands.ROOT,
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def words(path: Path) -> str:
    """The text of a page."""
    return html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")))


def test_every_page_of_docs_is_in_the_navigation(site):
    docs = commands.ROOT / "docs"
    listed = re.findall(r": (\S+\.md)$", (commands.ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    for path in docs.rglob("*.md"):
        name = path.relative_to(docs)
        assert listed.count(str(name)) == 1
        assert (site / name).with_suffix(".html").is_file()


def test_nothing_is_fetched_from_elsewhere(site):
    files = [path for kind in ("html", "css") for path in site.rglob(f"*.{kind}")]
    found = {
        (path.name, one)
        for path in files
        for groups in FETCHED.findall(path.read_text(encoding="utf-8"))
        for one in filter(None, groups)
    }
    assert found
    elsewhere = {(name, one) for name, one in found if re.match(r"\w+:|//", one)}
    assert not elsewhere


def test_equations_are_drawn_by_the_browser_alone(site):
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert sum(page.count("<math ") for page in pages) > 20
    assert not any("arithmatex" in page for page in pages)
    assert "<mfrac>" in (site / "losses.html").read_text(encoding="utf-8")


def test_the_reference_has_what_the_code_has(site):
    found = words(site / "reference" / "commands.html")
    for name, module in COMMANDS.items():
        assert f"jaxbert {name}" in found
        for flag in re.findall(r'add_argument\(\s*"(--[\w-]+)"', Path(module.__file__).read_text()):
            assert flag in found, (name, flag)
    found = words(site / "reference" / "config.html")
    for section in (RunConfig, PhaseConfig, TermConfig):
        for field in dataclasses.fields(section):
            assert field.name == "sections" or re.search(rf"\b{field.name}\b", found)
    found = words(site / "reference" / "objectives.html")
    for name in (name for name, value in vars(losses).items() if callable(value)):
        if not name.startswith("_") and getattr(losses, name).__module__ == losses.__name__:
            assert name in found
    found = words(site / "reference" / "python.html")
    assert "TextModel" in found and "distill" in found and "Distils a student" in found


@browser.needed
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_a_page(site, tmp_path, dark):
    png = tmp_path / "page.png"
    browser.screenshot(site / "losses.html", png, width=1200, height=1200, dark=dark)
    colors = browser.colors(png)
    assert ((0xFF, 0xFF, 0xFF) in colors) != dark or (0x1E, 0x21, 0x29) in colors
    assert (0x00, 0x5A, 0x8C) in colors  # the header
    assert len(colors) > 50
