"""Being told to stop, wherever the signal falls."""

from __future__ import annotations

import gc
import os
import signal
import time

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
