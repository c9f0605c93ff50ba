"""What a word is that may be replaced, and what may stand in its place."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from jaxbert.data.tables import BadRow, read_texts
from jaxbert.data.tokenizer import Tokenizer, special_ids
from jaxbert.errors import UserError

Segmenter = Callable[[str], Sequence[str]]

_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Runs of Chinese characters, and runs of others that are neither blank nor punctuation.
_RUN = re.compile(rf"[{_CHINESE}]+|[^\s!-/:-@\[-`{{-~\u2010-\u205e\u3001-\u303f{_CHINESE}]+")
_LATIN = re.compile(r"[A-Za-z]+")
_HAN = re.compile(rf"[{_CHINESE}]+")

# The English stop words of the Natural Language Toolkit (Porter's list, 1980, enlarged), which the
# authors' code has, without those that an apostrophe parts into words that are on it.
_ENGLISH = """
a about above after again against ain all am an and any are aren as at be because been before
being below between both but by can couldn d did didn do does doesn doing don down during each
few for from further had hadn has hasn have haven having he her here hers herself him himself
his how i if in into is isn it its itself just ll m ma me mightn more most mustn my myself
needn no nor not now o of off on once only or other our ours ourselves out over own re s same
shan she should shouldn so some such t than that the their theirs them themselves then there
these they this those through to too under until up ve very was wasn we were weren what when
where which while who whom why will with won wouldn y you your yours yourself yourselves
"""
ENGLISH = frozenset(_ENGLISH.split())


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A text in parts.

    Attributes:
      parts: joined, they are the text; or the words of a sentence for tagging.
      words: the parts that may be replaced, in order.
    """

    parts: tuple[str, ...]
    words: tuple[int, ...]

    def start(self, part: int) -> int:
        """Where a part begins in the text, in characters."""
        return sum(map(len, self.parts[:part]))


@dataclasses.dataclass(frozen=True)
class Wording:
    """Cuts texts into parts and says which may be replaced.

    A word is a run of characters between blanks and punctuation. It may be replaced if it is made
    of the letters a to z alone, in whatever case, or if a segmenter cut it out of Chinese text, and
    if it is no stop word.

    Attributes:
      stop_words: in lower case.
      segmenter: Chinese text to words; None leaves Chinese as it is.
    """

    stop_words: Collection[str] = ENGLISH
    segmenter: Segmenter | None = None

    def cut(self, text: str, protected: Sequence[tuple[int, int]] = ()) -> Sentence:
        """Cuts a text.

        Args:
          text: any.
          protected: stretches of characters, [first, last), no word of which may be replaced.
        """
        parts: list[str] = []
        words: list[int] = []
        end = 0
        for start, word in self._runs(text):
            if start > end:
                parts.append(text[end:start])
            end = start + len(word)
            if self.replaceable(word) and not any(a < end and start < b for a, b in protected):
                words.append(len(parts))
            parts.append(word)
        if end < len(text):
            parts.append(text[end:])
        return Sentence(tuple(parts), tuple(words))

    def sentence(self, words: Sequence[str]) -> Sentence:
        """Words as they are given, for tagging: each stays one."""
        chosen = (index for index, word in enumerate(words) if self.replaceable(word))
        return Sentence(tuple(words), tuple(chosen))

    def replaceable(self, word: str) -> bool:
        """Whether a word may be replaced."""
        if _HAN.fullmatch(word):
            return self.segmenter is not None and word not in self.stop_words
        return bool(_LATIN.fullmatch(word)) and word.lower() not in self.stop_words

    def _runs(self, text: str) -> Iterator[tuple[int, str]]:
        for match in _RUN.finditer(text):
            start, run = match.start(), match[0]
            if self.segmenter is None or not _HAN.fullmatch(run):
                yield start, run
                continue
            for word in self.segmenter(run):
                yield start, word
                start += len(word)


def is_word(text: str) -> bool:
    """Whether a text may stand in the place of a word: letters a to z, or Chinese characters."""
    return bool(_LATIN.fullmatch(text) or _HAN.fullmatch(text))


def holds_chinese(text: str) -> bool:
    """Whether there is a Chinese character in a text."""
    return _HAN.search(text) is not None


def match_case(old: str, new: str) -> str:
    """A word in the case of the one that it replaces: ``Film``, ``FILM``, or as it is."""
    if old.istitle():
        return new.title()
    return new.upper() if old.isupper() else new


def piece_words(tokenizer: Tokenizer, chinese: bool = False) -> tuple[str, ...]:
    """The word that each piece of a vocabulary is, of those that may stand in a word's place.

    Args:
      tokenizer: has the vocabulary.
      chinese: whether Chinese characters are words, too.

    Returns:
      For each piece its word; "" for a special piece, a part of a word, or what is none.
    """
    special = set(special_ids(tokenizer))
    words = []
    for index, (piece, continues) in enumerate(
        zip(tokenizer.pieces, tokenizer.continues, strict=True)
    ):
        word = piece.removeprefix("▁")
        whole = not continues and index not in special and is_word(word)
        whole &= chinese or word.isascii()
        words.append(word if whole else "")
    return tuple(words)


def load_stop_words(name: str) -> frozenset[str]:
    """The stop words of a config.

    Args:
      name: ``english``, ``none``, or a file with one word a line.

    Raises:
      UserError: no such file, or one that is not text.
    """
    if name in ("english", "none"):
        return ENGLISH if name == "english" else frozenset()
    path = Path(name).expanduser()
    if not path.is_file():
        fix = "give english, none, or a file with one word a line"
        raise UserError(f"there is no list of stop words {name!r}", "augmentation.stop_words", fix)
    words = set()
    for line in read_texts(path):
        if isinstance(line, BadRow):
            raise line.error
        words.add(line.text.strip().lower())
    return frozenset(words - {""})


def load_segmenter(name: str) -> Segmenter | None:
    """What cuts Chinese text into words.

    Args:
      name: ``jieba``, or empty for none.

    Raises:
      UserError: it is not installed.
    """
    if not name:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its regular expressions are written as of old
            import jieba
    except ImportError as error:
        fix = 'pip install "jaxbert[chinese]", or leave augmentation.segmenter empty'
        raise UserError("jieba is not installed", "augmentation.segmenter", fix) from error
    jieba.setLogLevel("ERROR")
    return functools.partial(jieba.lcut, HMM=False)  # by its dictionary alone
