"""Object stores: what is other there than in the folders of a local file system.

A path that begins with ``gs://`` is one of ``etils.epath``, which is read, listed and written like
one of ``pathlib``. An object is written whole or not at all, and nothing can be renamed, appended
to or locked: what stands in the place of these is here. What weakens by that is written down in
docs/reliability.md.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxbert.errors import ERROR_PREFIX, UserError

SCHEME = "gs://"
LEASE = 60.0  # seconds without a sign of life after which a folder is taken over
BEAT = 10.0  # seconds between two signs of life
_SOON = 20.0  # seconds in which a store answers, or is out of reach
_CLIENTS = ("aiohttp", "gcsfs", "google", "requests", "urllib3")  # what speaks to a store


class StoreError(OSError):
    """An object store does not do what it is asked."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in an object store."""
    return os.fspath(path).startswith(SCHEME)


def remote_path(text: str) -> Path:
    """The path of an object, or of all whose names begin with it and a slash.

    It has what this package uses of ``pathlib.Path``; it is none.

    Raises:
      UserError: what speaks to the store is not installed.
    """
    os.environ.setdefault("EPATH_USE_TF", "false")  # one client, whatever else is installed
    try:
        import fsspec.config
        import gcsfs  # noqa: F401
        from etils import epath
    except ImportError as error:
        fix = 'pip install "jaxbert[gcs]"'
        raise UserError(f"{error.name} is not installed", text, fix) from error
    # Others write there, too: what was listed before is no answer.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return cast(Path, epath.Path(text))


def reach(path: Path) -> None:
    """Checks that a store answers.

    Raises:
      UserError: there is no such bucket, it may not be listed, or nobody answers.
    """
    try:
        from google.cloud.storage.retry import DEFAULT_RETRY

        soon = DEFAULT_RETRY.with_timeout(_SOON)
        next(iter(_blobs(path, max_results=1, timeout=_SOON, retry=soon)), None)
    except Exception as error:  # of google.auth, google.cloud, requests: they share no class
        said = str(error).partition("\n")[0] or type(error).__name__
        fix = "check the name of the bucket, the network and who you are (gcloud auth)"
        raise UserError(f"the object store does not answer: {said}", str(path), fix) from error


def cache_folder() -> Path:
    """Where this machine keeps what can be had again: ``$JAXBERT_CACHE``."""
    return Path(os.environ.get("JAXBERT_CACHE") or "~/.cache/jaxbert").expanduser()


def scratch_folder(folder: Path) -> Path:
    """The local folder that stands for a remote one, for what only this machine needs.

    Raises:
      UserError: it cannot be written.
    """
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    return _writable(cache_folder() / "remote" / name)


def _writable(folder: Path) -> Path:
    """A folder of this machine's, made and found to be one that can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        what = f"what this machine keeps cannot be written: {error.strerror}"
        fix = "set JAXBERT_CACHE to a folder that can be written"
        raise UserError(what, str(folder), fix) from error


def put(path: Path, content: bytes) -> None:
    """Writes an object: all of it at once, in the place of an older one.

    Raises:
      OSError: it cannot be written.
    """
    with _failures():
        _blob(path).upload_from_string(content, "application/octet-stream")


def send(folder: Path, to: Path, last: str) -> None:
    """Writes the files of a local folder to a remote one, in the place of what was there.

    Args:
      folder: of files alone.
      to: the remote one.
      last: the file that says that all are there: gone first, written last.

    Raises:
      OSError: one cannot be read or written.
    """
    names = sorted(path.name for path in folder.iterdir())
    with _failures():
        for blob in sorted(_blobs(to), key=lambda blob: not blob.name.endswith(f"/{last}")):
            if blob.name.rpartition("/")[2] not in names or blob.name.endswith(f"/{last}"):
                blob.delete()
        for name in sorted(names, key=lambda name: name == last):
            _blob(to / name).upload_from_filename(str(folder / name))


def fetch(folder: Path) -> Path:
    """A copy of a remote folder on this machine, known by what the store says of its objects.

    Each is held against the checksum of the store while it is copied; a copy that is there
    already is taken if no object has changed.

    Raises:
      UserError: there is nothing, or it cannot be copied.
    """
    with _copying(str(folder)):
        return _copy(folder, list(_blobs(folder)))


def fetch_files(pattern: str) -> list[Path]:
    """Copies on this machine of the objects that a pattern matches, sorted by their names.

    Raises:
      UserError: they cannot be copied.
    """
    bucket, _, rest = pattern.removeprefix(SCHEME).partition("/")
    top = remote_path(f"{SCHEME}{bucket}")
    reach(top)
    found = {str(path) for path in top.glob(rest)}
    if not found:
        return []
    with _copying(pattern):
        blobs = [blob for blob in _blobs(top, _fixed(rest)) if f"{top}/{blob.name}" in found]
        folder = _copy(top, blobs)
    return sorted(folder / blob.name for blob in blobs)


@contextlib.contextmanager
def _copying(what: str) -> Iterator[None]:
    """Says in one line what is in the way of a copy."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # as in `reach`
        said = f"it cannot be copied to this machine: {error}"
        raise UserError(said, what, "run the same command again") from error


def _fixed(pattern: str) -> str:
    """What stands before the first wildcard."""
    ends = [pattern.find(wildcard) for wildcard in "*?[" if wildcard in pattern]
    return pattern[: min(ends, default=len(pattern))]


def _copy(folder: Path, blobs: list[Any]) -> Path:
    """Copies objects to where their names below a folder and what they hold say."""
    if not blobs:
        raise UserError("there is no such folder", str(folder), "give one that is there")
    prefix = _prefix(folder)
    facts = [[blob.name, blob.size, blob.generation, blob.md5_hash] for blob in blobs]
    key = hashlib.sha256(json.dumps([str(folder), facts]).encode()).hexdigest()[:32]
    copy = cache_folder() / "copies" / key
    for blob in blobs:
        inside = blob.name.removeprefix(prefix)
        if inside.startswith("/") or ".." in inside.split("/"):  # anyone may have given it
            what = f"an object has the name {blob.name!r}, which is that of no file in a folder"
            raise UserError(what, str(folder), "remove it, or give another folder")
    sizes = {copy / blob.name.removeprefix(prefix): blob.size for blob in blobs}
    if all(path.is_file() and path.stat().st_size == size for path, size in sizes.items()):
        return copy
    partial = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=_writable(copy.parent)))
    try:
        for blob in blobs:
            path = partial / blob.name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(path), if_generation_match=blob.generation)
            _check_md5(path, blob.md5_hash)
        shutil.rmtree(copy, ignore_errors=True)  # which was damaged
        try:
            partial.rename(copy)
        except OSError:
            if not copy.is_dir():  # else another process was faster, with the same files
                raise
        return copy
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_md5(path: Path, wanted: str | None) -> None:
    """Raises an OSError unless a copy is what the store has; a composed object has no MD5."""
    with path.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
    if wanted not in (None, found):
        raise OSError(f"{path.name} is not what was read: MD5 {found} instead of {wanted}")


def move(folder: Path, to: Path) -> None:
    """Copies the objects of a folder into another, and removes them then; not at once.

    Raises:
      OSError: one cannot be copied or removed.
    """
    remove(to)
    with _failures():
        blobs, prefix = list(_blobs(folder)), _prefix(folder)
        for blob in blobs:
            name = _prefix(to) + blob.name.removeprefix(prefix)
            blob.bucket.copy_blob(blob, blob.bucket, name)
        for blob in blobs:
            blob.delete()


def remove(folder: Path) -> None:
    """Removes the objects of a folder, if there are any; not at once.

    Raises:
      OSError: one cannot be removed.
    """
    with _failures():
        for blob in list(_blobs(folder)):
            blob.delete()


class _Owner(NamedTuple):
    """Who holds a folder.

    Attributes:
      process: for people: its number and its machine.
      machine: this start of this machine, and the space that its process numbers are of.
      number: of the process there.
      token: of this holding alone.
    """

    process: str
    machine: str
    number: int
    token: str


@contextlib.contextmanager
def hold(lock: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds what an object stands for, by writing and renewing it.

    The object has its owner's token. It is made only where there is none, renewed every ``BEAT``
    seconds and removed in the end, each under the condition that it is still the generation that
    this owner wrote. Who finds another's takes it over, under the like condition, where that
    process was on this machine and is gone, or once nobody has renewed it for ``LEASE`` seconds of
    waiting. An owner that cannot renew it ends its process before others may take it over.

    Args:
      lock: the object.
      wait: called once if another process holds it, which is then waited for.

    Raises:
      BlockingIOError: another process holds it and renews it, and there is no `wait`.
      OSError: it cannot be written.
    """
    machine = _machine()
    process = f"{os.getpid()} on {socket.gethostname()}"
    owner = _Owner(process, machine, os.getpid(), uuid.uuid4().hex)
    content = json.dumps(owner._asdict())
    with _failures():
        generation = _take(lock, content, machine, wait)
    done = threading.Event()
    beats = threading.Thread(target=_renew, args=(lock, content, generation, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join(BEAT)  # one that is late renews nothing: it has the condition that it was there
        with contextlib.suppress(OSError), _failures():
            text, now = _read(lock)
            if text == content:
                _blob(lock).delete(if_generation_match=now)


def holder(lock: Path) -> str:
    """The process that holds a folder, and its machine; empty if that cannot be read."""
    try:
        return str(json.loads(lock.read_text(encoding="utf-8"))["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _take(lock: Path, content: str, machine: str, wait: Callable[[], None] | None) -> int:
    """Writes an owner's content once nobody else's stands there; the generation of it."""
    from google.api_core.exceptions import PreconditionFailed

    seen, since = 0, time.monotonic()
    while True:
        text, now = _read(lock)
        if text == content:  # it was written, and the answer was lost
            return now
        if now != seen:
            if seen and now and wait is None:
                raise BlockingIOError(f"{lock} is renewed")
            if not seen and now and not _gone(text, machine):
                said = f"{lock.parent} is held by {holder(lock) or 'somebody'}: waiting up to "
                print(f"{said}{LEASE:.0f} s for a sign of life", file=sys.stderr, flush=True)
            seen, since = now, time.monotonic()
            if now and wait is not None:
                wait()
                wait = _nothing
        if not now or _gone(text, machine) or time.monotonic() - since > LEASE:
            blob = _blob(lock)
            try:
                blob.upload_from_string(content, if_generation_match=now)
            except PreconditionFailed:  # another one was faster
                continue
            return int(blob.generation)
        time.sleep(min(1.0, BEAT / 4))


def _gone(text: str, machine: str) -> bool:
    """Whether an owner was a process of this machine that has ended."""
    try:
        owner = _Owner(**json.loads(text))
        return owner.machine == machine and not Path(f"/proc/{int(owner.number)}").exists()
    except (ValueError, TypeError):
        return False


def _renew(lock: Path, content: str, generation: int, done: threading.Event) -> None:
    """Writes an owner's content again and again; ends the process where that is not possible."""
    from google.api_core.exceptions import PreconditionFailed

    last = time.monotonic()
    while not done.wait(BEAT):
        began = time.monotonic()
        if began - last > LEASE:  # it stood still, and another may hold the folder
            _leave(lock, "this process stood still for too long to hold it")
        try:
            blob = _blob(lock)
            within = max(LEASE - 2 * BEAT - (began - last), BEAT / 2)
            blob.upload_from_string(
                content, if_generation_match=generation, timeout=within, retry=None
            )
            generation, last = int(blob.generation), began
        except PreconditionFailed:
            text, now = _or_nothing(lock)
            if done.is_set():
                return
            if text != content:
                _leave(lock, "another process has taken it over")
            generation, last = now, began  # what was written had no answer
        except Exception as error:  # as in `reach`
            if time.monotonic() - last > LEASE - 2 * BEAT and not done.is_set():
                _leave(lock, f"it cannot be held without the object store ({error})")


def _leave(lock: Path, why: str) -> None:
    """Ends the process where it stands: what it would write on is another's by now."""
    fix = "what was saved last stands: run the same command again"
    error = UserError(why, str(lock.parent), fix)
    print(ERROR_PREFIX + error.line, file=sys.stderr, flush=True)
    os._exit(2)


def _or_nothing(lock: Path) -> tuple[str, int]:
    """What ``_read`` says; nothing where the store does not answer."""
    try:
        return _read(lock)
    except Exception:  # as in `reach`
        return "", 0


def _read(lock: Path) -> tuple[str, int]:
    """The content and the generation of an object; 0 where there is none."""
    from google.api_core.exceptions import NotFound

    blob = _blob(lock)
    try:
        text = blob.download_as_bytes().decode(errors="replace")
    except NotFound:
        return "", 0
    return text, int(blob.generation)


def _machine() -> str:
    """This start of this machine and its process numbers; another one each time if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return uuid.uuid4().hex


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    return storage.Client()


def _prefix(folder: Path) -> str:
    """What the names of the objects of a folder begin with in its bucket."""
    name = str(folder).removeprefix(SCHEME).partition("/")[2].rstrip("/")
    return f"{name}/" if name else ""


def _blobs(folder: Path, beginning: str = "", **options: Any) -> Iterator[Any]:
    """The objects of a folder, in the order of their names, that begin so below it."""
    bucket = str(folder).removeprefix(SCHEME).partition("/")[0]
    blobs = _client().list_blobs(bucket, prefix=_prefix(folder) + beginning, **options)
    return (blob for blob in blobs if not blob.name.endswith("/"))  # which stand for folders


def _blob(path: Path) -> Any:
    bucket, _, name = str(path).removeprefix(SCHEME).partition("/")
    return _client().bucket(bucket).blob(name)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Raises an OSError in the place of what the client raises."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    try:
        yield
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        raise StoreError(str(error)) from error


@contextlib.contextmanager
def said() -> Iterator[None]:
    """What stands around a command: says in one line that a store is in the way.

    Raises:
      UserError: in the place of what the store's clients raise.
    """
    try:
        yield
    except Exception as error:
        client = type(error).__module__.partition(".")[0] in _CLIENTS
        if not (client or isinstance(error, StoreError)):
            raise
        what = f"the object store is in the way: {str(error).partition(chr(10))[0] or error!r}"
        raise UserError(what, fix="run the same command again, which goes on") from error


def _nothing() -> None:
    """What is said the second time."""
