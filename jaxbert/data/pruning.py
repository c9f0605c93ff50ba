"""A smaller vocabulary: the pieces of a WordPiece tokenizer that a text uses.

WordPiece takes the longest piece that a word begins with, then goes on behind it. A piece that was
the longest of all is the longest of fewer, too: as long as the pieces of a word are kept, the word
is cut as before, whatever else is left out.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxbert.data.tokenizer import Tokenizer, WordPieceTokenizer
from jaxbert.errors import UserError


class Pruned(NamedTuple):
    """A tokenizer with fewer pieces.

    Attributes:
      tokenizer: it.
      kept: int64 [pieces kept], their ids before, ascending: what the rows of a table are cut by.
    """

    tokenizer: WordPieceTokenizer
    kept: np.ndarray


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How two tokenizers cut one text; running words unless it says different ones.

    Attributes:
      words: of the text.
      different_words: how many different ones they are.
      changed: words that are cut otherwise.
      different_changed: how many different ones these are.
      unknown_before, unknown_after: words that are [UNK].
      pieces_before, pieces_after: what the text is cut into.
    """

    words: int
    different_words: int
    changed: int
    different_changed: int
    unknown_before: int
    unknown_after: int
    pieces_before: int
    pieces_after: int


def as_wordpiece(tokenizer: Tokenizer, where: str) -> WordPieceTokenizer:
    """The tokenizer, if it is one that cuts words by WordPiece.

    Args:
      tokenizer: any.
      where: what has it, for the message.

    Raises:
      UserError: it is another kind.
    """
    if isinstance(tokenizer, WordPieceTokenizer):
        model, splitter = tokenizer.backend.model, tokenizer.backend.pre_tokenizer
        if isinstance(model, tokenizers.models.WordPiece) and splitter is not None:
            return tokenizer
    what = "its tokenizer is no WordPiece, whose pieces alone can be left out one by one"
    raise UserError(what, where, "give a model with a vocab.txt or the tokenizer.json of a BERT")


def count_words(
    tokenizer: WordPieceTokenizer, documents: Iterable[str]
) -> collections.Counter[str]:
    """How often each word stands there, normalised and split as the tokenizer does it."""
    counts: collections.Counter[str] = collections.Counter()
    for text in documents:
        counts.update(_split(tokenizer.backend, text))
    return counts


def prune_vocabulary(
    tokenizer: WordPieceTokenizer, words: Mapping[str, int], min_count: int = 1
) -> Pruned:
    """Leaves out the pieces that words do not use.

    Kept are the pieces that the words are cut into, those into which a word that is [UNK] is cut up
    to where no piece fits (it would not be unknown without them), special and added pieces, every
    single character in both of its forms, and pieces with a character that is there in no other
    form. So with ``min_count`` 1 every one of the words is cut as before; and where all characters
    of a word stand alone in the vocabulary, as in BERT's own, it does not become [UNK].

    Args:
      tokenizer: of the model.
      words: how often each stands in the text, as `count_words` counts them.
      min_count: how often a piece must be used to be kept; of higher ones, the words with rare
        pieces are cut into more and shorter ones.
    """
    backend = tokenizer.backend
    table: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    used: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for piece in _cut(backend, word):
            used[piece] += count
    kept = {table[piece] for piece, count in used.items() if count >= min_count}
    prefix = backend.model.continuing_subword_prefix
    for piece, index in table.items():
        plain = piece.removeprefix(prefix)
        alone = [c if not i and plain == piece else prefix + c for i, c in enumerate(plain)]
        # A piece such as [unused1], which the splitter takes apart, stands for no text.
        if len(plain) == 1 or (
            any(c not in table for c in alone) and _split(backend, plain) == [plain]
        ):
            kept.add(index)
    state = json.loads(backend.to_str())
    kept |= {token["id"] for token in state["added_tokens"]}
    kept.add(tokenizer.unk_id)
    order = np.array(sorted(kept), np.int64)
    return Pruned(_renumbered(tokenizer, state, order.tolist()), order)


def compare(
    before: WordPieceTokenizer, after: WordPieceTokenizer, words: Mapping[str, int]
) -> Comparison:
    """How a tokenizer and a smaller one cut the same words.

    Args:
      before: the one.
      after: the other; both split text alike.
      words: how often each stands in the text.
    """
    found: collections.Counter[str] = collections.Counter()
    unknowns = [t.pieces[t.unk_id] for t in (before, after)]
    for word, count in words.items():
        old, new = ([t.value for t in x.backend.model.tokenize(word)] for x in (before, after))
        found["words"] += count
        found["changed"] += count * (old != new)
        found["different_changed"] += old != new
        for end, pieces, unknown in zip(("before", "after"), (old, new), unknowns, strict=True):
            found[f"unknown_{end}"] += count * (pieces == [unknown])
            found[f"pieces_{end}"] += count * len(pieces)
    names = [field.name for field in dataclasses.fields(Comparison)]
    return Comparison(**{name: found[name] for name in names} | {"different_words": len(words)})


def _split(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    """The words of a text."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _cut(backend: tokenizers.Tokenizer, word: str) -> list[str]:
    """The pieces of a word; of an unknown one those before the place where none fits."""
    model = backend.model
    pieces = [token.value for token in model.tokenize(word)]
    if pieces != [model.unk_token] or len(word) > model.max_input_chars_per_word:
        return pieces
    found, start = [], 0
    while start < len(word):
        prefix = model.continuing_subword_prefix * bool(start)
        ends = range(len(word), start, -1)
        fits = (e for e in ends if model.token_to_id(prefix + word[start:e]) is not None)
        end = next(fits, None)
        if end is None:
            break
        found.append(prefix + word[start:end])
        start = end
    return found


def _renumbered(
    tokenizer: WordPieceTokenizer, state: dict[str, Any], kept: Sequence[int]
) -> WordPieceTokenizer:
    """The tokenizer with the pieces of the ids ``kept`` alone, numbered from 0 in their order."""
    numbers = {old: new for new, old in enumerate(kept)}
    model = state["model"]
    model["vocab"] = {p: numbers[i] for p, i in model["vocab"].items() if i in numbers}
    state["added_tokens"] = [t | {"id": numbers[t["id"]]} for t in state["added_tokens"]]
    state["post_processor"] = None  # it names ids of before; ``save`` makes its own
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    return WordPieceTokenizer(backend, tokenizer.options, Path("the pruned vocabulary"))
