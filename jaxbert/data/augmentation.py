"""Words replaced by likely ones: the data augmentation of TinyBERT, as an engine.

Algorithm 1 of Jiao et al. 2020 (arXiv 1909.10351): each word of a copy is replaced, with the
probability p_t, by one of K candidates: those that a masked language model gives if the word is a
single word piece, else those whose word vectors lie nearest. What is drawn is a function of (seed,
row, copy, word) alone, and candidates are looked for only where a word is to be replaced. Copies of
many rows wait for candidates together, and equal questions are asked once.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jaxbert.data.tokenizer import Tokenizer
from jaxbert.data.wording import Sentence, match_case

_PIECES_KEPT = 1 << 18  # strings whose pieces are remembered


class Question(NamedTuple):
    """One word that is masked.

    Attributes:
      tokens: int32 [n], ``[CLS] masked [SEP]`` and, behind it, ``original [SEP]``.
      second: where the original begins; n if it is not there.
      place: where the mask stands.
    """

    tokens: np.ndarray
    second: int
    place: int

    @property
    def key(self) -> tuple[bytes, int, int]:
        """What tells questions apart."""
        return self.tokens.tobytes(), self.second, self.place


class FillMask(Protocol):
    """A masked language model that answers questions of one width together.

    Attributes:
      limit: the longest question, in pieces.
      candidates: K.
    """

    limit: int
    candidates: int

    def width(self, length: int) -> int:
        """The width to which a question of this length is padded."""
        ...

    def rows(self, width: int) -> int:
        """How many questions of a width are answered at once."""
        ...

    def __call__(self, width: int, questions: Sequence[Question]) -> np.ndarray:
        """Returns int32 [n, K], the most probable words' pieces, the likeliest first."""
        ...


class Neighbours(Protocol):
    """Word vectors."""

    def nearest(self, word: str, count: int) -> list[str]:
        """The words most like a word, the nearest first; none if the word is not known."""
        ...


class Replacement(NamedTuple):
    """A word that gave way to another.

    Attributes:
      part: which part of its sentence.
      new: what stands there now, in the case of the old one.
    """

    part: int
    new: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is drawn.

    Attributes:
      copies: N_a, copies of a row.
      probability: p_t, of replacing a word.
      mode: ``cumulative``: a word is masked in the copy as it stands by then, as in the paper;
        ``independent``: in the original, as in the authors' code.
      context: ``original``: the original sentence follows the masked one as a second text, as in
        the authors' code; ``none``: it does not, as in the paper.
      seed: of every draw.
    """

    copies: int = 20
    probability: float = 0.4
    mode: str = "cumulative"
    context: str = "original"
    seed: int = 0


class Augmenter:
    """Makes copies of rows.

    Args:
      recipe: what is drawn.
      tokenizer: the masked language model's.
      words: the word that each of its pieces is, as `piece_words` has it.
      fill: the model.
      vectors: candidates for words of several pieces.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        words: Sequence[str],
        fill: FillMask,
        vectors: Neighbours,
    ) -> None:
        self._recipe, self._tokenizer = recipe, tokenizer
        self._fill, self._vectors = fill, vectors
        self._words = words
        self._known = {word: np.array([i], np.int32) for i, word in enumerate(self._words) if word}
        self._pieces: dict[str, np.ndarray] = dict(self._known)
        self._near: dict[str, list[str]] = {}
        self.asked = 0  # questions that the model has answered

    def copies(
        self, rows: Sequence[Sequence[Sentence]], ids: Sequence[int]
    ) -> list[list[list[list[Replacement]]]]:
        """Draws and makes every copy of some rows.

        The texts of a row (one, or the two of a pair) are changed each for itself, and belong
        together by the number of their copy.

        Args:
          rows: the texts of each row.
          ids: a number for each row, which its draws depend on.

        Returns:
          For each row, for each copy, for each text, its replacements in the order of the text;
          no copies of a row in which no word may be replaced.
        """
        self._encode({part for row in rows for sentence in row for part in sentence.parts})
        found: list[list[list[list[Replacement]]]] = []
        ready: collections.deque[_Copy] = collections.deque()
        for row, number in zip(rows, ids, strict=True):
            found.append([])
            count = sum(len(sentence.words) for sentence in row)
            if not count:
                continue
            rng = np.random.Generator(np.random.PCG64((self._recipe.seed, number)))
            draws = rng.random((self._recipe.copies, count, 2))  # more copies leave the first alone
            found[-1] = [[[] for _ in row] for _ in range(self._recipe.copies)]
            first = 0
            for index, sentence in enumerate(row):
                mine = draws[:, first : first + len(sentence.words)]
                first += len(sentence.words)
                original = np.concatenate([self._pieces[part] for part in sentence.parts])
                for copy, draw in enumerate(mine):
                    if (draw[:, 0] < self._recipe.probability).any():
                        into = found[-1][copy][index]
                        ready.append(_Copy(self._replace(sentence, original, draw, into)))
        self._run(ready)
        return found

    def _replace(
        self, sentence: Sentence, original: np.ndarray, draw: np.ndarray, into: list[Replacement]
    ) -> _Steps:
        """Replaces the words that are drawn; yields questions and is sent their answers."""
        chosen = draw[:, 0] < self._recipe.probability
        places = [place for place, here in zip(sentence.words, chosen, strict=True) if here]
        pieces = [self._pieces[part] for part in sentence.parts]
        cumulative = self._recipe.mode == "cumulative"
        answers: dict[int, np.ndarray] = {}
        # In the original, nothing has to wait for what comes before it.
        if not cumulative and (asked := self._questions(pieces, places, original)):
            answers = dict(zip(asked, (yield list(asked.values())), strict=True))
        for place, pick in zip(places, draw[chosen, 1], strict=True):
            old = sentence.parts[place]
            if cumulative and (asked := self._questions(pieces, [place], original)):
                [answers[place]] = yield list(asked.values())
            if len(pieces[place]) == 1:
                options = [self._words[piece] for piece in answers.get(place, ())]
            else:
                options = self._nearest(old)
            if not options:
                continue
            new = match_case(old, options[int(pick * len(options))])
            into.append(Replacement(place, new))
            if cumulative:
                self._encode({new})
                pieces[place] = self._pieces[new]

    def _questions(
        self, pieces: Sequence[np.ndarray], places: Sequence[int], original: np.ndarray
    ) -> dict[int, Question]:
        """What to ask the model, of those places that hold one piece and that it can read."""
        found = {
            place: self._question(pieces, place, original)
            for place in places
            if len(pieces[place]) == 1
        }
        return {place: question for place, question in found.items() if question is not None}

    def _question(
        self, pieces: Sequence[np.ndarray], place: int, original: np.ndarray
    ) -> Question | None:
        t, limit = self._tokenizer, self._fill.limit
        cls, sep = np.array([t.cls_id]), np.array([t.sep_id])
        masked = np.concatenate([cls, *pieces])
        mask = 1 + sum(map(len, pieces[:place]))
        if mask > limit - 2:
            return None
        masked[mask] = t.mask_id
        tokens = [masked[: limit - 1], sep]
        second = len(tokens[0]) + 1
        room = limit - second - 1
        if self._recipe.context == "original" and room > 0:
            tokens += [original[:room], sep]
        return Question(np.concatenate(tokens).astype(np.int32), second, mask)

    def _nearest(self, word: str) -> list[str]:
        word = word.lower()
        if word not in self._near:
            self._near[word] = self._vectors.nearest(word, self._fill.candidates)
        return self._near[word]

    def _encode(self, parts: set[str]) -> None:
        """Knows the pieces of these strings from now on."""
        new = sorted(part for part in parts if part not in self._pieces)
        if len(self._pieces) + len(new) > _PIECES_KEPT and len(parts) > 1:
            self._pieces = dict(self._known)
            new = sorted(part for part in parts if part not in self._pieces)
        if new:
            self._pieces.update(zip(new, self._tokenizer.encode(new), strict=True))

    def _run(self, ready: collections.deque[_Copy]) -> None:
        """Runs copies to their ends. A batch is answered when the most questions of its width wait.

        Batches are full until few copies are left, however unequal the rows are.
        """
        waiting: dict[int, dict[tuple, _Asked]] = {}
        answered: dict[tuple, np.ndarray] = {}
        while ready or waiting:
            while ready:
                copy = ready.popleft()
                for slot, question in enumerate(copy.go_on()):
                    key = question.key
                    if key in answered:
                        copy.tell(slot, answered[key])
                        continue
                    width = self._fill.width(len(question.tokens))
                    asked = waiting.setdefault(width, {}).setdefault(key, _Asked(question, []))
                    asked.copies.append((copy, slot))
                if copy.may_go_on:
                    ready.append(copy)
            if not waiting:
                return
            width = max(waiting, key=lambda w: (len(waiting[w]) / self._fill.rows(w), w))
            queue = waiting[width]
            keys = list(queue)[: self._fill.rows(width)]
            batch = [queue.pop(key) for key in keys]
            if not queue:
                del waiting[width]
            answers = self._fill(width, [asked.question for asked in batch])
            self.asked += len(batch)
            for key, asked, answer in zip(keys, batch, answers, strict=True):
                answered[key] = answer
                for copy, slot in asked.copies:
                    copy.tell(slot, answer)
                    if copy.may_go_on:
                        ready.append(copy)


_Steps = Generator[list[Question], list[np.ndarray], None]


class _Copy:
    """A text of a copy that is under way.

    Attributes:
      may_go_on: whether it has all the answers that it waits for.
    """

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps
        self._answers: dict[int, np.ndarray] = {}
        self._wanted = -1  # not begun

    def go_on(self) -> list[Question]:
        """Goes on to its next questions, at least one; there are none at its end."""
        answers = [self._answers[slot] for slot in range(self._wanted)]
        try:
            questions = next(self._steps) if self._wanted < 0 else self._steps.send(answers)
        except StopIteration:
            questions = []
        self._answers, self._wanted = {}, len(questions)
        return questions

    def tell(self, slot: int, answer: np.ndarray) -> None:
        """Answers one of its questions."""
        self._answers[slot] = answer

    @property
    def may_go_on(self) -> bool:
        return 0 < self._wanted == len(self._answers)


class _Asked(NamedTuple):
    """A question, and the copies that wait for its answer, each with the question's number."""

    question: Question
    copies: list[tuple[_Copy, int]]
