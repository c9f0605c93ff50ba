"""Files: there whole or not at all, worked on by one process at a time, known by their hashes.

A path is one of a local file system, or of an object store: ``as_path`` makes both, and what is
other there is asked of ``objects`` here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jaxbert import objects
from jaxbert.errors import UserError
from jaxbert.objects import is_remote

SEAL = "jaxbert.sha256"  # of a folder; `sha256sum -c` reads it, too
_MAX_SEAL = 1 << 16  # bytes
_MAX_JSON = 1 << 24  # bytes


def as_path(text: str | os.PathLike[str]) -> Path:
    """The path that a user means: local, or of an object store (``gs://``).

    Raises:
      UserError: what speaks to the store is not installed, or it is a store of another kind.
    """
    if is_remote(text):
        return objects.remote_path(os.fspath(text))
    if "://" in os.fspath(text):
        fix = "copy it to this machine, or to gs://"
        raise UserError("of object stores only gs:// is known", os.fspath(text), fix)
    return Path(text)


def local_path(text: str) -> Path:
    """The local path that a user means, for what can be nowhere else.

    Raises:
      UserError: it is that of an object store.
    """
    if is_remote(text):
        fix = "give a folder of this machine, and copy what lies there"
        raise UserError("no object store is read or written here", text, fix)
    return Path(text)


def absolute(path: Path) -> Path:
    """The path that does not depend on where the process stands."""
    return path if is_remote(path) else path.absolute()


def fetched(folder: Path) -> Path:
    """The folder itself, or a copy on this machine of one of an object store.

    Raises:
      UserError: there is nothing, or it cannot be copied.
    """
    return objects.fetch(folder) if is_remote(folder) else folder


def scratch(folder: Path) -> Path:
    """The folder itself, or the one of this machine for what is made again elsewhere."""
    return objects.scratch_folder(folder) if is_remote(folder) else folder


def kept_folder(workdir: Path, chosen: str = "") -> Path:
    """Where runs keep what can be made again, such as tokenised text and compiled programs.

    Args:
      workdir: of a run; by default it is ``.jaxbert`` beside it.
      chosen: another folder; so is ``$JAXBERT_CACHE``.
    """
    named = chosen or os.environ.get("JAXBERT_CACHE")
    beside = scratch(workdir).parent / ".jaxbert"
    return local_path(named).expanduser() if named else beside


def is_whole(folder: Path) -> bool:
    """Whether a folder that is sealed as it is written is there, with all of its files."""
    return (folder / SEAL).is_file() if is_remote(folder) else folder.is_dir()


def remove_tree(folder: Path) -> None:
    """Removes a folder and all in it, as far as that can be done."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        objects.remove(folder)


def move_tree(folder: Path, to: Path) -> None:
    """Gives a folder another name, in the place of what has it.

    Raises:
      OSError: it cannot be moved.
    """
    if is_remote(folder):
        objects.move(folder, to)
        return
    shutil.rmtree(to, ignore_errors=True)
    to.parent.mkdir(exist_ok=True)
    folder.rename(to)


def free_bytes(folder: Path) -> int | None:
    """Bytes that are free where a folder lies; None where nothing says how many."""
    return None if is_remote(folder) else shutil.disk_usage(folder).free


def temporary(path: Path) -> Path:
    """A name beside a file, for what is to get its name: hidden, and of no other file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def check_writable(folder: Path) -> None:
    """Raises an OSError unless files can be made in a folder; an object store is not asked."""
    if not is_remote(folder):
        with tempfile.TemporaryFile(dir=folder):
            pass


def unwritable(path: Path, error: OSError) -> UserError:
    """What a user is told of a place that a command cannot write to."""
    return UserError(f"cannot write there: {error}", str(path), "give another")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[str]]:
    """Gives a text file that gets its name, in the place of an older one, once it is written.

    Args:
      path: the name; its folder is there.

    Raises:
      OSError: it cannot be written; nothing is left of it then.
    """
    if is_remote(path):
        text = io.StringIO()
        yield text
        objects.put(path, text.getvalue().encode())
        return
    partial = temporary(path)
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(lock: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds what a lock file stands for while it is worked on.

    The system lets go of it when a process ends, however that ends: a file that is left blocks
    nobody. In an object store it is a lease (``objects.hold``).

    Args:
      lock: the file, made with its folders, and removed in the end; it says which process holds
        it (``holder``).
      wait: called once if another process holds it, which is then waited for.

    Raises:
      BlockingIOError: another process holds it, and there is no `wait`.
      OSError: it cannot be written.
    """
    if is_remote(lock):
        with objects.hold(lock, wait):
            yield
        return
    with _locked(lock, wait) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def holder(lock: Path) -> str:
    """The process that holds a lock; empty if it may just have begun, or have ended."""
    if is_remote(lock):
        return objects.holder(lock)
    try:
        return lock.read_text(encoding="utf-8")
    except OSError:
        return ""


def _locked(lock: Path, wait: Callable[[], None] | None) -> IO[str]:
    """The lock file, open and locked; made anew if whoever held it has removed it."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            file = stack.enter_context(lock.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise
                wait()
                wait = _nothing
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                stack.pop_all()
                return file


def read_object(path: Path, fix: str, most: int = _MAX_JSON) -> dict[str, Any]:
    """Reads a JSON object that anyone may have written.

    Args:
      path: the file.
      fix: what to do where it is none.
      most: bytes that such a file may have.

    Raises:
      UserError: it is not there, larger, not JSON (nested too deeply, a number of too many digits
        or half of a surrogate pair among it), or not an object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            what = f"larger than {most >> 20} MiB, which no such file is"
            raise UserError(what, str(path), fix)
        found = json.loads(content.decode())  # of bytes it would take half a surrogate pair
        if b"\\ud" in content.lower():  # no text that can be written again
            json.dumps(found, ensure_ascii=False).encode()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", str(path), fix) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a JSON file ({error})", str(path), fix) from error
    if not isinstance(found, dict):
        what = f"a JSON {type(found).__name__} instead of an object"
        raise UserError(what, str(path), fix)
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(content: Mapping[str, Any]) -> str:
    """JSON of a content and of its own SHA-256."""
    return json.dumps({"content": content, "sha256": _digest(content)})


def unsealed(text: str) -> dict[str, Any] | None:
    """The content that ``sealed`` was given, None if it is not that.

    Raises:
      ValueError, KeyError, TypeError, RecursionError: it is no such text.
    """
    record = json.loads(text)
    content, wanted = record["content"], record["sha256"]
    return content if _digest(content) == wanted else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, names: Sequence[str]) -> None:
    """Writes the hashes of files of a folder beside them, for ``check_seal``.

    Raises:
      OSError: a file cannot be read, or the seal not be written.
    """
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in sorted(names)]
    with whole(folder / SEAL) as file:
        file.writelines(lines)


def read_seal(folder: Path, fix: str) -> dict[str, str]:
    """The files of a folder that was sealed, and the SHA-256 of each; none without a seal.

    Raises:
      UserError: the seal cannot be read, or is none.
    """
    path = folder / SEAL
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SEAL + 1).decode()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", str(path), fix) from error
    # Plain names: a seal must not make anyone read files elsewhere.
    found = re.findall(r"^([0-9a-f]{64})  ([\w][\w.-]*)\n", text, re.MULTILINE)
    if not found or "".join(f"{sha256}  {name}\n" for sha256, name in found) != text:
        raise UserError("it is no list of SHA-256 and names", str(path), fix)
    return {name: sha256 for sha256, name in found}


def check_seal(folder: Path, fix: str) -> None:
    """Checks that the files of a folder are what they were when it was sealed, if it was.

    Args:
      folder: where they lie; nothing is checked without a seal.
      fix: what to do if one is not.

    Raises:
      UserError: naming the first file that is gone or another, or the seal if that is none.
    """
    for name, sha256 in read_seal(folder, fix).items():
        try:
            actual = file_sha256(folder / name)
        except OSError as error:
            raise UserError(f"cannot be read ({error})", str(folder / name), fix) from error
        if actual != sha256:
            what = f"the file is not what was written: SHA-256 {actual} instead of {sha256}"
            raise UserError(what, str(folder / name), fix)


def _nothing() -> None:
    """What is said the second time."""


def size_text(count: int) -> str:
    """Bytes, for people; 1 MB = 10^6 bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
