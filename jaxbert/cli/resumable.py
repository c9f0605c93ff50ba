"""Commands that are stopped and go on: Ctrl-C and SIGTERM are an exit code of their own."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_INTERRUPTED = 75


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Stands around work that the same command goes on with, wherever it was stopped.

    Raises:
      SystemExit: with 75, when it was told to stop.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted and saved: run the same command again", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise KeyboardInterrupt
