"""What the launch scripts have in common: the commands that run on other machines, and this one.

Python alone, without jaxbert, so that the machine that starts a run needs nothing installed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

INTERRUPTED = 75  # jaxbert's exit code for: saved, run the same command again
UNREACHED = 255  # ssh's for: no connection, or none any more
SHORT = 300.0  # seconds: a run that ends sooner has not gone on
TRIES = 3  # such runs, one after the other, before there is no next one

# A process of a run leaves its number in the folder of the checkout, which machines may share. A
# number is nobody's for ever: only what still is a training is told to stop.
_FILE = "run.$(hostname).pid"
_TRAINS = 'grep -qs train.py "/proc/$pid/cmdline"'
_STOP = (
    f'pid=$(cat "{_FILE}" 2>/dev/null); if [ -n "$pid" ] && {_TRAINS}; then '
    f'kill -TERM "$pid"; while {_TRAINS}; do sleep 1; done; fi'
)


def train_command(folder: str, python: str, words: Sequence[str]) -> str:
    """The shell command that trains on one machine; one that is left there is stopped first."""
    train = shlex.join([python, "train.py", *words])
    return f'{_enter(folder)} && {{ {_STOP}; echo $$ > "{_FILE}"; exec {train}; }}'


def stop_command(folder: str) -> str:
    """The shell command that tells training to save and to end, and waits until it has."""
    return f"{_enter(folder)} && {{ {_STOP}; }}"


def _enter(folder: str) -> str:
    """The shell command that goes to a folder of any name; a leading ~ is the home folder there."""
    first, slash, rest = folder.partition("/")
    if first != "~":
        return f"cd {shlex.quote(folder)}"
    return f"cd ~{slash}{shlex.quote(rest) if rest else ''}"


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a script, and behind ``--`` those of train.py."""
    cut = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:cut]), list(argv[cut + 1 :])


def check_words(words: Sequence[str]) -> str | None:
    """What is wrong with the words behind ``--``: the flags of train.py; None if nothing is."""
    given = dict(word.partition("=")[::2] for word in words)
    if not given.get("--config") or not given.get("--workdir"):
        return "give train.py's flags behind --, each as --NAME=VALUE: --config and --workdir first"
    local = ("/home/", "/root/", "/tmp/", "/var/")
    workdir = given["--workdir"]
    if not workdir.startswith(("gs://", "/")) or workdir.startswith(local):
        return (
            f"--workdir={workdir} lies on a machine that may go; give a bucket (gs://...) or a "
            "folder of a file system that all machines mount (/mnt/...)"
        )
    return None


def call(command: Sequence[str], *, dry_run: bool, apart: bool = False) -> int:
    """Says a command and runs it; returns its exit code, 0 of one that is only said.

    Args:
      command: its words.
      dry_run: only say it.
      apart: from the terminal, whose Ctrl-C ends it otherwise.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    if dry_run:
        return 0
    return subprocess.run(command, check=False, start_new_session=apart).returncode


def until_done(train: Callable[[], int], lost: Callable[[int], bool]) -> int:
    """Trains until it is done: what was told to stop, or lost its machine, is started again.

    Args:
      train: starts it, waits for its end, and returns its exit code.
      lost: from an exit code, whether machines are gone; they are there again afterwards.

    Returns:
      0, or the exit code of a run that cannot go on, or has ended early three times on the end.
    """
    short = 0
    while True:
        began = time.monotonic()
        code = train()
        if code == 0:
            return 0
        if lost(code):
            short = 0
            print(f"machines are gone (exit code {code}): again", flush=True)
            continue
        short = short + 1 if time.monotonic() - began < SHORT else 1
        if code not in (INTERRUPTED, UNREACHED) or short >= TRIES:
            print(f"the run ended with {code}", file=sys.stderr)
            return code
        print(f"interrupted (exit code {code}): again", flush=True)
