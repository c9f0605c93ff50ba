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
