"""What a page of the documentation says of commands, held against what there is."""

from __future__ import annotations

import argparse
import configparser
import functools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from commands import ROOT

from jaxbert.cli.main import COMMANDS
from jaxbert.errors import UserErrors
from jaxbert.recipe import load_recipe, named_recipes, read_overrides, resolve
from jaxbert.sweep.plan import load_sweep


class Said(NamedTuple):
    """What a page says of commands outside of its fenced blocks.

    Attributes:
      commands: of indented blocks, as words.
      spans: what stands between backticks.
    """

    commands: list[list[str]]
    spans: list[str]


def said_by(page: str) -> Said:
    """The commands and the code within sentences of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    start = r"(?:\S+/)?python (?!-)|(?:\S+/)?python -m jaxbert|jaxbert |pip |make |--config\."
    found = re.findall(rf"^    ((?:{start})(?:.*\\\n)*.*)$", text, re.MULTILINE)
    commands = [shlex.split(line.replace("\\\n", " "), comments=True) for line in found]
    prose = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return Said(commands, [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)])


def parse(words: Sequence[str]) -> None:
    """Holds a command of a page against the parsers, the recipes and the extras, if it is ours.

    Raises:
      SystemExit: there is no such command or flag.
      UserError: no such recipe or config key.
      AssertionError: no such extra, script or target of the Makefile.
    """
    words = [word.rstrip(";") for word in words if word not in ("until", "&")]
    if words[:2] == ["pip", "install"]:
        _parse_install(words[2:])
    if words[0] == "make":
        (known,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(known.split()), words
    if Path(words[0]).name == "python" and words[1] in ("train.py", "eval.py"):
        words = ["jaxbert", words[1].removesuffix(".py"), *words[2:]]
    if words[:2] == ["python", "-m"] and words[2].startswith("jaxbert."):
        words = ["python", f"{words[2].replace('.', '/')}.py", *words[3:]]
    if words[0] == "python" and words[1].endswith(".py"):
        _parse_script(words[1], words[2:])
    if words[0] != "jaxbert":
        return
    assert words[1] in COMMANDS, words
    if "do" in words:
        words = words[: words.index("do")]
    parser = parser_of(words[1])
    args, rest = parser.parse_known_args(words[2:])
    if words[1] == "sweep":
        load_sweep(str(ROOT / args.file))
    if not hasattr(COMMANDS[words[1]], "OVERRIDES"):
        parser.parse_args(words[2:])
    elif Path(args.config.partition(":")[0]).suffix != ".py" or args.config.startswith("configs/"):
        resolve(load_recipe(args.config), read_overrides(rest, "the others"))


def parse_span(span: str) -> None:
    """Holds code within a sentence against the same; it may be a part of a command.

    Raises:
      AssertionError: no such command, flag, script, recipe or config key.
    """
    try:
        words = shlex.split(span)
    except ValueError:  # an apostrophe, and no words of a shell
        return
    if words and words[0] in ("train.py", "eval.py"):
        words = ["python", *words]
    if words[:1] == ["python"] and words[1:] and words[1] in ("train.py", "eval.py"):
        words = ["jaxbert", words[1].removesuffix(".py"), *words[2:]]
    if len(words) > 1 and words[0] == "jaxbert" and words[1].islower():
        assert words[1] in COMMANDS, span
        _parse_flags(words[2:], [words[1]])
    elif words and words[0].startswith("--"):
        _parse_flags(words, list(COMMANDS))
    elif words and words[0] in ("pip", "python", "make"):
        parse(words)
    elif words and re.fullmatch(r"configs/\w+\.py(:.*)?", words[0]) and words[0] not in OWN:
        resolve(load_recipe(str(ROOT / words[0])), {})


_IMPORTED = re.compile(r"^import (\w+)$", re.MULTILINE)
# A recipe that the pages have a user write.
OWN = "configs/reviews.py"


def _parse_flags(words: Sequence[str], names: Sequence[str]) -> None:
    """Of words behind one of these commands: flags and config keys."""
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    known = {flag for name in names for flag in parser_of(name)._option_string_actions}
    if len(names) > 1:  # of a script, then, perhaps, or of a section
        known |= {flag.partition(".")[0] for flag in known}
        files = [file for name in ("benchmarks", "scripts") for file in (ROOT / name).glob("*.py")]
        known |= {flag for file in files for flag in re.findall(r'"(--[\w-]+)"', file.read_text())}
    keys = [word for word in words if word.startswith("--config.")]
    assert {flag for flag in flags if not flag.startswith("--config.")} <= known, words
    if keys:
        taken_by_a_recipe(keys)


@functools.cache
def _recipes() -> list[dict[str, Any]]:
    """The recipes that come with jaxbert, as they are and with those arguments that add keys."""
    more = ("tinybert_general:assistant", "tinybert_task:task=names", "tinybert_task:task=answers")
    return [load_recipe(name) for name in (*named_recipes(), *more)]


def taken_by_a_recipe(words: Sequence[str]) -> None:
    """Overrides without their recipe: one of ours takes all of them, PHASE being a phase of it.

    Of a key without a value it is enough that there is such a key.

    Raises:
      AssertionError: with what the likeliest recipe says.
    """
    pairs = [word.removeprefix("--config.").partition("=")[::2] for word in words]
    given = {key: text for key, text in pairs if key != "KEY"}
    refused = []
    for recipe in _recipes():
        texts = {key.replace("PHASE", recipe["phases"][0]): text for key, text in given.items()}
        try:
            resolve(recipe, texts)
            return
        except UserErrors as error:
            found = [e for e in error.errors if texts.get(e.where[11:]) or "no such key" in e.what]
            if not found:
                return
            refused.append([one.line for one in found])
    raise AssertionError(f"{words}: {min(refused, key=len)}")


def parser_of(command: str) -> argparse.ArgumentParser:
    """What a command of jaxbert understands."""
    parser = argparse.ArgumentParser(prog=f"jaxbert {command}", allow_abbrev=False)
    parser.add_argument("--debug", action="store_true")
    COMMANDS[command].add_arguments(parser)
    return parser


def _parse_install(words: Sequence[str]) -> None:
    """Of what ``pip install`` is told: jaxbert is the checkout's, and has such extras."""
    for word in words:
        if extras := re.fullmatch(r"(\.|jaxbert)\[(.*)\]", word):
            # A copy in its place would not follow the checkout; by its name, what is there stays.
            assert (words[0] == "--editable") == (extras[1] == "."), words
            parser = configparser.RawConfigParser()
            parser.read(ROOT / "setup.cfg")
            assert set(extras[2].split(",")) <= set(parser["options.extras_require"]), words


def _parse_script(script: str, words: Sequence[str]) -> None:
    """Of a script of the checkout: it is there, and it, or what it imports from beside it, has each
    flag in its text; after -- a run's.
    """
    text = (ROOT / script).read_text(encoding="utf-8")
    beside = [(ROOT / script).with_name(f"{name}.py") for name in _IMPORTED.findall(text)]
    text += "".join(path.read_text(encoding="utf-8") for path in beside if path.is_file())
    own = list(words)
    if "--" in own:
        parse(["jaxbert", "train", *own[own.index("--") + 1 :]])
        own = own[: own.index("--")]
    for word in own:
        flag = word.partition("=")[0]
        assert not flag.startswith("--") or f'"{flag}"' in text, (script, flag)
