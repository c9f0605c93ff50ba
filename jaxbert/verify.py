"""Whether a folder that jaxbert wrote is still what was written: every byte that has a hash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from jaxbert.data.copies import KEPT, check_copies, read_record
from jaxbert.data.manifest import MANIFEST
from jaxbert.data.prepared import open_corpus
from jaxbert.data.taught import PREFIX, check_taught
from jaxbert.errors import UserError, UserErrors
from jaxbert.files import SEAL, check_seal, read_object, scratch
from jaxbert.interop import hub
from jaxbert.interop.huggingface import read_model
from jaxbert.interop.tensors import INDEX, WEIGHTS
from jaxbert.training.hashing import parameter_hash
from jaxbert.training.stored import Stored

_AGAIN = "copy the folder anew, or run the command that wrote it again"


def verify(folder: Path, say: Callable[[str], None]) -> None:
    """Reads a run, a model, an export or a prepared corpus, and holds it against its hashes.

    Args:
      folder: what train.py, `jaxbert export` or `jaxbert prepare` wrote, or one model of it.
      say: called with a line for each part that is as it was written.

    Raises:
      UserErrors: naming every part that is not.
    """
    errors = []
    for name, check in _parts(folder):
        try:
            say(f"{name}: {check()}")
        except UserError as error:
            errors.append(error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            errors.append(UserError(f"cannot be read ({error!r})", f"{folder}, {name}", _AGAIN))
    if errors:
        raise UserErrors(errors)


def _parts(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """The parts of a folder, and what checks each and says what it has found."""
    if (folder / MANIFEST).is_file():
        yield str(folder), lambda: _corpus(folder)
        return
    if not hub.is_workdir(folder):
        exported = (folder / hub.REPORT).is_file()
        yield str(folder), lambda: _format(folder) if exported else _model(folder)
        for part in sorted(path.parent for path in folder.glob(f"[!.]*/{SEAL}")):
            yield part.name, lambda part=part: _format(part)  # type: ignore[misc]
        return
    yield "config.json, summary.json", lambda: _sealed(folder)
    for model in sorted((folder / "models").glob("[!.]*")):
        yield f"models/{model.name}", lambda model=model: _model(model)  # type: ignore[misc]
    steps = [step for step in (folder / "checkpoints").glob("*/*") if step.name.isdigit()]
    for step in sorted(steps, key=lambda step: (step.parent.name, int(step.name))):
        name = f"checkpoints/{step.parent.name}/{step.name}"
        yield name, lambda step=step: _checkpoint(step)  # type: ignore[misc]
    cache = scratch(folder) / "cache"
    if any(cache.glob(f"{KEPT}*")):
        yield f"cache/{KEPT}", lambda: _copies(cache / KEPT)
    for taught in sorted(cache.glob(f"{PREFIX}*")):
        yield f"cache/{taught.name}", lambda taught=taught: _taught(taught)  # type: ignore[misc]


def _corpus(folder: Path) -> str:
    return f"{open_corpus(folder, verify=True).num_documents:,} documents, as they were written"


def _sealed(folder: Path) -> str:
    check_seal(folder, _AGAIN)
    if not (folder / "summary.json").is_file():
        return "no hashes: the run is not finished"
    if not (folder / SEAL).is_file():
        raise _gone(folder)
    summary = read_object(folder / "summary.json", _AGAIN)
    for phase in summary["phases"].values():
        if not (model := folder / "models" / phase["model"]).is_dir():
            raise UserError("a model of the run is gone", str(model), _AGAIN)
    return "as they were written"


def _gone(folder: Path) -> UserError:
    return UserError("its hashes are gone", str(folder / SEAL), _AGAIN)


def _format(folder: Path) -> str:
    """A folder of an export: a model, or files that jaxbert reads no parameters from."""
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return _model(folder)
    check_seal(folder, _AGAIN)
    if not (folder / SEAL).is_file():
        raise _gone(folder)
    return "as it was written"


def _model(folder: Path) -> str:
    model = read_model(folder)
    record = folder / "phase.json"
    if record.is_file():
        wanted = read_object(record, _AGAIN)["parameter_hash"]
        if (found := parameter_hash(model.params)) != wanted:
            what = f"its parameters have the hash {found}, and were trained to {wanted}"
            raise UserError(what, str(folder), _AGAIN)
    if (folder / SEAL).is_file():
        return "as it was written"
    if record.is_file() or (folder / hub.REPORT).is_file():
        raise _gone(folder)
    return "can be read; it holds no hashes, since jaxbert did not write it"


def _checkpoint(folder: Path) -> str:
    stored = Stored(folder)
    stored.verify()
    return f"{len(stored.leaves)} leaves, as they were written"


def _copies(path: Path) -> str:
    record = read_record(path)
    check_copies(path, record)
    return f"{record['counts'].get('copies', 0):,} copies, as they were written"


def _taught(folder: Path) -> str:
    check_taught(folder)
    return "a teacher's answers, as they were written"
