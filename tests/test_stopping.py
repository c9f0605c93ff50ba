"""Being told to stop, wherever the signal falls."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
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


@pytest.mark.parametrize(("work", "code"), [("pass", 0), ("sys.exit(2)", 2)])
def test_a_stop_when_all_is_done_has_nothing_left_to_stop(work, code):
    """While Python is leaving, which takes JAX a second, be it after a refusal."""
    lines = [
        "import atexit, sys, time",
        "from jaxbert.stopping import resumable",
        "atexit.register(lambda: (print('leaving', flush=True), time.sleep(2)))",
        f"with resumable(): {work}",
    ]
    words = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=commands.ROOT) as process:
        assert process.stdout.readline() == b"leaving\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == code


def stopped(
    lines: list[str], *pauses: float, number: int = signal.SIGTERM, seconds: float = 30
) -> tuple[int, bytes, bytes]:
    """What becomes of a program that is told to stop once it is at work, and after each pause."""
    head = ["import time", "from jaxbert.stopping import requested, resumable, saving"]
    words = [sys.executable, "-c", "\n".join(head + lines)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, cwd=commands.ROOT) as process:
        assert process.stdout.readline() == b"at work\n"
        process.send_signal(number)
        for pause in pauses:
            time.sleep(pause)
            process.send_signal(number)
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
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
AT_ONCE = b"interrupted: what was saved last stands, run the same command again\n"
SAVED = b"interrupted and saved: run the same command again\n"


@pytest.mark.parametrize(("lines", "said"), [(SAVES, b"saved\n"), (CLEANS, b"cleaned\n")])
def test_signals_at_once_are_one_stop(lines, said):
    """As a machine tells its processes that shuts down, and their parents once more."""
    assert stopped(lines, 0.0, 0.1) == (75, said, SAVED)


def test_a_stop_within_the_handler_of_a_stop_waits_for_nothing():
    """One at each line of the handler and of all that it calls."""
    lines = [
        "import signal, sys, jaxbert.stopping",
        "seen, handler = set(), jaxbert.stopping._stop.__code__",
        "def trace(frame, event, _):",
        "  up = frame",
        "  while up and up.f_code is not handler: up = up.f_back",
        "  if up and (here := (frame.f_code, frame.f_lineno)) not in seen:",
        "    seen.add(here)",
        "    signal.raise_signal(signal.SIGTERM)",
        "  return trace",
        "with resumable(), saving():",
        "  sys.settrace(trace)",
        "  print('at work', flush=True)",
        "  while not requested(): time.sleep(0.01)",
        "  sys.settrace(None)",
        "  print(len(seen) > 3, flush=True)",
    ]
    assert stopped(lines) == (75, b"True\n", SAVED)


@pytest.mark.parametrize("made", ["raise RuntimeError('lost')", "raise OSError(e) from None"])
def test_what_a_library_makes_of_an_interruption_is_a_stop(made):
    lines = [
        "with resumable():",
        "  try: print('at work', flush=True); time.sleep(30)",
        f"  except KeyboardInterrupt as error: e = repr(error); {made}",
    ]
    assert stopped(lines) == (75, b"", AT_ONCE)


@pytest.mark.parametrize(("where", "event"), [("__enter__", "return"), ("__exit__", "call")])
def test_a_stop_on_the_threshold_is_one(where, event):
    """When the handlers are there, and what heeds them is not yet, or not any more, around us."""
    lines = [
        "import contextlib, signal, sys",
        "from jaxbert.cli.main import _leaving",
        f"code = contextlib._GeneratorContextManager.{where}.__code__",
        "def trace(frame, event, _):",
        f"  if frame.f_code is code and event == '{event}':",
        "    sys.settrace(None)",
        "    print('at work', flush=True)",
        "    time.sleep(30)",
        "  return trace",
        "with _leaving(True):",
        "  sys.settrace(trace)",
        "  with resumable(): pass",
    ]
    assert stopped(lines) == (75, b"", AT_ONCE)


def test_an_error_that_no_stop_has_made_is_one():
    lines = [
        "from jaxbert.errors import UserError",
        "with resumable():",
        "  try: print('at work', flush=True); time.sleep(30)",
        "  except KeyboardInterrupt: raise UserError('the disk is full', '', 'make room')",
    ]
    code, _, said = stopped(lines)
    assert code == 1 and b"the disk is full" in said


def test_a_stop_after_a_stop_ends_at_once():
    assert stopped(SAVES, 0.1, 1.6) == (75, b"", AT_ONCE)


@pytest.mark.parametrize("around", ["_leaving(True), resumable()", "resumable(alone=False)"])
def test_a_compiler_is_not_waited_for(monkeypatch, around):
    """Nor is the runtime taken apart that it is at work in; also of a script that calls us."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    lines = [
        "import sys, threading, jax, jax.numpy as jnp",
        "from jaxbert.cli.main import _leaving",
        "def deep(x):",
        "  for _ in range(1500): x = jnp.sort(jnp.sin(x @ x))",
        "  return x",
        "main = threading.get_ident()",
        "def watch():",
        "  seen = 0",
        "  while seen < 5:",
        "    time.sleep(0.05)",
        "    inside = sys._current_frames()[main].f_code.co_name.startswith('backend_compile')",
        "    seen = inside * (seen + 1)",
        "  print('at work', flush=True)",
        f"with {around}:",
        "  lowered = jax.jit(deep).lower(jnp.ones((8, 8)))",
        "  threading.Thread(target=watch, daemon=True).start()",
        "  lowered.compile()",
        "  print('compiled')",
    ]
    # A second is promised; the rest is for a machine that does other work, too.
    code, out, err = stopped(lines, seconds=5)
    assert (code, out) == (75, b"")
    assert err in (SAVED, AT_ONCE)  # jaxlib may look for signals itself while it compiles


# A program of others, in which the work is done; it looks whether its handlers are its own again.
OTHERS = [
    "import ctypes, signal, threading",
    "handlers = lambda: [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]",
    "before = handlers()",
    "try:",
    "  with resumable(alone=False):",
    "    {work}",
    "except KeyboardInterrupt: print('interrupted', flush=True)",
    "print('lives', handlers() == before)",
]
WORK = {
    "saves": "with saving():\n"
    "      print('at work', flush=True)\n"
    "      while not requested(): time.sleep(0.01)\n"
    "      time.sleep(2.5); print('saved', flush=True)",
    # As in a compiler: no Python runs in the main thread, and no signal wakes it.
    "deaf": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])\n"
    "    threading.Timer(0.5, print, ('at work',), {'flush': True}).start()\n"
    "    ctypes.CDLL(None).sleep(4)",
    "library": "try: print('at work', flush=True); time.sleep(30)\n"
    "    except KeyboardInterrupt: raise RuntimeError('lost')",
}
LIVES = b"interrupted\nlives True\n"


@pytest.mark.parametrize(
    ("number", "work", "pauses", "expected"),
    [
        (signal.SIGINT, "saves", (), (0, b"saved\n" + LIVES, b"")),
        (signal.SIGINT, "saves", (0.1,), (0, b"saved\n" + LIVES, b"")),
        (signal.SIGINT, "saves", (1.6,), (0, LIVES, b"")),
        (signal.SIGINT, "deaf", (), (0, LIVES, b"")),
        (signal.SIGINT, "library", (), (0, LIVES, b"")),
        (signal.SIGTERM, "saves", (), (75, b"saved\n", SAVED)),
        (signal.SIGTERM, "saves", (1.6,), (75, b"", AT_ONCE)),
        (signal.SIGTERM, "deaf", (), (75, b"", AT_ONCE)),
        (signal.SIGTERM, "library", (), (75, b"", AT_ONCE)),
    ],
)
def test_in_a_program_of_others_ctrl_c_ends_the_work_and_sigterm_the_process(
    number, work, pauses, expected
):
    lines = "\n".join(OTHERS).replace("{work}", WORK[work]).splitlines()
    assert stopped(lines, *pauses, number=number) == expected


def test_in_another_thread_nothing_is_heard():
    """Python would refuse to set a handler there."""
    found = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with resumable(alone=False):
            found.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
