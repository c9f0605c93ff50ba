"""How long to fuzz."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the seconds."""
    parser.addoption("--fuzz-seconds", type=float, default=60.0, help="of each kind")
