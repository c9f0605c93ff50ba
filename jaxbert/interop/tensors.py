"""Reading a model folder's files: JSON and safetensors, never a pickle."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
import safetensors

from jaxbert.errors import UserError
from jaxbert.files import read_object

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")  # each converts to float32 exactly
_AGAIN = "download or export the model again"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: missing, larger than 16 MiB, or not a JSON object.
    """
    if not path.exists():
        raise UserError(f"no {path.name}", f"in {path.parent}", "give a folder that holds a model")
    return read_object(path, _AGAIN)


class Tensors:
    """The tensors of one or several open safetensors files.

    Attributes:
      path: what to name when something is wrong with them.
      shapes: name -> shape, from the headers; no data is read for it.
    """

    def __init__(self, path: Path, handles: dict[Path, Any]) -> None:
        self.path = path
        self._of: dict[str, tuple[Path, Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file, handle in handles.items():
            for name in handle.keys():  # noqa: SIM118  (a handle does not iterate)
                if name in self._of:
                    raise UserError(
                        f"tensor {name!r} is in two files",
                        f"{self._of[name][0].name} and {file.name} of {file.parent}",
                        _AGAIN,
                    )
                self._of[name] = file, handle
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32.

        Raises:
          UserError: it holds no float32, float16 or bfloat16 numbers.
        """
        file, handle = self._of[name]
        dtype = handle.get_slice(name).get_dtype()
        if dtype not in _FLOATS:
            raise UserError(
                f"tensor {name!r} holds {dtype} instead of float32, float16 or bfloat16",
                str(file),
                "save the model in float32",
            )
        return handle.get_tensor(name).astype(np.float32, copy=False)


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[Tensors]:
    """Opens model.safetensors, or the shards that model.safetensors.index.json lists.

    Raises:
      UserError: there is neither, or a file that is no whole safetensors file.
    """
    files = weight_files(folder)
    path = files[0] if files == [folder / WEIGHTS] else folder / INDEX
    with contextlib.ExitStack() as stack:
        handles = {}
        for file in files:
            try:
                handle = safetensors.safe_open(file, framework="numpy")
                handles[file] = stack.enter_context(handle)
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(
                    f"not a whole safetensors file ({error})", str(file), _AGAIN
                ) from error
        try:
            yield Tensors(path, handles)
        except safetensors.SafetensorError as error:
            raise UserError(f"cannot be read ({error})", str(path), _AGAIN) from error


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that model.safetensors.index.json lists, there or not.

    Raises:
      UserError: there is neither, or an index that lists none.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise _no_weights(folder)
    return _shards(folder / INDEX)


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    # A plain name only: an index must not point at files elsewhere.
    wrong = [n for n in names if not isinstance(n, str) or not re.fullmatch(r"\w[\w.-]*", n)]
    if wrong or not names:
        raise UserError(
            f"weight_map names {wrong[0]!r}, which is no file beside it"
            if wrong
            else "no weight_map",
            str(index),
            _AGAIN,
        )
    return [index.parent / name for name in sorted(set(names))]


def _no_weights(folder: Path) -> UserError:
    pickles = [p.name for end in ("bin", "pt", "pth", "ckpt") for p in folder.glob(f"*.{end}")]
    if pickles:
        return UserError(
            f"only {pickles[0]}, a pickle that can run any code and is never opened",
            f"in {folder}",
            "take the model's safetensors version, or convert it where you trust it: load it with "
            "transformers and call save_pretrained, which writes model.safetensors",
        )
    return UserError(f"no {WEIGHTS}", f"in {folder}", "give a folder that holds a model")
