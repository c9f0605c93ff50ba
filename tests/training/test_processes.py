"""Training in two processes: the same global batches, and the same losses, as in one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import commands
import jax
import numpy as np
import one_of_several
import pytest


@pytest.mark.slow
def test_two_processes_make_the_rows_that_they_hold_of_the_batches_of_one(tmp_path, within):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = [str(commands.ROOT / part) for part in ("", "tests", "tests/training")]
    environment = commands.environment() | {"PYTHONPATH": os.pathsep.join(paths)}
    outs = [tmp_path / f"{index}.npz" for index in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, one_of_several.__file__, address, "2", str(index), out],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, out in enumerate(outs)
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    results = [dict(np.load(out)) for out in outs]
    names = ("losses", "gathered", "tokens", "alike_losses", "alike_tokens")
    losses, gathered, tokens, alike, alike_tokens = (
        [result.pop(name) for result in results] for name in names
    )
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(*alike)
    assert results[0] and not set(results[0]) & set(results[1])  # each holds rows of its own

    batches, held = one_of_several.make_batches(), results[0] | results[1]
    for step in range(one_of_several.STEPS):
        for leaf, wanted in enumerate(jax.tree.leaves(batches[step])):
            rows = {
                int(k.split("/")[2]): v for k, v in held.items() if k.startswith(f"{step}/{leaf}/")
            }
            np.testing.assert_array_equal(np.concatenate([rows[r] for r in sorted(rows)]), wanted)
            assert len(rows) == 2
    # Each has read the examples of its own rows, and no others.
    half, steps = batches.rows // 2, range(one_of_several.STEPS)
    for mine, rows in zip(gathered, (np.arange(half), np.arange(half, 2 * half)), strict=True):
        ids = np.concatenate([batches.example_ids(step, rows).ravel() for step in steps])
        np.testing.assert_array_equal(mine, ids[ids >= 0])
    real = sum(int((batches[step].segments > 0).sum()) for step in steps)
    assert sum(tokens) == real and min(tokens) > 0
    assert sum(alike_tokens) == real  # rows that both hold are counted once
    for devices in (1, 2):
        _, said = one_of_several.train(devices)
        within(losses[0], np.array(said["losses"]))
        assert said["tokens"] == real
    within(alike[0], losses[0])
