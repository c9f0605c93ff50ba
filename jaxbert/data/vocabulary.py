"""A vocabulary of one's own: byte pairs learned by SentencePiece, written down as WordPiece.

`tokenizers` has a trainer of its own for WordPiece, but it gives another vocabulary every time.
SentencePiece's byte-pair trainer gives the same one for the same text.
"""

from __future__ import annotations

import collections
import io
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers

from jaxbert.data.corpus import find_corpus, read_documents
from jaxbert.data.documents import close_rows
from jaxbert.errors import UserError
from jaxbert.files import is_remote, whole

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BEGIN = "▁"  # what SentencePiece puts before a word
_COVERAGE = 0.9999  # of all characters; rarer ones get no piece, so that words with them are [UNK]
_LONGEST = 100  # characters; a longer word is [UNK] to WordPiece, whatever the vocabulary


def train_vocabulary(documents: Iterable[str], size: int) -> list[str]:
    """Learns the pieces of a lower-cased WordPiece vocabulary, the same for the same documents.

    The words that BERT's normaliser and splitter find are counted; memory grows with the number of
    different words. From the counts SentencePiece learns byte pairs (Sennrich et al. 2016), which
    `to_wordpiece` converts.

    Args:
      documents: text.
      size: pieces at most, the special ones included; fewer if the text has no more to give.

    Returns:
      The pieces in the order of their ids.

    Raises:
      UserError: no text, or a size that cannot hold every character twice.
    """
    import sentencepiece

    counts = _count_words(documents)
    if not counts:
        raise UserError("no word to learn a vocabulary from", "corpus", "give a corpus with text")
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.tsv"
        text = "".join(f"{word}\t{count}\n" for word, count in sorted(counts.items()))
        words.write_text(text, encoding="utf-8")
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(words),
                input_format="tsv",
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                hard_vocab_limit=False,
                character_coverage=_COVERAGE,
                normalization_rule_name="identity",
                num_threads=1,
                bos_id=-1,
                eos_id=-1,
                minloglevel=3,
            )
        except RuntimeError as error:
            fix = "give a larger one"
            raise UserError(f"a vocabulary of {size} is too small", "vocab_size", fix) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    learned = [processor.id_to_piece(i) for i in range(1, processor.get_piece_size())]  # 0 is <unk>
    pieces = to_wordpiece(learned)
    least = len(SPECIALS) + 2 * sum(len(piece) == 1 for piece in learned)
    if size < least:
        what = f"a vocabulary of {size} does not hold the text's characters"
        raise UserError(what, "vocab_size", f"give at least {least}")
    return pieces[:size]


def read_sample(reference: str, count: int, data_dir: str = "") -> Iterator[str]:
    """Yields documents of a corpus, as many of each file.

    Args:
      reference: as `find_corpus` takes it.
      count: documents, about; 0 is all of them.
      data_dir: the TFDS folder.

    Raises:
      UserError: no such corpus, one that holds pieces instead of text, or something is no text.
    """
    if reference.startswith("prepared:"):
        what = "a prepared corpus holds no text to learn a vocabulary from"
        fix = "give the tokenizer that it was prepared with, --config.vocabulary=DIR"
        raise UserError(what, f"config key corpus ({reference})", fix)
    parts = []
    for term in find_corpus(reference, data_dir):
        # Each file is one part, up to its end, wherever that is once it is unpacked.
        sizes = dict.fromkeys(term.source.files(), sys.maxsize)
        parts += [(term.source, part) for part in term.source.parts(sizes, sum(sizes.values()) + 1)]
    for source, part in parts:
        each = -(-count // len(parts)) if count else None
        yield from itertools.islice(read_documents(source, part), each)
    close_rows()


def to_wordpiece(learned: Sequence[str]) -> list[str]:
    """The WordPiece vocabulary of byte pairs that SentencePiece learned.

    ``▁x`` begins a word and becomes ``x``; every other ``x`` goes on with one and becomes ``##x``;
    ``▁`` alone has no counterpart. WordPiece cuts a word from its beginning into the longest pieces
    there are, and calls it unknown as soon as there is none: so every character is there in both
    forms. Special pieces come first, then the characters, then the pairs in the order in which they
    were learned, the most frequent first; what is cut off at the end is what is missed least.

    Args:
      learned: SentencePiece's pieces, without its special ones.
    """
    characters = sorted(piece for piece in learned if len(piece) == 1 and piece != _BEGIN)
    both = [form for c in characters for form in (c, f"##{c}")]
    pairs = [
        piece[1:] if piece.startswith(_BEGIN) else f"##{piece}"
        for piece in learned
        if len(piece) > 1
    ]
    return list(dict.fromkeys([*SPECIALS, *both, *pairs]))


def write_vocabulary(folder: Path, pieces: Sequence[str]) -> None:
    """Writes a folder that `load_tokenizer` reads, with vocab.txt in it, in one piece."""
    text = "".join(f"{piece}\n" for piece in pieces)
    if is_remote(folder):
        with whole(folder / "vocab.txt") as file:
            file.write(text)
        return
    partial = folder.parent / f".{folder.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "vocab.txt").write_bytes(text.encode())
    partial.rename(folder)


def _count_words(documents: Iterable[str]) -> collections.Counter[str]:
    """How often each word stands there, cut and normalised as a WordPiece tokenizer does it."""
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    counts: collections.Counter[str] = collections.Counter()
    for text in documents:
        words = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in words if len(word) <= _LONGEST)
    return counts
