"""Files that are there whole or not at all, and files that one process at a time works on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


def temporary(path: Path) -> Path:
    """A name beside a file, for what is to get its name: hidden, and of no other file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[str]]:
    """Gives a text file that gets its name, in the place of an older one, once it is written.

    Args:
      path: the name; its folder is there.

    Raises:
      OSError: it cannot be written; nothing is left of it then.
    """
    partial = temporary(path)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(lock: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds what a lock file stands for while it is worked on.

    The system lets go of it when a process ends, however that ends: a file that is left blocks
    nobody.

    Args:
      lock: the file, made with its folders, and removed in the end; it has the number of the
        process that holds it.
      wait: called once if another process holds it, which is then waited for.

    Raises:
      BlockingIOError: another process holds it, and there is no `wait`.
      OSError: it cannot be written.
    """
    with _locked(lock, wait) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path, wait: Callable[[], None] | None) -> IO[str]:
    """The lock file, open and locked; made anew if whoever held it has removed it."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            file = stack.enter_context(lock.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise
                wait()
                wait = _nothing
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                stack.pop_all()
                return file


def _nothing() -> None:
    """What is said the second time."""


def size_text(count: int) -> str:
    """Bytes, for people; 1 MB = 10^6 bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
