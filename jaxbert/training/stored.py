"""A checkpoint on disk: what it holds, and the proof that it is what was written."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore

from jaxbert.errors import UserError, UserErrors
from jaxbert.training.hashing import leaf_hash, named_leaves
from jaxbert.training.optimizer import path_name

_THREADS = 8


def make_record(
    state: Any, metric: float | None, best: int, note: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written beside a state: its leaves with their hashes, and a hash of all this.

    Args:
      state: a tree of arrays.
      metric: the development metric, None if not measured.
      best: the step that is the best so far.
      note: JSON.

    Raises:
      FloatingPointError: naming a leaf that is not finite.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # hashlib lets them run at once
        leaves = dict(pool.map(_describe, *zip(*named_leaves(state), strict=True)))
    content = {"leaves": leaves, "metric": metric, "best": best, "note": note}
    return {"content": content, "sha256": _seal(content)}


def _describe(name: str, leaf: Any) -> tuple[str, dict[str, Any]]:
    array = np.asarray(jax.device_get(leaf))
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{name} is not finite")
    sha256 = leaf_hash(name, array)
    return name, {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": sha256}


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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

    Raises:
      Damaged: its record cannot be read, or is not as it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            record = json.loads((folder / "record" / "metadata").read_text(encoding="utf-8"))
            content, wanted = record["content"], record["sha256"]
            good = _seal(content) == wanted
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(folder, f"its record cannot be read ({error!r})") from error
        if not good:
            raise Damaged(folder, "its record is not as it was written")
        self.best: int = content["best"]
        self.metric: float | None = content["metric"]
        self.note: dict[str, Any] = content["note"]
        self.leaves: dict[str, dict[str, Any]] = content["leaves"]

    def read(self, name: str) -> np.ndarray:
        """A leaf by its path.

        Raises:
          Damaged: it cannot be read, or its hash is another.
        """
        store = {"driver": "ocdbt", "base": f"file://{self.folder.absolute() / 'state'}/"}
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
            raise Damaged(self.folder, f"{name} cannot be read ({kind})") from error
        if leaf_hash(name, leaf) != wanted["sha256"]:
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
