"""Sections of a config as flags of a command."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from jaxbert.recipe import read_section


def add_section(parser: argparse.ArgumentParser, section: Any, name: str, prefix: str = "") -> None:
    """Adds a flag for each key of a section.

    Args:
      parser: what gets them.
      section: the section's class.
      name: what the section is called in a config.
      prefix: what stands before each key in its flag.
    """
    for field in dataclasses.fields(section):
        switch: dict[str, Any] = {}
        if field.default is False:
            switch = {"nargs": "?", "const": "true"}
        hint = f"config key {name}.{field.name}"
        parser.add_argument(f"--{prefix}{field.name}", help=hint, metavar="VALUE", **switch)


def given_section(args: argparse.Namespace, section: Any, name: str, prefix: str = "") -> Any:
    """The section that the flags of ``add_section`` describe.

    Raises:
      UserErrors: with every value that cannot be.
    """
    names = [field.name for field in dataclasses.fields(section)]
    texts = {key: value for key in names if (value := getattr(args, prefix + key)) is not None}
    return read_section(section, texts, name)
