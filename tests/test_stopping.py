"""Being told to stop, wherever the signal falls."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

import commands
import pytest

from jaxbert.stopping import resumable


def test_an_interruption_that_python_drops_comes_again(capsys):
    """A signal within a callback of the garbage collector, such as JAX has one."""

    def callback(phase: str, info: dict) -> None:
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # here the handler runs, and what it raises goes nowhere

    with pytest.raises(SystemExit) as caught, resumable():
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(20)
        pytest.fail("the interruption was lost")
    assert caught.value.code == 75
    assert capsys.readouterr().err == "interrupted and saved: run the same command again\n"


def test_other_signals_and_errors_are_left_to_others():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with resumable():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1.2)  # longer than the main thread may be deaf
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def test_a_stop_when_all_is_done_has_nothing_left_to_stop():
    """While Python is leaving, which takes JAX a second."""
    lines = [
        "import atexit, time",
        "from jaxbert.stopping import resumable",
        "atexit.register(lambda: (print('leaving', flush=True), time.sleep(2)))",
        "with resumable(): pass",
    ]
    words = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=commands.ROOT) as process:
        assert process.stdout.readline() == b"leaving\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def stopped(lines: list[str], *pauses: float) -> tuple[int, bytes, bytes]:
    """What becomes of a program that is told to stop once it is at work, and after each pause."""
    head = ["import time", "from jaxbert.stopping import requested, resumable, saving"]
    words = [sys.executable, "-c", "\n".join(head + lines)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, cwd=commands.ROOT) as process:
        assert process.stdout.readline() == b"at work\n"
        process.send_signal(signal.SIGTERM)
        for seconds in pauses:
            time.sleep(seconds)
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    return process.returncode, out, err


SAVES = [
    "with resumable(), saving():",
    "  print('at work', flush=True)",
    "  while not requested(): time.sleep(0.01)",
    "  time.sleep(3)",
    "  print('saved', flush=True)",
]
CLEANS = [
    "with resumable():",
    "  try: print('at work', flush=True); time.sleep(30)",
    "  finally: time.sleep(0.5); print('cleaned', flush=True)",
]
SAVED = b"interrupted and saved: run the same command again\n"


@pytest.mark.parametrize(("lines", "said"), [(SAVES, b"saved\n"), (CLEANS, b"cleaned\n")])
def test_signals_at_once_are_one_stop(lines, said):
    """As a machine tells its processes that shuts down, and their parents once more."""
    assert stopped(lines, 0.0, 0.1) == (75, said, SAVED)


def test_a_stop_after_a_stop_ends_at_once():
    at_once = b"interrupted: what was saved last stands, run the same command again\n"
    assert stopped(SAVES, 0.1, 1.6) == (75, b"", at_once)
