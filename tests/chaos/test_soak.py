"""One long run, struck by random faults again and again: its bits are those of an unbroken one."""

from __future__ import annotations

import collections
import json
import random
import signal
import time

import pytest
from mutations import files_of
from stages import Given, Struck, assert_same_run, same_run

pytestmark = pytest.mark.chaos
STEPS = 20  # a fault: more than a process makes before it is struck
FAULTS = {"SIGKILL": 6, "SIGTERM": 2, "SIGINT": 1, "flipped bit": 1}  # their weights


def strike(struck: Struck, fault: str) -> None:
    """Does to a process what a fault does, and waits for its end."""
    if fault in ("SIGTERM", "SIGINT"):
        struck.signal(signal.Signals[fault])
        code, said = struck.end(30)
        assert code == 75, said
    else:
        assert struck.kill()


def test_a_long_run_ends_with_the_same_bits_whatever_befalls_it(
    request, given: Given, tmp_path, tally
):
    count = request.config.getoption("--soak", 0)
    if not count:
        pytest.skip("long: give --soak=FAULTS")
    more = {"general__steps": STEPS * count, "general__checkpoint_every": 5, "log_every": 5}
    whole, run = given.general(tmp_path / "whole", **more), given.general(tmp_path / "run", **more)
    rng, faults = random.Random(count), collections.Counter[str]()
    while faults.total() < count:
        fault = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
        with run.start() as struck:
            # While it trains; a tenth of all are killed at any moment since the start.
            if rng.random() < 0.1:
                fault = "SIGKILL"
                time.sleep(rng.uniform(0, 8))
            elif struck.wait_for(lambda struck=struck: " · loss " in struck.said):
                time.sleep(rng.uniform(0, 1))
            if struck.process.poll() is not None:
                break
            strike(struck, fault)
        # By their numbers: what a kill has left half written has another name.
        saved = {int(p.name): p for p in run.workdir.glob("checkpoints/*/*") if p.name.isdigit()}
        if fault == "flipped bit" and saved:
            newest = files_of(saved[max(saved)])
            path = rng.choice([each for each in newest if each.stat().st_size])
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        faults[fault] += 1
    last = (run.workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["step"] >= count, "it has hardly gone on between the faults"
    for each in (run, whole):
        with each.start() as struck:
            code, said = struck.end(3_600)
            assert code == 0, said
    equal = same_run(run.workdir, whole.workdir)
    for fault, times in faults.items():
        tally(f"soak: {fault}").count(equal, silent=not equal, times=times)
    print(json.dumps(faults), run.hash, whole.hash)
    assert_same_run(run.workdir, whole.workdir)
    assert faults.total() == count, faults
