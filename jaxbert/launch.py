"""One process of several that train together: what it is told, and what stands beside it.

JAX's runtime aborts a process when another one of its group is gone, wherever Python is then. So
each is started by a small parent, which imports no JAX, passes on signals and output, and says in
one line what has happened.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from jaxbert.errors import UserError, UserErrors
from jaxbert.stopping import INTERRUPTED

_FLAGS = ("--coordinator", "--processes", "--process", "--distributed")
_LINES = 200  # of a child's last words that are kept
_CHILD = "JAXBERT_PARENT_PIPE"  # environment: the parent's end of it closes when the parent ends
_NATIVE = re.compile(r"[EWIF]\d{4} |RPC: /|\[Gloo\]|Additional GRPC error")  # not Python's
_PEER = re.compile(r"distributed service|coordination|heartbeat|another task|Gloo", re.I)
_FATAL = re.compile(r"F\d{4} |\*\*\* Check failure|Fatal Python error")
GONE = (
    "another process of this run is not there any more: run the same command again, in all of them"
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Which processes train together.

    Attributes:
      coordinator: HOST:PORT of process 0; None if JAX finds the group by itself.
      processes: how many there are.
      process: which one this is.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group("several processes (docs/processes.md)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", metavar="N", help="that train together")
    group.add_argument("--process", metavar="I", help="which one this is, from 0")
    group.add_argument("--distributed", action="store_true", help="as the cluster has it")


def read_group(flags: argparse.Namespace) -> Group | None:
    """What the flags say; None for a process by itself.

    Raises:
      UserErrors: with every flag that is missing or wrong.
    """
    texts = {name: getattr(flags, name) for name in ("coordinator", "processes", "process")}
    given = {name: text for name, text in texts.items() if text is not None}
    if flags.distributed and not given:
        return Group()
    if not given:
        return None
    fix = "give --coordinator=HOST:PORT --processes=N --process=I, or --distributed alone"
    errors = [UserError("it is missing", f"flag --{n}", fix) for n in texts if n not in given]
    if flags.distributed:
        errors = [UserError("it finds the group by itself", "flag --distributed", fix)]
    numbers = {n: int(t) for n, t in given.items() if n != "coordinator" and t.isdecimal()}
    for name in ("processes", "process"):
        if name in given and name not in numbers:
            errors.append(UserError(f"{given[name]!r} is no number", f"flag --{name}", fix))
    if not re.fullmatch(r"\S+:\d{1,5}", given.get("coordinator", "a:1")):
        errors.append(UserError("it is no HOST:PORT", "flag --coordinator", fix))
    if len(numbers) == 2 and not numbers["process"] < numbers["processes"]:
        what = f"there is no process {numbers['process']} of {numbers['processes']}"
        errors.append(UserError(what, "flag --process", "count from 0"))
    if errors:
        raise UserErrors(errors)
    return Group(given["coordinator"], numbers["processes"], numbers["process"])


def supervise(argv: Sequence[str]) -> None:
    """Runs this command in a child and leaves with its exit code, where it is one of several.

    Comes back at once in that child, and in a process by itself.

    Args:
      argv: of this command.

    Raises:
      SystemExit: with the child's exit code; with 75 where it was aborted because a peer is gone.
    """
    if pipe := os.environ.pop(_CHILD, ""):
        threading.Thread(target=_mourn, args=(int(pipe),), daemon=True).start()
        return
    if not any(word.partition("=")[0] in _FLAGS for word in argv):
        return
    theirs, mine = os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_CHILD: str(theirs)},
        pass_fds=(theirs,),
        stderr=subprocess.PIPE,
        # A terminal's Ctrl-C comes from here alone.
        start_new_session=True,
    )
    os.close(theirs)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    kept, hidden = _pass_on(child, quiet="--debug" not in argv)
    code = child.wait()
    os.close(mine)
    lost = code < 0 and any(_PEER.search(line) for line in kept)
    # It may have said so itself, while its runtime was about to abort.
    if lost or any(line.strip() == GONE for line in hidden):
        print(GONE, file=sys.stderr)
        code = INTERRUPTED
    elif code < 0:  # it is this one that has crashed
        sys.stderr.writelines(hidden)
    sys.exit(code if code >= 0 else 128 - code)


def _pass_on(child: subprocess.Popen[bytes], quiet: bool) -> tuple[list[str], list[str]]:
    """Hands on what a child says on stderr, without the runtime's own words if it shall be quiet.

    Returns:
      The last lines of all, and those among them that were not handed on.
    """
    assert child.stderr is not None
    kept = collections.deque[tuple[str, bool]](maxlen=_LINES)
    aborted = False
    for line in child.stderr:
        text = line.decode(errors="replace")
        aborted = aborted or bool(_FATAL.match(text))
        hides = quiet and (aborted or bool(_NATIVE.match(text)))
        kept.append((text, hides))
        if not hides:
            sys.stderr.write(text)
            sys.stderr.flush()
    return [text for text, _ in kept], [text for text, hides in kept if hides]


def _mourn(pipe: int) -> None:
    """Waits for the end of the parent, and stops this process as a signal would."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)
