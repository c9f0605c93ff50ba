"""What `jaxbert doctor` finds, with the same numbers where it is printed and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxbert.errors import UserError, UserErrors


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem, or what is doubtful.

    Attributes:
      number: from 1, errors before warnings.
      kind: ``error`` (the run would be refused) or ``warning``.
      what: as of a `UserError`, and so are ``where`` and ``fix``.
    """

    number: int
    kind: str
    what: str
    where: str
    fix: str

    @property
    def numbered(self) -> UserError:
        """It, to be printed with its number."""
        return UserError(f"{self.number}. {self.what}", self.where, self.fix)


def number(errors: Sequence[UserError], warnings: Sequence[UserError] = ()) -> list[Finding]:
    """Numbers what was found; errors that are several count one by one."""
    named = [("error", part) for error in errors for part in _parts(error)]
    named += [("warning", warning) for warning in warnings]
    return [Finding(n, kind, e.what, e.where, e.fix) for n, (kind, e) in enumerate(named, 1)]


def _parts(error: UserError) -> list[UserError]:
    if not isinstance(error, UserErrors):
        return [error]
    return [part for inner in error.errors for part in _parts(inner)]
