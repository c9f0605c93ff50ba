"""The floors of docs/architecture.md, held against the imports."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "jaxbert").rglob("*.py"))

# From the ground up; a module may import from its own floor's package and from any floor below.
FLOORS = (
    (
        "errors",
        "memory",
        "programs",
        "batch",
        "files",
        "objects",
        "presets",
        "stopping",
        "launch",
        "processes",
    ),
    ("models", "data", "config"),
    ("objectives", "interop", "workdir", "coherence", "shapes"),
    ("recipe",),
    ("training", "evaluation", "sweep"),
    ("library", "augment", "prune", "teaching", "verify", "serving", "history"),
    ("datasets",),
    ("phases",),
    ("inspection",),
    ("run", "export", "bench", "mteb"),
    ("doctor", "report", "notebook", "service"),
    ("cli",),
    ("__main__",),
)


def place(name: str) -> str:
    """`models` for `jaxbert.models.bert`, `` for the package itself."""
    return name.removeprefix("jaxbert").lstrip(".").split(".")[0]


def floor(part: str) -> int:
    return next(i for i, parts in enumerate(FLOORS) if part in parts)


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=modules_of)
def test_no_import_runs_upstairs(path: Path):
    mine = place(modules_of(path))
    if not mine:
        return
    for name in imports(path):
        if name.split(".")[0] != "jaxbert" or not place(name):
            continue
        theirs = place(name)
        same = theirs == mine or (floor(theirs) == floor(mine) == 0)
        assert same or floor(theirs) < floor(mine), f"{modules_of(path)} imports {name}"


def test_no_import_makes_a_circle():
    names = {modules_of(path) for path in MODULES}
    graph = {modules_of(path): imports(path) & names - {modules_of(path)} for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for other in graph[name]:
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=modules_of)
def test_only_models_import_linen_and_data_knows_no_jax(path: Path):
    part, names = place(modules_of(path)), imports(path)
    if part != "models":
        assert not any(name.startswith("flax.linen") for name in names)
    if part == "data":
        assert not any(re.match(r"(jax|flax|optax)(\.|$)", name) for name in names)


def test_there_is_no_utils():
    assert not [path for path in MODULES if "util" in path.stem]
