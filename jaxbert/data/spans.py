"""Documents to training examples: contiguous spans that fill a sequence, in given shares."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from typing import Any

import numpy as np

from jaxbert.data.examples import Examples, bounds, stretches
from jaxbert.data.prepared import Corpus
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError

_SHORTEST_REST = 8  # pieces; a shorter rest of a document teaches next to nothing


class Spans:
    """The spans of a corpus, each [CLS] span [SEP]: an ExampleSource that reads what is asked for.

    A document is cut from its beginning into spans of ``max_length - 2`` pieces. A last rest of
    fewer than 8 is left out unless it is the whole document.

    Where the corpus's sources have shares, an epoch holds pieces in these shares: the spans of
    each source once, and those of a source with too few pieces for its share again, so many whole
    times and then a part of them, drawn by the seed, that the share is met. The source with the
    most pieces for its share stands there once. So every span is in every epoch.

    Memory: 8 bytes a chosen document, and 8 for each span of the drawn parts.

    Args:
      corpus: the documents.
      tokenizer: the one whose [CLS] and [SEP] are put around.
      max_length: pieces of a full example, [CLS] and [SEP] included.
      num_documents: how many documents, drawn by `seed`, to use; 0 is all of them.
      seed: of that draw, and of the parts of sources.

    Attributes:
      truncated: documents that lost a rest.
      skipped: documents of the sources that have no piece.
      shares: what an epoch holds of each source: its ``reference``, ``spans``, ``pieces``, how
        often it stands there (``times``) and its ``share`` of the pieces.

    Raises:
      UserError: a `max_length` that leaves no room, or a source with a share and no text.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        num_documents: int = 0,
        seed: int = 0,
    ) -> None:
        self._width = max_length - 2
        if self._width < 1:
            raise UserError(f"max_length is {max_length}", "max_length", "give at least 3")
        self._corpus = corpus
        self._cls, self._sep = tokenizer.cls_id, tokenizer.sep_id
        self._documents = _choose(corpus.num_documents, num_documents, seed)
        lengths = self._piece_counts(slice(None))
        used = self._used(lengths)
        self.truncated = int((used < lengths).sum())
        self.skipped = int(corpus.manifest["empty"])
        self._firsts = bounds(-(-used // self._width))  # [documents + 1], of their spans
        if not self._firsts[-1]:
            raise UserError("there is not one document", str(corpus.folder), "give more text")
        self._stretches = self._mix(seed)
        self._ends = np.cumsum([len(stretch) for stretch in self._stretches])

    def __len__(self) -> int:
        """Examples of an epoch."""
        return int(self._ends[-1])

    @property
    def lengths(self) -> np.ndarray:
        """int32 [N], pieces of each example, [CLS] and [SEP] included."""
        once = self._span_lengths()
        parts = [once[s.first : s.first + s.spans] for s in self._stretches]
        whole = [
            np.concatenate([np.tile(part, s.times), part[s.extra]])
            for part, s in zip(parts, self._stretches, strict=True)
        ]
        return np.concatenate(whole)

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """int64 [N], the document that each example is from, by its number in the corpus."""
        documents = np.searchsorted(self._firsts, self._spans(np.arange(len(self))), "right") - 1
        return documents if self._documents is None else self._documents[documents]

    @functools.cached_property
    def sha256(self) -> str:
        """Of the corpus, how it is cut, and what of it is drawn."""
        digest = hashlib.sha256(f"{self._corpus.sha256} {self._width}".encode())
        digest.update(f" {self._cls} {self._sep}".encode())
        drawn = [] if self._documents is None else [self._documents]
        for array in (*drawn, *(s.extra for s in self._stretches)):
            digest.update(np.ascontiguousarray(array, np.int64).data)
        return digest.hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What a run writes down of its text."""
        manifest = self._corpus.manifest
        counts = ("documents", "empty", "duplicates", "pieces", "text_bytes")
        used = manifest["documents"] if self._documents is None else len(self._documents)
        return {
            **{name: manifest[name] for name in counts},
            "documents_used": used,
            "spans": int(self._firsts[-1]),
            "truncated": self.truncated,
            "epoch": len(self),
            "sources": self.shares,
            "manifest_sha256": self._corpus.manifest_sha256,
        }

    def gather(self, ids: np.ndarray) -> Examples:
        """Returns the examples int64 [n], in this order.

        Raises:
          UserError: a shard is damaged.
        """
        spans = self._spans(np.asarray(ids, np.int64))
        documents = np.searchsorted(self._firsts, spans, "right") - 1
        starts = (spans - self._firsts[documents]) * self._width
        sizes = np.minimum(self._used(self._piece_counts(documents)) - starts, self._width)
        chosen = documents if self._documents is None else self._documents[documents]
        offsets = bounds(sizes + 2)
        tokens = np.full(offsets[-1], self._sep, np.int32)
        tokens[offsets[:-1]] = self._cls
        tokens[stretches(offsets[:-1] + 1, sizes)] = self._corpus.pieces(chosen, starts, sizes)
        return Examples(tokens, offsets, (sizes + 2).astype(np.int32))

    def _piece_counts(self, chosen: Any) -> np.ndarray:
        """int64, pieces of the documents at these places among the chosen ones."""
        if self._documents is not None:
            chosen = self._documents[chosen]
        return self._corpus.lengths[chosen].astype(np.int64)

    def _used(self, lengths: np.ndarray) -> np.ndarray:
        """Pieces of documents that their spans hold."""
        rest = lengths % self._width
        return lengths - np.where((rest < _SHORTEST_REST) & (lengths > self._width), rest, 0)

    def _span_lengths(self) -> np.ndarray:
        """int32 [spans], each once."""
        lengths = np.full(self._firsts[-1], self._width + 2, np.int32)
        used, last = self._used(self._piece_counts(slice(None))), self._firsts[1:] - 1
        lengths[last] = used - (last - self._firsts[:-1]) * self._width + 2
        return lengths

    def _spans(self, ids: np.ndarray) -> np.ndarray:
        """The span of each example."""
        number = np.searchsorted(self._ends, ids, "right")
        spans = np.empty_like(ids)
        for index in np.unique(number).tolist():
            here, stretch = number == index, self._stretches[index]
            place = ids[here] - self._ends[index] + len(stretch)
            again = place >= stretch.spans * stretch.times
            span = place % stretch.spans
            span[again] = stretch.extra[place[again] - stretch.spans * stretch.times]
            spans[here] = span + stretch.first
        return spans

    def _mix(self, seed: int) -> list[_Stretch]:
        """What an epoch holds of each source; sets `shares`."""
        sources = self._corpus.manifest["sources"]
        ends = np.cumsum([source["documents"] for source in sources])
        if self._documents is not None:
            ends = np.searchsorted(self._documents, ends)
        firsts = self._firsts[np.concatenate([[0], ends])]
        lengths = self._span_lengths()
        pieces = [int(lengths[a:b].sum()) for a, b in itertools.pairwise(firsts)]
        weights = [source["weight"] for source in sources]
        for source, weight, have in zip(sources, weights, pieces, strict=True):
            if weight and not have:
                fix = "give text there, leave it out, or raise num_documents"
                raise UserError("a source with a share has no text", source["reference"], fix)
        epoch = max((have / w for have, w in zip(pieces, weights, strict=True) if w), default=0)
        mixed = []
        for number, (first, last) in enumerate(itertools.pairwise(firsts)):
            wanted = round(epoch * weights[number]) or pieces[number]
            times, rest = divmod(wanted, max(1, pieces[number]))
            extra = np.zeros(0, np.int64)
            if rest:
                rng = np.random.Generator(np.random.PCG64((seed, number)))
                order = rng.permutation(last - first)
                sums = np.cumsum(lengths[first:last][order])
                extra = np.sort(order[: np.searchsorted(sums, rest, "right")])
            mixed.append(_Stretch(int(first), int(last - first), times, extra))
        self.shares = self._describe(mixed, lengths, pieces)
        return mixed

    def _describe(
        self, mixed: list[_Stretch], lengths: np.ndarray, pieces: list[int]
    ) -> list[dict[str, Any]]:
        held = [
            have * s.times + int(lengths[s.first + s.extra].sum())
            for s, have in zip(mixed, pieces, strict=True)
        ]
        return [
            {
                "reference": source["reference"],
                "spans": s.spans,
                "pieces": have,
                "times": amount / max(1, have),
                "share": amount / sum(held),
            }
            for source, s, have, amount in zip(
                self._corpus.manifest["sources"], mixed, pieces, held, strict=True
            )
        ]


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """A source in an epoch: its spans so many whole times, and some of them once more."""

    first: int
    spans: int
    times: int
    extra: np.ndarray  # int64, counted from the first

    def __len__(self) -> int:
        return self.spans * self.times + len(self.extra)


def _choose(total: int, wanted: int, seed: int) -> np.ndarray | None:
    """Returns int64 ids in increasing order, None for all of them."""
    if wanted < 0:
        raise UserError(f"num_documents is {wanted}", "num_documents", "give 0 for all of them")
    if not wanted or wanted >= total:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.sort(rng.permutation(total)[:wanted])
