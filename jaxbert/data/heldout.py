"""What pre-training reads, and the documents that it is measured on and never trained on."""

from __future__ import annotations

import hashlib

import numpy as np

from jaxbert.data.examples import Examples, ExampleSource
from jaxbert.data.pairs import SentencePairs
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError

SHARE = 0.01  # of the documents
_LEAST = 2  # documents; fewer make no sentence pairs
_MEASURED = 1_000  # spans at most: an evaluation takes as long for any corpus


def pretraining_text(
    spans: ExampleSource,
    documents: np.ndarray,
    tokenizer: Tokenizer,
    *,
    pairs: bool,
    measured: bool,
    seed: int = 0,
) -> ExampleSource:
    """The spans to learn from, or a thousand of those that are held out, evenly taken.

    Args:
      spans: a corpus.
      documents: int [N], the document that each span is from.
      tokenizer: the one that made the pieces.
      pairs: cut each span into a pair for next-sentence prediction.
      measured: those that are held out.
      seed: of the pairs.

    Raises:
      UserError: there are not enough documents.
    """
    ids = np.flatnonzero(held_out(documents) == measured)
    if measured:
        count = min(len(ids), _MEASURED)
        ids = ids[np.arange(count) * len(ids) // count]
    text = Subset(spans, ids)
    return SentencePairs(text, documents[ids], tokenizer, seed=seed) if pairs else text


def held_out(documents: np.ndarray) -> np.ndarray:
    """Which spans belong to the documents that are held out.

    Documents are chosen by a fixed seed: of the same documents all runs hold out the same ones.
    With ``num_documents`` each seed draws documents of its own first.

    Args:
      documents: int [N], the document that each span is from.

    Returns:
      bool [N]; a hundredth of the documents, two at least.

    Raises:
      UserError: there are not enough documents for both sides.
    """
    there = np.unique(documents)
    count = max(_LEAST, round(SHARE * len(there)))
    if len(there) < count + _LEAST:
        what = f"{len(there)} documents are too few to hold {count} of them out"
        raise UserError(what, "corpus", f"give at least {count + _LEAST}")
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(there)[:count]
    return np.isin(documents, chosen)


class Subset:
    """Some examples of a source, as a source.

    Args:
      source: all of them.
      ids: int [n], which.
    """

    def __init__(self, source: ExampleSource, ids: np.ndarray) -> None:
        self._source, self._ids = source, ids
        self.lengths = source.lengths[ids]

    @property
    def sha256(self) -> str:
        """Of the whole source and of the choice."""
        digest = hashlib.sha256(self._source.sha256.encode())
        digest.update(self._ids.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def truncated(self) -> int:
        """That of the whole source."""
        return self._source.truncated

    @property
    def skipped(self) -> int:
        """That of the whole source."""
        return self._source.skipped

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, ids: np.ndarray) -> Examples:
        """Returns the examples int64 [n] of the subset, in this order."""
        return self._source.gather(self._ids[ids])
