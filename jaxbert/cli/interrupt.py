"""What Ctrl-C and SIGTERM do to a command that goes on where it was stopped."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 75  # the exit code


@contextlib.contextmanager
def saved_when_interrupted() -> Iterator[None]:
    """What stands around such a command: both signals raise KeyboardInterrupt in it.

    Raises:
      SystemExit: with code 75, when it was told to stop.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted and saved: run the same command again", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise KeyboardInterrupt
