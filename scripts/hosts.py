"""A run on several machines with GPUs, by ssh; one that was told to stop is started again.

    python scripts/hosts.py host0 host1 --folder=/mnt/shared/jaxbert -- \
        --config=configs/tinybert_general.py --workdir=/mnt/shared/general

One process a machine, with all of its GPUs; the checkout with its environment lies in one folder
that all of them mount, or in the same place on each. Ctrl-C tells the run to save and to end.
``--dry-run`` says every command and runs none.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import IO

import remote

# A machine that goes without a word is known to be gone after a minute.
OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=30",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
)


class Hosts:
    """Machines that train together.

    Args:
      flags: of the command line.
    """

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags = flags
        self.told = False  # whether the run was told to stop

    def train(self) -> int:
        """Trains on all machines at once; the exit code that says most of what has happened."""
        names, running = self._flags.hosts, []
        for index, host in enumerate(names):
            group = [f"--coordinator={names[0].rpartition('@')[2]}:{self._flags.port}"]
            group += [f"--processes={len(names)}", f"--process={index}"]
            words = [*self._flags.words, *group]
            command = self._ssh(
                host, remote.train_command(self._flags.folder, self._flags.python, words)
            )
            print(f"$ {shlex.join(command)}", flush=True)
            if not self._flags.dry_run:
                # Ctrl-C comes from here, to one of them, which tells the others.
                process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
                assert process.stdout is not None
                reader = threading.Thread(target=_pass_on, args=(host, process.stdout))
                reader.start()
                running.append((process, reader))
        codes = [process.wait() for process, _ in running]
        for _, reader in running:
            reader.join()
        # A process that fails ends the others with 75: its own code is the reason.
        failed = [code for code in codes if code not in (0, remote.INTERRUPTED)]
        return failed[0] if failed else max(codes, default=0)

    def stop(self) -> None:
        """Tells the run to save and to end: one process, the first that is reached, tells all."""
        command = remote.stop_command(self._flags.folder)
        for host in self._flags.hosts:
            # Apart, so that a second Ctrl-C does not end it.
            code = remote.call(self._ssh(host, command), dry_run=self._flags.dry_run, apart=True)
            if code == 0:
                return
        print("no host was told to stop: try it again", file=sys.stderr, flush=True)

    def _ssh(self, host: str, command: str) -> list[str]:
        options = [word for option in OPTIONS for word in ("-o", option)]
        return ["ssh", *options, host, command]


def _pass_on(host: str, lines: IO[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{host}: {line}")
        sys.stdout.flush()


def main() -> None:
    """Trains, and leaves with the run's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("hosts", nargs="+", help="as ssh knows them; the first one coordinates")
    parser.add_argument(
        "--folder", required=True, help="of the checkout, on each of them; ~/ is their home folder"
    )
    parser.add_argument("--python", default=".venv/bin/python", help="there, within the folder")
    parser.add_argument("--port", type=int, default=8476, help="of the first one, for the others")
    parser.add_argument("--dry-run", action="store_true", help="say the commands, run none")
    mine, words = remote.split(sys.argv[1:])
    flags = parser.parse_args(mine, argparse.Namespace(words=words))
    if problem := remote.check_words(flags.words):
        parser.error(problem)
    hosts = Hosts(flags)

    def stop(number: int, frame: FrameType | None) -> None:
        hosts.told = True
        threading.Thread(target=hosts.stop).start()  # each time: the last one may have missed

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)

    def train() -> int:
        code = hosts.train()
        if hosts.told:  # whatever the code: a connection may have been cut meanwhile
            sys.exit(code)
        return code

    sys.exit(remote.until_done(train, lambda code: False))


if __name__ == "__main__":
    main()
