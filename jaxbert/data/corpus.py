"""Unlabelled text: documents by reference, cut into spans that fill a sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.packing import Examples
from jaxbert.data.sources import ParquetColumn, check_features, open_tfds, read_movie_reviews
from jaxbert.data.tables import BadRow, matching_files, read_jsonl, read_texts
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError

_DOCUMENTS_A_BATCH = 1_000  # encoded at once
_SHORTEST_REMAINDER = 8  # pieces; a shorter rest of a document teaches next to nothing
_FORMS = (
    "write text:GLOB, text:GLOB#file, jsonl:GLOB:FIELD, parquet:GLOB:COLUMN, "
    "tfds:NAME/CONFIG:FEATURE (tfds:wikipedia/20230601.en:text) or pkg:movie-reviews/imdb"
)


def load_documents(reference: str, data_dir: str = "") -> Sequence[str]:
    """Opens the documents of a corpus for random access (len and [i]).

    Args:
      reference: ``pkg:movie-reviews/imdb``: 24,904 distinct film reviews of the package, with
        line breaks of HTML turned into spaces;
        ``tfds:NAME/CONFIG:FEATURE``: a text feature of the train split of a data set that TFDS has
        prepared in array_record;
        ``parquet:GLOB:COLUMN``: a text column of Parquet files;
        ``text:GLOB``: text files, plain, .gz or .zst, with an empty line between two documents, or
        with ``#file`` behind it one document a file;
        ``jsonl:GLOB:FIELD``: a field of files with one JSON object a line. Documents of these two
        are held in memory.
      data_dir: the TFDS folder; "" is ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      UserError: an unknown reference, files that are not there, with the command to get them, or
        a line that is no text, with its file and number.
    """
    kind, _, rest = reference.partition(":")
    name, colon, column = rest.rpartition(":")
    if kind == "pkg" and rest.startswith("movie-reviews/"):
        texts, _ = read_movie_reviews(rest.removeprefix("movie-reviews/"))
        return [text.replace("<br />", " ") for text in dict.fromkeys(texts)]
    if kind == "tfds" and colon and name and column:
        rows = open_tfds(name, "train", data_dir)
        check_features(name, rows, [column])
        return _Feature(rows, column)
    if kind == "parquet" and colon and name and column:
        return ParquetColumn(name, column)
    if kind == "text" and rest:
        pattern, _, unit = rest.partition("#")
        if unit in ("", "file"):
            paths = matching_files(pattern, "give the path of text files")
            return [text for path in paths for text in _text_documents(path, whole=bool(unit))]
    if kind == "jsonl" and colon and name and column:
        paths = matching_files(name, "give the path of JSON Lines files")
        return [text for path in paths for text in _json_documents(path, column)]
    raise UserError("unknown corpus", reference or "an empty reference", _FORMS)


def encode_spans(
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    max_length: int,
    num_documents: int = 0,
    seed: int = 0,
) -> Examples:
    """Cuts documents into contiguous spans, each [CLS] span [SEP].

    A last rest of fewer than 8 pieces is left out unless it is the whole document; `truncated`
    counts the documents that lost one, `skipped` those without a piece.

    Args:
      tokenizer: gives the pieces.
      documents: the text.
      max_length: pieces of a full example, [CLS] and [SEP] included.
      num_documents: how many documents, drawn by `seed`, to use; 0 is all of them.
      seed: of that draw.

    Raises:
      UserError: no text at all, or a `max_length` that leaves no room.
    """
    width = max_length - 2
    if width < 1:
        raise UserError(f"max_length is {max_length}", "max_length", "give at least 3")
    spans: list[np.ndarray] = []
    origins: list[int] = []
    truncated = skipped = number = 0
    ids = _choose(len(documents), num_documents, seed)
    for texts in _batches(documents, ids):
        for pieces in tokenizer.encode(texts):
            rest = len(pieces) % width
            if not len(pieces):
                skipped += 1
            elif rest < _SHORTEST_REMAINDER and rest and len(pieces) > width:
                pieces = pieces[:-rest]
                truncated += 1
            for start in range(0, len(pieces), width):
                span = pieces[start : start + width]
                example = np.empty(len(span) + 2, np.int32)
                example[0], example[1:-1], example[-1] = tokenizer.cls_id, span, tokenizer.sep_id
                spans.append(example)
                origins.append(number)
            number += 1
    if not spans:
        raise UserError(
            f"the corpus is empty: {len(ids)} documents without a piece of text",
            "",
            "give a corpus with text",
        )
    joined = Examples.join(spans, truncated=truncated, skipped=skipped)
    return dataclasses.replace(joined, documents=np.array(origins))


def _text_documents(path: Path, *, whole: bool) -> Iterator[str]:
    """The documents of a text file: all of it, or what stands between empty lines."""
    lines: list[str] = []
    for line in read_texts(path):
        if isinstance(line, BadRow):
            raise line.error
        if line.text.strip() or whole:
            lines.append(line.text)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if any(line.strip() for line in lines):
        yield "\n".join(lines)


def _json_documents(path: Path, field: str) -> Iterator[str]:
    """The texts in a field of a JSON Lines file."""
    for row in read_jsonl(path, [field]):
        if isinstance(row, BadRow):
            raise row.error
        text = row.values[field]
        if not isinstance(text, str):
            raise BadRow(f"a {type(text).__name__} instead of text", f"{row.where}:{field}").error
        yield text


class _Feature(Sequence[str]):
    """One text feature of a TFDS split."""

    def __init__(self, rows: Sequence[dict[str, Any]], feature: str) -> None:
        self._rows, self._feature = rows, feature

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index][self._feature].decode("utf-8")


def _choose(total: int, wanted: int, seed: int) -> np.ndarray:
    """Returns int64 ids in increasing order, which is the order files are read fastest in."""
    if wanted < 0:
        raise UserError(f"num_documents is {wanted}", "num_documents", "give 0 for all of them")
    if not wanted or wanted >= total:
        return np.arange(total)
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.sort(rng.permutation(total)[:wanted])


def _batches(documents: Sequence[str], ids: np.ndarray) -> Iterator[list[str]]:
    for start in range(0, len(ids), _DOCUMENTS_A_BATCH):
        yield [documents[i] for i in ids[start : start + _DOCUMENTS_A_BATCH].tolist()]
