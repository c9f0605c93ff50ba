"""A run on a slice of Cloud TPU VMs, by gcloud; machines that are taken away are made again.

    python scripts/tpu.py run NAME --zone=us-west4-a --type=v5litepod-16 --spot --queued -- \
        --config=configs/tinybert_general.py --workdir=gs://BUCKET/general

``run`` makes the slice, installs the checkout's last commit on every worker, trains until it is
done, and deletes the slice. The other commands are its parts. ``--dry-run`` says every command and
runs none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import remote

FOLDER = "jaxbert"  # on the workers, in the home folder
ARCHIVE = "jaxbert.tar.gz"
SETUP = (
    f"mkdir -p {FOLDER} && tar -xzf {ARCHIVE} -C {FOLDER} && cd {FOLDER} && "
    "{ command -v python3.11 >/dev/null || "
    "{ sudo apt-get -q update && sudo apt-get -qy install make python3.11-venv; }; } && "
    "make setup PYTHON=python3.11 VENV=.venv && .venv/bin/pip install -q --editable '.[tpu,gcs]'"
)
READY = ("READY", "ACTIVE")
GONE = ("PREEMPTED", "TERMINATED", "STOPPED", "FAILED", "SUSPENDING", "SUSPENDED")


class Slice:
    """One TPU slice.

    Args:
      flags: of the command line.
    """

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags = flags
        self._where = [f"--zone={flags.zone}"]
        self._where += [f"--project={flags.project}"] * bool(flags.project)

    def create(self) -> int:
        """Has the slice: asks for it where there is none, and waits until it is ready.

        What is left of one that was taken away is deleted first.
        """
        said = ""
        while (state := self.state()) not in READY:
            if state in GONE and (code := self.delete()):
                return code
            if not state and ((code := self._ask()) or self._flags.dry_run):
                return code
            if state != said:
                print(f"{self._flags.name}: {state or 'asked for'}", flush=True)
            said = state
            time.sleep(self._flags.poll)
        return 0

    def _ask(self) -> int:
        flags = self._flags
        kind, version = f"--accelerator-type={flags.type}", flags.version
        spot = ["--spot"] * flags.spot
        if flags.queued:
            more = [f"--node-id={flags.name}", kind, f"--runtime-version={version}", *spot]
            return self._gcloud("queued-resources", "create", more)
        return self._gcloud("tpu-vm", "create", [kind, f"--version={version}", *spot])

    def setup(self) -> int:
        """Installs the last commit of this checkout on every worker."""
        with tempfile.TemporaryDirectory() as folder:
            archive = str(Path(folder) / ARCHIVE)
            root = Path(__file__).parents[1]
            pack = ["git", "-C", str(root), "archive", "--format=tar.gz", "-o", archive, "HEAD"]
            if code := remote.call(pack, dry_run=self._flags.dry_run):
                return code
            copy = ["gcloud", "compute", "tpus", "tpu-vm", "scp", archive]
            copy += [f"{self._flags.name}:{ARCHIVE}", "--worker=all", *self._where]
            if code := remote.call(copy, dry_run=self._flags.dry_run):
                return code
        return self._ssh(self._flags.setup)

    def train(self) -> int:
        """Trains on all workers at once, and waits for the end."""
        words = ["--distributed", *self._flags.words]
        return self._ssh(remote.train_command(FOLDER, ".venv/bin/python", words))

    def stop(self) -> int:
        """Tells training to save and to end."""
        return self._ssh(remote.stop_command(FOLDER))

    def delete(self) -> int:
        """Gives the slice back."""
        if self._flags.queued:
            return self._gcloud("queued-resources", "delete", ["--force", "--quiet"])
        return self._gcloud("tpu-vm", "delete", ["--quiet"])

    def run(self) -> int:
        """The whole job, machines that are taken away made again."""
        if code := self._prepare():
            return code
        code = remote.until_done(self.train, self._lost)
        return code or (0 if self._flags.keep else self.delete())

    def state(self) -> str:
        """What Google says of it; empty if it says that there is none.

        Raises:
          SystemExit: it says neither, however often it is asked.
        """
        if self._flags.dry_run:
            return ""
        kind = ("queued-resources", "state.state") if self._flags.queued else ("tpu-vm", "state")
        command = self._command(kind[0], "describe", [f"--format=value({kind[1]})"])
        for _ in range(self._flags.patience):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and (state := done.stdout.strip()):
                return state
            if done.returncode and "NOT_FOUND" in done.stderr:
                return ""
            time.sleep(self._flags.poll)
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = said[0] if said else f"exit code {done.returncode}"
        sys.exit(
            f"gcloud does not say whether there is {self._flags.name} ({why}): if there is, it "
            "stays, and costs; run the same command again, or delete it"
        )

    def _prepare(self) -> int:
        """Has the slice, and the checkout on it; made again if it is taken away meanwhile."""
        failed = 0  # setups of a slice that stays: its ssh may come up later than it
        while True:
            if code := self.create():
                return code
            if not (code := self.setup()):
                return 0
            failed = failed + 1 if self.state() in READY else 0
            if failed >= self._flags.patience:
                print(
                    f"the setup failed ({code}): {self._flags.name} stays, and costs; run the "
                    "same command again, or delete it",
                    file=sys.stderr,
                )
                return code
            if failed:
                time.sleep(self._flags.poll)

    def _lost(self, code: int) -> bool:
        """Whether the slice was taken away while it trained; if so it is there again."""
        # Google may say it later than ssh does.
        for _ in range(self._flags.patience):
            if (state := self.state()) in GONE or not state:
                if failed := self._prepare():
                    sys.exit(failed)
                return True
            if code in (remote.INTERRUPTED, 2):  # jaxbert has said it itself
                return False
            time.sleep(self._flags.poll)
        return False

    def _ssh(self, command: str) -> int:
        return self._gcloud("tpu-vm", "ssh", ["--worker=all", f"--command={command}"])

    def _gcloud(self, kind: str, verb: str, more: list[str]) -> int:
        return remote.call(self._command(kind, verb, more), dry_run=self._flags.dry_run)

    def _command(self, kind: str, verb: str, more: list[str]) -> list[str]:
        return ["gcloud", "compute", "tpus", kind, verb, self._flags.name, *self._where, *more]


def main() -> None:
    """Does one of the commands, and leaves with its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ("run", "create", "setup", "train", "stop", "delete")
    parser.add_argument("command", choices=commands)
    parser.add_argument("name", help="of the slice")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="gcloud's own if not given")
    parser.add_argument("--type", default="v5litepod-8", help="the slice, as gcloud names it")
    parser.add_argument("--version", default="v2-alpha-tpuv5-lite", help="of the VM's software")
    parser.add_argument("--spot", action="store_true", help="cheaper, and taken away at any time")
    parser.add_argument("--queued", action="store_true", help="wait in Google's queue for it")
    parser.add_argument("--keep", action="store_true", help="do not delete it after the run")
    parser.add_argument("--setup", default=SETUP, metavar="COMMAND", help="what installs there")
    parser.add_argument("--poll", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--patience", type=int, default=4, help="polls, or setups, that may fail")
    parser.add_argument("--dry-run", action="store_true", help="say the commands, run none")
    mine, words = remote.split(sys.argv[1:])
    flags = parser.parse_args(mine, argparse.Namespace(words=words))
    if flags.command in ("run", "train") and (problem := remote.check_words(flags.words)):
        parser.error(problem)
    if flags.patience < 1:
        parser.error("--patience is 1 or more")
    if flags.words and flags.command not in ("run", "train"):
        parser.error(f"{flags.command} takes nothing behind --")
    sys.exit(getattr(Slice(flags), flags.command)())


if __name__ == "__main__":
    main()
