"""Being told to stop, by Ctrl-C or by SIGTERM: what can be saved is, and the exit code says so.

In a program of others, such as a notebook, Ctrl-C ends the work alone, and not the process.

Python runs its signal handlers between two of its own instructions, so that none runs while XLA
compiles. A thread therefore hears of each signal at once, and ends the process where the rest of
it does not.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from jaxbert.errors import UserError

INTERRUPTED = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAVED = "interrupted and saved: run the same command again"
_AT_ONCE = "interrupted: what was saved last stands, run the same command again"
_GRACE = 25.0  # seconds for saving and cleaning up
_AGAIN = signal.SIGURG  # within this process alone: interrupts the main thread once more
_SOON = 0.05  # seconds
_DEAF = 1.0  # seconds after which the main thread is taken to be in a compiler
# Seconds in which signals are one stop. A machine that shuts down, Slurm and `timeout` tell all
# processes of a group, and a parent may hand on what its child has heard itself.
_ONE = 1.0


class _Flag:
    """An event without a lock: the handler of a signal may set it within another one's setting."""

    def __init__(self) -> None:
        self._is_set, self._since = False, 0.0

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            self._is_set, self._since = True, time.monotonic()

    def clear(self) -> None:
        self._is_set = False

    def age(self) -> float:
        """Seconds since it was set; 0 if it is not."""
        return time.monotonic() - self._since if self._is_set else 0.0

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._is_set and time.monotonic() < end:
            time.sleep(_SOON)
        return self._is_set


_heard = _Flag()  # the main thread knows
_saves = _Flag()  # it saves before it stops
_holds = _Flag()  # and must not be interrupted anywhere meanwhile
_requested = _Flag()
_ends = _Flag()  # the process is to end, and not the work alone


@contextlib.contextmanager
def resumable(*, alone: bool = True) -> Iterator[None]:
    """Stands around work that goes on, when it is begun again, wherever it was stopped.

    The first SIGINT or SIGTERM ends it within 30 seconds: by a KeyboardInterrupt, or, inside
    ``saving``, as soon as that has saved; at once where the process is compiling. Another, a second
    later or more, ends it at once.

    Args:
      alone: whether the process is there for this work, as a command's is. In that of others SIGINT
        ends the work by a KeyboardInterrupt and never the process, so that a compiler is waited
        for; the second one does not wait for what is saved. Nothing is heard in another thread than
        the main one, where Python has no handlers.

    Raises:
      SystemExit: with 75, when the process was told to stop.
      KeyboardInterrupt: when the work alone was.
    """
    if not alone and threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = _SIGNALS if alone else (signal.SIGTERM,)

    def leave(said: str) -> None:
        print(said, file=sys.stderr)
        if not alone:  # a command leaves at once by itself
            leave_with(INTERRUPTED)
        sys.exit(INTERRUPTED)

    _heard.clear()
    _ends.clear()
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    handlers = {number: signal.getsignal(number) for number in (*_SIGNALS, _AGAIN)}
    # One that is None no Python has set, nor could set again.
    before = {number: handler for number, handler in handlers.items() if handler is not None}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: _again(lost, hook)
    woken = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ears, ends), daemon=True).start()
    try:
        for number in before:  # from here on they are heard
            signal.signal(number, functools.partial(_stop, ends))
        yield
    except KeyboardInterrupt:
        if not (alone or _ends.is_set()):
            raise
        leave(_SAVED)
    except Exception as error:
        if not (requested() and _is_of_a_stop(error)):
            raise
        if not (alone or _ends.is_set()):
            raise KeyboardInterrupt from error
        leave(_AT_ONCE)
    finally:
        if alone:
            atexit.register(_deafen)
        sys.unraisablehook = hook
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()
        mouth.close()  # which ends the thread


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Stands around work that asks ``requested`` again and again, and saves before it stops.

    Raises:
      KeyboardInterrupt: in the end, if it was told to stop.
    """
    _saves.set()
    _holds.set()
    try:
        yield
    finally:
        _holds.clear()
        _saves.clear()
    if requested():
        raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Stands, inside ``saving``, around work before which all is saved, if not yet written.

    Raises:
      KeyboardInterrupt: it was told to stop.
    """
    _holds.clear()
    try:
        if requested():
            raise KeyboardInterrupt
        yield
    finally:
        _holds.set()


def request() -> None:
    """Tells the program to stop, as a signal does inside ``saving``."""
    _requested.set()


def requested() -> bool:
    """Whether the program was told to stop."""
    return _requested.is_set()


def leave_with(code: int) -> None:
    """Ends the process, once it leaves, at once: others in it, such as XLA, would be waited for."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)


def was_stopped(code: int) -> bool:
    """Whether a process left with a code as one does that was told to stop.

    Who tells all processes of a machine may tell a child before its parent.
    """
    return code in (INTERRUPTED, *(-number for number in _SIGNALS))


def _is_of_a_stop(error: BaseException | None) -> bool:
    """Whether an error is what others made of a KeyboardInterrupt, as libraries of callbacks do."""
    while error is not None and not isinstance(error, KeyboardInterrupt | UserError):
        if "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


def _stop(ends: Sequence[int], number: int, frame: FrameType | None) -> None:
    first = not _requested.is_set() or number == _AGAIN
    # Of a signal that ends the process, the thread sees to the second one.
    insists = number == signal.SIGINT and number not in ends and _requested.age() > _ONE
    if number in ends:
        _ends.set()
    _heard.set()
    _requested.set()
    if insists or (first and not _holds.is_set()):
        raise KeyboardInterrupt


def _deafen() -> None:
    """All is done, and the process is leaving: a stop has nothing left to stop."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _again(lost: sys.UnraisableHookArgs, hook: Callable[[sys.UnraisableHookArgs], Any]) -> None:
    """Interrupts once more where Python drops it, as in callbacks of the garbage collector."""
    if lost.exc_type is KeyboardInterrupt:
        # A signal, and not _thread.interrupt_main: it wakes a main thread that sleeps, too.
        main = threading.main_thread().ident
        threading.Timer(_SOON, signal.pthread_kill, (main, _AGAIN)).start()
    else:
        hook(lost)


def _listen(ears: socket.socket, ends: Sequence[int]) -> None:
    """Waits for a signal; then for another stop, or until the time for saving is over."""
    with ears:
        if not _told(ears, ends):
            return
        began = time.monotonic()
        if not (_saves.is_set() or _heard.wait(_DEAF)):
            end()
        ears.settimeout(_GRACE)
        with contextlib.suppress(TimeoutError):
            while _told(ears, ends):
                if time.monotonic() > began + _ONE:
                    end()
            return
        end()


def _told(ears: socket.socket, ends: Sequence[int]) -> bool:
    """Waits until a signal says that the process ends; False if nobody listens any more.

    Other signals that something handles come this way, too.
    """
    while heard := ears.recv(1):
        if heard[0] in ends:
            return True
    return False


def end() -> None:
    """Ends the process at once, as one that was told to stop."""
    print(_AT_ONCE, file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
