"""Pages that no file below docs/ holds: the home page, and a reference made from the code.

The README is the home page, CONTRIBUTING.md and CHANGELOG.md are pages as well; the reference has
a page for each package of jaxbert, one for the keys of a config and one for the commands. Links
are written for the repository and turned to the site's pages here.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File

from jaxbert import config as sections
from jaxbert.cli.main import COMMANDS
from jaxbert.config import RunConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxbert"
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)]*)?\))")


def on_config(config: Any) -> Any:
    """Adds to the navigation what is not known before."""
    reference = [{title: uri} for title, uri, _ in reference_pages()]
    names = [next(iter(part)) for part in config.nav]
    config.nav.insert(names.index("Explanation"), {"Reference": reference})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages."""
    for name, uri in OUTSIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=_LINK.sub(_from_root, text)))
    for _, uri, text in reference_pages():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Links of a page of docs/ to what lies beside docs/ lead to the pages made of it.

    A link to a module's source leads to its place in the reference.
    """
    up = "../" * page.file.src_uri.count("/")

    def replace(found: re.Match[str]) -> str:
        name = found[2].removeprefix(f"{up}../")
        if found[2] == name:
            return found[0]
        module = re.fullmatch(r"jaxbert/(\w+)/(\w+)\.py", name)
        if module:
            return f"{found[1]}{up}reference/{module[1]}.md#jaxbert.{module[1]}.{module[2]})"
        return f"{found[1]}{up}{OUTSIDE.get(name, found[2])}{found[3]}"

    return _LINK.sub(replace, markdown)


def _from_root(found: re.Match[str]) -> str:
    """A link of a file at the root, from the page that is made of it."""
    uri = OUTSIDE.get(found[2], found[2].removeprefix("docs/"))
    return f"{found[1]}{uri}{found[3]}"


# --- the reference --------------------------------------------------------------------------------


def reference_pages() -> Iterator[tuple[str, str, str]]:
    """Of each page its title, where it lies, and its text."""
    yield "From Python", "reference/python.md", _python()
    yield "Commands", "reference/commands.md", _commands()
    yield "Config keys", "reference/config.md", _config()
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        if folder.name != "cli":  # the commands, above
            names = [f"jaxbert.{folder.name}.{name}" for name in _modules(folder)]
            title = folder.name.capitalize()
            yield title, f"reference/{folder.name}.md", _described(title, names)
    names = [f"jaxbert.{name}" for name in _modules(PACKAGE) if name not in ("config", "__main__")]
    shown = {module for module, _ in _public()}
    rest = [name for name in names if name not in shown]
    yield "Other modules", "reference/modules.md", _described("Other modules", rest)


def _modules(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def _described(title: str, names: Sequence[str]) -> str:
    """A page of modules."""
    return "\n\n".join([f"# {title}", *(f"::: {name}" for name in names)]) + "\n"


def _public() -> list[tuple[str, str]]:
    """What ``jaxbert`` itself gives: module and name."""
    import jaxbert

    return [(module, name) for name, module in sorted(jaxbert._PLACES.items())]


def _python() -> str:
    """What ``import jaxbert`` gives, and the classes that it returns."""
    parts = ["# From Python", "`import jaxbert` gives two functions:"]
    parts += [f"- `jaxbert.{name}` is `{module}.{name}`" for module, name in _public()]
    modules = [f"::: {module}" for module in dict.fromkeys(module for module, _ in _public())]
    return "\n\n".join([*parts[:2], "\n".join(parts[2:]), *modules]) + "\n"


def _commands() -> str:
    """Every command as its parser has it."""
    parts = ["# Commands"]
    said = "`train`, `eval`: also `python train.py` and `python eval.py` in a checkout."
    parts += [f"`jaxbert COMMAND --help` says the same. {said}"]
    for name, module in COMMANDS.items():
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        module.add_arguments(parser)
        flags = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
        rows = [f"| {_form(x)} | {_default(x)} | {_cell(x.help or '')} |" for x in flags]
        if hasattr(module, "OVERRIDES"):
            rows += ["| `--config.KEY=VALUE` | | any key of the config, [all of them](config.md) |"]
        table = ["| argument | default | what |", "|---|---|---|", *rows] if rows else []
        parts += [f"## jaxbert {name}", _prose(module), "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _prose(module: ModuleType) -> str:
    """A module's docstring, its command lines as blocks."""
    text = inspect.getdoc(module) or ""
    return re.sub(r"^ *(?=jaxbert |python )", "    ", text, flags=re.MULTILINE)


def _form(flag: argparse.Action) -> str:
    if not flag.option_strings:
        return f"`{flag.metavar or flag.dest}`"
    name = flag.option_strings[-1]
    if flag.nargs == 0:  # both of a flag that can be taken back
        return ", ".join(f"`{one}`" for one in flag.option_strings)
    among = "\\|".join(map(str, flag.choices or ()))
    return f"`{name}={among or flag.metavar or flag.dest.upper()}`"


def _default(flag: argparse.Action) -> str:
    if flag.required and flag.option_strings:
        return "needed"
    return "" if flag.default in (None, False, "", []) else f"`{_cell(str(flag.default))}`"


def _config() -> str:
    """Every key of a config, by section: default, values, meaning."""
    about = (
        "Any key is a flag of `train.py`: `--config.KEY=VALUE`, `--config.SECTION.KEY=VALUE`. "
        "A phase is a section under the name that `phases` gives it, a term one under "
        "`PHASE.terms.NAME`."
    )
    parts = ["# Config keys", about]
    found = [value for value in vars(sections).values() if dataclasses.is_dataclass(value)]
    for section in sorted(found, key=lambda value: value is not RunConfig):
        text = inspect.getdoc(section) or ""
        meant = _attributes(text)
        rows = ["| key | default | values | what |", "|---|---|---|---|"]
        for field in dataclasses.fields(section):
            if field.name in meant:  # `sections` is not a key, but where the phases' sections lie
                what = _cell(meant[field.name])
                rows += [f"| `{field.name}` | {_value(field)} | {_values(field)} | {what} |"]
        name = section.__name__
        title = "The run" if section is RunConfig else name.removesuffix("Config")
        summary = text.partition("\n\nAttributes:")[0]
        parts += [f"## {title}", summary.replace("``", "`"), "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _attributes(text: str) -> dict[str, str]:
    """What a docstring says of each attribute; several names may share a line."""
    lines = re.sub(r"\n {4,}", " ", text.partition("Attributes:\n")[2])
    found = {}
    for line in lines.splitlines():
        names, _, what = line.strip().partition(": ")
        found |= dict.fromkeys(names.split(", "), what)
    return found


def _value(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING or dataclasses.is_dataclass(field.default):
        return ""
    return "" if field.default in ("", ()) else f"`{field.default}`"


def _values(field: dataclasses.Field) -> str:
    limits = field.metadata
    if limits.get("among"):
        return ", ".join(f"`{value}`" for value in limits["among"] if value != "")
    low, high = limits.get("low"), limits.get("high")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"from {low}" if low is not None else f"to {high}" if high is not None else ""


def _cell(text: str) -> str:
    """Text within a table; what docstrings put into two backticks, in one."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").replace("%%", "%").split())
