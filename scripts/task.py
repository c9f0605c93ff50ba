"""A task of slurm.sh: runs a program by the same Python, and ends with its exit code, or 100 more.

srun ends with the highest code of its tasks, and one that fails ends the others with 75 (saved): so
100 is added where a program has failed. Slurm tells this process alone to stop or, by how it is set
up, the program as well.
"""

from __future__ import annotations

import signal
import subprocess
import sys


def main() -> None:
    """Runs the program that the command line has."""
    told: list[int] = []
    program = None

    def tell(number: int, _: object) -> None:
        told.append(number)
        if program is not None:
            program.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, tell)
    program = subprocess.Popen([sys.executable, *sys.argv[1:]])
    if told:  # before it was there
        program.terminate()
    code = program.wait()
    if code < 0:
        code = 128 - code  # as a shell has it
    sys.exit(code + 100 if 0 < code < 75 else code)


if __name__ == "__main__":
    main()
