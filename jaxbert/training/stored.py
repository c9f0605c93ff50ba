"""A checkpoint on disk: what it holds, and the proof that it is what was written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore

from jaxbert.errors import UserError, UserErrors
from jaxbert.files import absolute, is_remote, unsealed
from jaxbert.training.hashing import ALGORITHM, leaf_hash, named_leaves
from jaxbert.training.optimizer import path_name
from jaxbert.training.record import RECORD

JUDGEMENT = "judgement"  # a file beside the record, once the step is evaluated


@dataclasses.dataclass
class _Content:
    """A record's content, whoever has written it."""

    leaves: dict[str, dict[str, Any]]
    note: dict[str, Any]
    due: bool
    best: tuple[int, float] | None

    def __post_init__(self) -> None:
        good = isinstance(self.note, dict) and type(self.due) is bool
        if self.best is not None:
            step, metric = self.best
            good = good and type(step) is int and isinstance(metric, float | int)
            self.best = step, metric
        for leaf in self.leaves.values():
            good = good and type(leaf["dtype"]) is type(leaf[ALGORITHM]) is str
            good = good and all(type(size) is int for size in leaf["shape"])
        if not good:
            raise ValueError("it holds something else")


@dataclasses.dataclass
class _Judgement:
    """A judgement's content."""

    metric: float | None
    note: dict[str, Any]

    def __post_init__(self) -> None:
        if not (isinstance(self.metric, float | int | None) and isinstance(self.note, dict)):
            raise ValueError("it holds something else")


# What TensorStore says where a store, not what it holds, is in the way.
_UNREACHABLE = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "CANCELLED",
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)


def _unreachable(folder: Path, error: Exception) -> UserError:
    """What is no damage: the checkpoint may be as it was written."""
    what = f"it cannot be read from the object store ({error})"
    return UserError(what, str(folder), "run the same command again")


class Damaged(UserError):
    """What was read is not what was written, or nothing could be read.

    Args:
      folder: the checkpoint's.
      how: what is wrong with it.
    """

    def __init__(self, folder: Path, how: str) -> None:
        self.folder = folder
        what = f"the checkpoint of step {folder.name} is damaged: {how}"
        fix = f"remove {folder.parent} and run the same command again, which trains the phase anew"
        super().__init__(what, str(folder), fix)


class Stored:
    """One checkpoint on disk.

    Written by Orbax; read leaf by leaf through TensorStore, so that damage has the name of the
    parameter that it struck.

    Args:
      folder: named by its step.

    Attributes:
      note: JSON kept beside the state.
      leaves: path -> dtype, shape and hash.
      due: whether an evaluation of the state is to come before another step.
      judged: whether that was made.
      metric: the development metric of the state; None if it is undefined or not measured.
      best: the step that is the best so far, and its metric; None if there is none.

    Raises:
      Damaged: its record cannot be read, or is not as it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = _Content(**self._unsealed(RECORD))
            self.note, self.leaves, self.due = content.note, content.leaves, content.due
            self.best, self.metric = content.best, None
            self.judged = (folder / "record" / JUDGEMENT).exists()
            if self.judged:
                judged = _Judgement(**self._unsealed(JUDGEMENT))
                self.due, self.metric, self.note = False, judged.metric, judged.note
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            gone = isinstance(error, FileNotFoundError) or not isinstance(error, OSError)
            if is_remote(folder) and not gone:
                raise _unreachable(folder, error) from error
            raise Damaged(folder, f"its record cannot be read ({error!r})") from error
        if self.metric is not None and (self.best is None or self.metric >= self.best[1]):
            self.best = int(folder.name), self.metric

    def _unsealed(self, name: str) -> dict[str, Any]:
        content = unsealed((self.folder / "record" / name).read_text(encoding="utf-8"))
        if content is None:
            raise Damaged(self.folder, "its record is not as it was written")
        return content

    def read(self, name: str) -> np.ndarray:
        """A leaf by its path.

        Raises:
          Damaged: it cannot be read, or its hash is another.
        """
        state = absolute(self.folder / "state")
        base = f"{state}/" if is_remote(state) else f"file://{state}/"
        store = {"driver": "ocdbt", "base": base}
        spec = {"driver": "zarr", "kvstore": {**store, "path": name.replace("/", ".")}}
        wanted = self.leaves[name]
        try:
            array = tensorstore.open(spec, open=True, read=True).result()
            found = array.dtype.name, list(array.shape)
            if found != (wanted["dtype"], wanted["shape"]):
                raise Damaged(self.folder, f"{name} is {found}")
            leaf = array.read().result()
        except (ValueError, OSError) as error:
            kind = str(error).partition(":")[0]
            if is_remote(state) and kind in _UNREACHABLE:
                raise _unreachable(self.folder, error) from error
            raise Damaged(self.folder, f"{name} cannot be read ({kind})") from error
        if leaf_hash(name, leaf) != wanted[ALGORITHM]:
            raise Damaged(self.folder, f"the hash of {name} does not match")
        return leaf

    def verify(self) -> None:
        """Reads every leaf.

        Raises:
          Damaged: at the first that is not as it was written.
        """
        for name in self.leaves:
            self.read(name)

    def check(self, like: Any) -> None:
        """Holds names, dtypes and shapes against those of a tree of arrays.

        Raises:
          UserErrors: naming each leaf that is missing, too many, or of another dtype or shape.
        """
        mine = {name: (leaf["dtype"], tuple(leaf["shape"])) for name, leaf in self.leaves.items()}
        theirs = {name: (x.dtype.name, tuple(x.shape)) for name, x in named_leaves(like)}
        errors = []
        for name in sorted(mine.keys() | theirs.keys()):
            was, now = (_leaf_text(tree.get(name)) for tree in (mine, theirs))
            if was != now:
                what = f"{name} is {was} in the checkpoint, and {now} in this run"
                fix = "run the version that wrote it, or give another --workdir"
                errors.append(UserError(what, str(self.folder), fix))
        if errors:
            raise UserErrors(errors)

    def restore(self, like: Any) -> Any:
        """The state, laid out like a tree of arrays.

        Raises:
          Damaged: something of it is not as it was written.
          UserErrors: it is the state of something else.
        """
        self.check(like)

        def place(path: Any, x: jax.Array) -> jax.Array:
            leaf = self.read(path_name(path))
            return jax.make_array_from_callback(x.shape, x.sharding, lambda index: leaf[index])

        return jax.tree_util.tree_map_with_path(place, like)


def _leaf_text(leaf: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if leaf is None else f"{leaf[0]} {list(leaf[1])}"
