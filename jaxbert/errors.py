"""The one way to tell a user what is wrong."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

ERROR_PREFIX = "jaxbert: error: "
# What XLA says of an allocation of its own; of one within YNNPACK, on CPUs, it gives no cause.
_NO_MEMORY = re.compile(r"RESOURCE_EXHAUSTED: (?P<said>.*)|YNNPACK operation failed.*")
_LESS = "give smaller batches (eval_batch_size, batch_size) or a smaller model, or more memory"


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
        """The lines of every problem, in order."""
        return [line for error in self.errors for line in error.lines]


def warn(text: str) -> None:
    """Says on stderr what a user should know, and the program can go on from."""
    print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def memory_advice(where: str, fix: str) -> Iterator[None]:
    """Says what a user can do when a device, or the host, has not the memory that is asked for.

    Args:
      where: what needs it.
      fix: what would need less.

    Raises:
      UserError: in the place of what JAX or Python raise then.
    """
    try:
        yield
    except MemoryError as error:
        raise UserError(f"out of memory: {error}", where, fix) from error
    except RuntimeError as error:  # what JAX raises is one; this module does not import it
        found = _NO_MEMORY.search(str(error))
        if not found:
            raise
        what = (found["said"] or found[0]).strip()
        raise UserError(f"out of memory: {what}", where, fix) from error


@contextlib.contextmanager
def exit_on_user_error(*, debug: bool = False) -> Iterator[None]:
    """What stands around a command: says what a UserError says, on stderr, and leaves with 2.

    A full file system and too little memory are the user's to mend, wherever they are met.

    Args:
      debug: show where it was raised, too.

    Raises:
      SystemExit: with code 2, in the place of a UserError.
    """
    try:
        try:
            with memory_advice("", _LESS):
                yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            fix = "make room, then run the same command again"
            raise UserError(str(error.strerror), str(error.filename or ""), fix) from error
    except UserError as error:
        if debug:
            traceback.print_exc()
        for line in error.lines:
            print(ERROR_PREFIX + line, file=sys.stderr)
        sys.exit(2)
