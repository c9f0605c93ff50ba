"""Runs a documented command in a small size: a recipe's two steps, on a model for two cores.

Imports nothing heavy: it stands before every command of the pages that the tests run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

# Every run of a small model: float32 is the faster of the two on a CPU.
SMALL = ("--config.dtype=float32", "--config.max_length=48", "--config.num_documents=40")
TRAINING = (["train.py"], ["-m", "jaxbert", "train"], ["-m", "jaxbert", "doctor"])


def shrink(words: Sequence[str], *flags: str) -> list[str]:
    """A command, as words for Python, in the size of a test.

    Args:
      words: of the command.
      flags: of those that take a recipe, behind those that make it small.
    """
    found = [
        re.sub(r"(--config=\S+?)(:(.+))?$", r"\1:smoke,\3", word).rstrip(",") for word in words
    ]
    if found[:3] == ["-m", "jaxbert", "export"]:
        return [*found, "--force"]  # two steps leave a student whose int8 may cost anything
    if not any(found[: len(start)] == start for start in TRAINING):
        return found
    given = any(word.startswith("--config.teacher=") for word in found)
    teacher = () if given else ("--config.teacher=teacher",)
    unreported = () if "doctor" in found else ("--no-report",)  # which takes a second
    return [*found, *SMALL, *teacher, *flags, *unreported]


if __name__ == "__main__":
    given = os.environ.get("SHRUNK_FLAGS", "").split()
    os.execv(sys.executable, [sys.executable, *shrink(sys.argv[1:], *given)])
