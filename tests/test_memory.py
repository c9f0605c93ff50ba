"""A command that starts itself again: once, with the same arguments, under the same process id."""

import os
import platform
import subprocess
import sys

import pytest

GIVES_BACK = """
from jaxbert.memory import give_back
def resident():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1])
blocks = [bytes(20_000) for _ in range(10_000)]  # 200 MB, each too small for a mapping of its own
held = resident()
blocks = blocks[-1:]  # the last one keeps the heap from shrinking by itself
free = resident()
give_back()
print(held - free, free - resident())
"""

SCRIPT = """
import os, sys
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
from jaxbert.memory import use_huge_pages
use_huge_pages()
print("ran", flush=True)
sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux alone")
@pytest.mark.parametrize(
    ("given", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", None),
        ("glibc.malloc.hugetlb=1", None),
    ],
)
def test_a_command_starts_again_unless_the_tunable_is_set(tmp_path, given, after):
    script = tmp_path / "a script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": given} if given else {}
    command = [sys.executable, "-W", "error", str(script), "--config=x y", ""]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines = process.communicate()[0].splitlines()
    starts = [f"{process.pid} {['--config=x y', '']} {tunables}" for tunables in (given, after)]
    assert lines == [*starts[: 2 if after else 1], "ran"]
    assert process.returncode == 7


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library has no such function"
)
def test_memory_that_is_free_goes_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GIVES_BACK],
        env=os.environ | {"PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        check=True,
    )
    by_itself, given = map(int, done.stdout.split())
    assert by_itself < 20_000 and given > 150_000  # kB
