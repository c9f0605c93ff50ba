"""The one way to tell a user what is wrong."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can fix: printed as one line, exit code 2, no traceback.

    Args:
      what: what happened, in one clause.
      where: the file (``file:line:column``), config key or parameter path it happened at.
      fix: what to do about it.
    """

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(self.line)

    @property
    def line(self) -> str:
        """``WHAT, WHERE; FIX`` without line breaks."""
        text = self.what + (f", {self.where}" if self.where else "")
        return " ".join((text + (f"; {self.fix}" if self.fix else "")).split())

    @property
    def lines(self) -> list[str]:
        """What is printed, one ``jaxbert: error:`` line each."""
        return [self.line]


class UserErrors(UserError):
    """Several independent problems, reported together.

    Args:
      errors: the problems, each of which becomes a line of its own.
    """

    def __init__(self, errors: Sequence[UserError]) -> None:
        self.errors = tuple(errors)
        super().__init__(" | ".join(error.line for error in self.errors))

    @property
    def lines(self) -> list[str]:
        return [line for error in self.errors for line in error.lines]
