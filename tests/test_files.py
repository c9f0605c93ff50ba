"""Files in one piece, and one process at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import commands
import pytest

from jaxbert.errors import UserError
from jaxbert.files import SEAL, check_seal, hold, seal, whole

HOLDS = """
import sys, time
from pathlib import Path
from jaxbert.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    beside = {name: tmp_path / name for name in ("a.partial", "a.json.partial", "a.part")}
    for other in beside.values():
        other.write_text("a user's")
    with whole(path) as file:
        file.write("one")
    with pytest.raises(ZeroDivisionError), whole(path) as file:
        file.write(str(1 / 0))
    assert path.read_text() == "one"
    assert {other.read_text() for other in beside.values()} == {"a user's"}
    assert sorted(tmp_path.iterdir()) == sorted([path, *beside.values()])


def test_what_a_process_holds_is_free_when_it_is_killed(tmp_path):
    lock = tmp_path / "folder" / "lock"
    words = [sys.executable, "-c", HOLDS, str(lock)]
    with subprocess.Popen(words, cwd=commands.ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), hold(lock):
            pass
        assert lock.is_file()
        process.kill()
    said: list[str] = []
    with hold(lock, lambda: said.append("waits")):
        assert lock.is_file()
    assert not said and not lock.exists()


def test_those_who_wait_say_so_once_and_hold_it_one_after_the_other(tmp_path):
    lock, inside, most, said = tmp_path / "lock", 0, [], []
    asked = threading.Semaphore(0)

    def wait() -> None:
        said.append("waits")
        asked.release()

    def work() -> None:
        nonlocal inside
        with hold(lock, wait):
            inside += 1
            most.append(inside)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    with hold(lock):
        for thread in threads:
            thread.start()
        for _ in threads:
            asked.acquire()
    for thread in threads:
        thread.join()
    assert most == [1] * 8 and said == ["waits"] * 8 and not lock.exists()


def test_a_seal_tells_of_each_file_that_is_gone_or_another(tmp_path):
    for name in ("a", "b.json"):
        (tmp_path / name).write_text(name)
    check_seal(tmp_path, "never seen")  # a folder without one
    seal(tmp_path, ["a", "b.json"])
    check_seal(tmp_path, "never seen")
    for change in (lambda path: path.write_text("c"), Path.unlink):
        change(tmp_path / "b.json")
        with pytest.raises(UserError, match=r"b\.json; write it anew"):
            check_seal(tmp_path, "write it anew")


@pytest.mark.parametrize(
    "text", ["", "0\n", f"{'0' * 64}  ../a\n", f"{'0' * 64}  /dev/zero\n", "\x00"]
)
def test_a_seal_names_files_beside_it_and_nothing_else(text, tmp_path):
    (tmp_path / SEAL).write_text(text)
    with pytest.raises(UserError, match="no list of SHA-256 and names"):
        check_seal(tmp_path, "")
