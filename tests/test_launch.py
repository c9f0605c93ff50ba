"""The flags of one process of several."""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap

import commands
import pytest

from jaxbert import launch
from jaxbert.errors import UserError


def group(*words: str) -> launch.Group | None:
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)
    return launch.read_group(parser.parse_args(words))


def test_flags_say_which_process_of_which_group_this_is():
    assert group() is None
    assert group("--distributed") == launch.Group()
    words = ("--coordinator=host:1234", "--processes=4", "--process=3")
    assert group(*words) == launch.Group("host:1234", 4, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes=2"], ["flag --coordinator", "flag --process"]),
        (["--coordinator=h:1", "--processes=2", "--process=2"], ["there is no process 2 of 2"]),
        (["--coordinator=h:1", "--processes=two", "--process=-1"], ["'two' is no", "'-1' is no"]),
        (["--coordinator=h", "--processes=1", "--process=0"], ["it is no HOST:PORT"]),
        (["--distributed", "--process=1"], ["finds the group by itself, flag --distributed"]),
    ],
)
def test_flags_that_are_missing_or_wrong_are_all_named(words, said):
    with pytest.raises(UserError) as caught:
        group(*words)
    for line, part in zip(caught.value.lines, said, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("said", "end", "code", "line"),
    [
        ("F0000 a.cc:1] another task died; distributed service", "os.abort()", 75, launch.GONE),
        ("F0000 kernel.cc:1] Check failed: out of registers", "os.abort()", 134, None),
        # The runtime begins to abort while Python, which has found the peer gone, leaves.
        (f"F0000 client.cc:1] a heartbeat\n{launch.GONE}", "os._exit(75)", 75, launch.GONE),
        (launch.GONE, "os._exit(75)", 75, launch.GONE),
    ],
)
def test_an_end_is_told_as_what_it_is(said, end, code, line):
    """A process that ends as JAX's runtime makes it: for a peer that is gone, and for itself."""
    program = f"""
        import os, sys
        from jaxbert import launch
        launch.supervise(["--process=0"])
        print({said!r}, file=sys.stderr, flush=True)
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, f"{line or said}\n")
