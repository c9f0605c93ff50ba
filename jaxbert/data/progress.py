"""How far long work is: a bar with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_SECONDS_BETWEEN_LINES = 10.0

Report = Callable[[str, int, int], None]  # (what is done, bytes done, bytes in all)


@contextlib.contextmanager
def show_progress() -> Iterator[Report]:
    """Gives what takes reports of the work, and shows them on stderr while it lasts."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, rich.progress.TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


def _lines() -> Report:
    begun: dict[str, tuple[float, int]] = {}
    said = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        start, first = begun.setdefault(what, (now, done))
        if now - said < _SECONDS_BETWEEN_LINES or done <= first:
            return
        said = now
        left = (now - start) / (done - first) * (total - done)
        line = f"{what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {left:,.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return report
