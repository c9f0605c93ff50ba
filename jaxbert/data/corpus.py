"""Unlabelled text: documents by reference, cut into spans that fill a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxbert.data.packing import Examples
from jaxbert.data.sources import ParquetColumn, check_features, open_tfds, read_movie_reviews
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError

_DOCUMENTS_A_BATCH = 1_000  # encoded at once
_SHORTEST_REMAINDER = 8  # pieces; a shorter rest of a document teaches next to nothing
_FORMS = (
    "write pkg:movie-reviews/imdb, tfds:NAME/CONFIG:FEATURE (tfds:wikipedia/20230601.en:text) "
    "or parquet:GLOB:COLUMN"
)


def load_documents(reference: str, data_dir: str = "") -> Sequence[str]:
    """Opens the documents of a corpus for random access (len and [i]).

    Args:
      reference: ``pkg:movie-reviews/imdb``: 24,904 distinct film reviews of the package, with
        line breaks of HTML turned into spaces;
        ``tfds:NAME/CONFIG:FEATURE``: a text feature of the train split of a data set that TFDS has
        prepared in array_record;
        ``parquet:GLOB:COLUMN``: a text column of Parquet files.
      data_dir: the TFDS folder; "" is ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      UserError: an unknown reference, or files that are not there, with the command to get them.
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
    truncated = skipped = 0
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
    if not spans:
        raise UserError(
            f"the corpus is empty: {len(ids)} documents without a piece of text",
            "",
            "give a corpus with text",
        )
    return Examples.join(spans, truncated=truncated, skipped=skipped)


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
