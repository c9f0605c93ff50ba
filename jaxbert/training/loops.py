"""Event loops that end what they have begun: for Orbax, which writes in loops of its own."""

from __future__ import annotations

import asyncio

_PATIENCE = 10.0  # seconds


class _Loop(asyncio.SelectorEventLoop):
    """Waits for its tasks before it closes.

    Orbax writes all leaves at once, and closes its loop when the first of them has failed. On a
    full disk the others fail a moment later, and TensorStore says of each that the loop is closed.
    """

    def close(self) -> None:
        if not (self.is_closed() or _runs_any()):
            self.run_until_complete(_rest())
        super().close()


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


def end_what_is_begun() -> None:
    """Has new event loops wait for their tasks, unless the program has chosen loops of its own."""
    if type(asyncio.get_event_loop_policy()) is asyncio.DefaultEventLoopPolicy:
        asyncio.set_event_loop_policy(_Policy())


async def _rest() -> None:
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=_PATIENCE)


def _runs_any() -> bool:
    """Whether a loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
