"""What the processes of one run do together: agree, vote, wait for each other."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from jaxbert.errors import UserError
from jaxbert.launch import GONE, Group
from jaxbert.stopping import INTERRUPTED, leave_with

Found = TypeVar("Found")

_HEARTBEAT = 10  # seconds without a sign of life after which a process is taken to be gone
_TOGETHER = 60  # seconds in which all have to be there at the start
_LEAVING = 10  # seconds in which all have to have stopped
_LONG = 7 * 24 * 3600  # seconds that one may work while the others wait
_LOST = re.compile(
    r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|coordination|heartbeat", re.I
)
_turns = itertools.count()  # the same in all processes, which pass the same barriers


@contextlib.contextmanager
def joined(group: Group | None) -> Iterator[None]:
    """Stands around what a process does as one of several; does nothing for one by itself.

    Only process 0 prints to stdout. When one ends early, the others do, within 30 seconds.

    Args:
      group: the processes.

    Raises:
      UserError: they did not come together.
      SystemExit: with 75, when another one has ended.
    """
    if group is None:
        yield
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(
            group.coordinator,
            group.processes,
            group.process,
            initialization_timeout=_TOGETHER,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_LEAVING,
        )
    except (RuntimeError, ValueError) as error:
        where = group.coordinator or "--distributed"
        fix = "start all of them within a minute, each with its own --process, with one --processes"
        raise UserError(f"the processes did not come together ({error})", where, fix) from error
    if not first():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not lost(error):
            leave_with(1)
            raise
        print(GONE, file=sys.stderr)
        leave_with(INTERRUPTED)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # they were told, too, or are not
            barrier(_LEAVING, "leaving")
            if first():
                time.sleep(1)  # the others still hear the coordinator while they leave
        leave_with(INTERRUPTED)
        raise
    except UserError:
        leave_with(2)
        raise
    except Exception:
        leave_with(1)
        raise


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def first() -> bool:
    """Whether this is process 0, which alone writes what all share."""
    return jax.process_index() == 0


def lost(error: BaseException) -> bool:
    """Whether something went wrong because another process is gone."""
    known = isinstance(error, jax.errors.JaxRuntimeError) and count() > 1
    return known and bool(_LOST.search(str(error)))


def barrier(seconds: int = _LONG, name: str = "") -> None:
    """Waits until all processes are here, at the next barrier or at one that has a name."""
    if count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(  # type: ignore[misc]
            key=f"jaxbert_{name or next(_turns)}", timeout_ms=seconds * 1000
        )


def in_turn(work: Callable[[], Found]) -> Found:
    """Does something in process 0, then in the others, which find the files that it has left."""
    if first():
        found = work()
        barrier()
        return found
    barrier()
    return work()


def agree(value: Found) -> Found:
    """What process 0 has for a value, which JSON can hold."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    barrier()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    mine = np.zeros(size, np.uint8)
    if first():
        mine[:] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes())


def any_of(flag: bool) -> bool:
    """Whether a flag is up in any process."""
    if count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def total(number: int) -> int:
    """The sum of what every process has, below 2**31 in each."""
    if count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.sum(multihost_utils.process_allgather(np.int32(number)), dtype=np.int64))
