"""A command that starts itself again: once, with the same arguments, under the same process id."""

import os
import subprocess
import sys

import pytest

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
