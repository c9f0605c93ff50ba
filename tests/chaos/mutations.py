"""What happens to files on disks: flipped bits, lost ends, lost contents, lost files."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator
from pathlib import Path


def mutants(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Yields what a file may become: the fault's name and the content, None if it is gone."""
    good = path.read_bytes()
    if good:
        rng = random.Random(zlib.crc32(path.name.encode()) + len(good))
        places = {0, 7, len(good) // 3, len(good) // 2, len(good) * 3 // 4, len(good) - 1}
        places |= {rng.randrange(len(good)) for _ in range(4)}
        for at in sorted(place for place in places if place < len(good)):
            # Low bits turn one digit or letter into another, which still reads well.
            bit = rng.choice((0x01, 0x02, 0x10, 0x80))
            yield "flipped bit in", good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :]
        yield "truncated file of", good[: len(good) // 2]
        yield "truncated file of", good[:-1]
        yield "emptied file of", b""
    yield "removed file of", None


@contextlib.contextmanager
def mutated(path: Path, content: bytes | None) -> Iterator[None]:
    """Gives a file another content, or takes it away, and puts it back in the end."""
    good = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.write_bytes(good)


def files_of(folder: Path) -> list[Path]:
    """The files of a folder and of those in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
