"""The ledger of the chaos suite: each fault, how often it was injected, survived, and silent."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from rich.console import Console
from rich.table import Table
from stages import Given

_COLUMNS = ("injected", "survived", "silent")
_BEGAN = time.monotonic()
_found: dict[str, collections.Counter[str]] = {}


@dataclasses.dataclass
class Tally:
    """What became of a fault in one test.

    Attributes:
      fault: its name in the table.
      injected: how often it struck.
      survived: how often it was refused, or led to the right numbers after all.
      silent: how often a wrong number was taken for a right one.
    """

    fault: str
    injected: int = 0
    survived: int = 0
    silent: int = 0

    def count(self, survived: bool, silent: bool = False, times: int = 1) -> None:
        """Counts faults that have struck."""
        self.injected += times
        self.survived += times * survived
        self.silent += times * silent

    def check(self) -> None:
        """Asserts that it struck, and was survived each time."""
        assert self.injected, f"{self.fault} was not injected"
        assert (self.survived, self.silent) == (self.injected, 0), self


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Tally]]:
    """``tally(fault)``: what counts a fault in the table."""
    tallies: dict[str, Tally] = {}
    yield lambda fault: tallies.setdefault(fault, Tally(fault))
    for each in tallies.values():
        request.node.user_properties.append(("fault", dataclasses.asdict(each)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds up what a test has counted, in whichever process it ran."""
    if report.when == "teardown":
        for name, counts in report.user_properties:
            if name == "fault" and isinstance(counts, dict):
                total = _found.setdefault(counts["fault"], collections.Counter())
                total.update({column: counts[column] for column in _COLUMNS})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds where the table goes, and how long a soak is."""
    parser.addoption("--chaos-json", type=Path, help="write the table of faults to this file, too")
    parser.addoption("--soak", type=int, default=0, help="random faults on one long run")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the table, and writes it as JSON."""
    if not _found:
        return
    table = Table("fault", *_COLUMNS, title="Faults")
    rows = [(fault, *(counts[c] for c in _COLUMNS)) for fault, counts in sorted(_found.items())]
    rows.append(("in all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    for row in rows:
        table.add_row(*map(str, row), end_section=row is rows[-2])
    terminalreporter.ensure_newline()
    Console(width=100).print(table)
    if path := config.getoption("--chaos-json", None):
        found = [dict(zip(("fault", *_COLUMNS), row, strict=True)) for row in rows]
        seconds = round(time.monotonic() - _BEGAN)
        facts = {"seconds": seconds, "cores": len(os.sched_getaffinity(0)), "faults": found}
        path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """What all runs start from."""
    cache = commands.shared_cache(tmp_path_factory)
    return Given.make(tmp_path_factory.mktemp("given"), cache)


@pytest.fixture(scope="session")
def whole_general(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken first stage."""
    workdir = tmp_path_factory.mktemp("whole") / "general"
    given.general(workdir).run()
    return workdir


@pytest.fixture(scope="session")
def whole_task(given: Given, whole_general: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken second stage."""
    workdir = tmp_path_factory.mktemp("whole") / "task"
    given.task(workdir, whole_general).run()
    return workdir
