"""A span task made by rule from real text, as SQuAD 2.0 files.

    python benchmarks/span_task.py --text=wiki.test.raw.gz --out=data/spans

A paragraph's numbers and names are what can be asked for. A question is the words around one of
them, in a sentence, with ``which number`` or ``which name`` in its place; the context is the whole
paragraph, which holds several of that kind. A quarter of the questions are asked of the next
paragraph of the same article, which does not answer them. So neither text tells the answer alone:
question and sentence have to be matched, and the gap be found.

Written are train.json and test.json; no article is in both.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KINDS = {
    "which number": re.compile(r"(?<![\w.,-])\d[\d.,]*(?<![.,])(?![\w-])"),
    # Two capitalised words or more, not at the beginning of a sentence.
    "which name": re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)+(?![\w-])"),
}
AROUND = 8  # words of the sentence on either side of the gap
QUESTIONS = 4  # at most, of a paragraph
UNANSWERABLE = 0.25
SHORTEST = 200  # characters of a paragraph


class Question(NamedTuple):
    """A question and what answers it."""

    text: str
    answer: str
    start: int


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="WikiText, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="the folder of both files")
    args = parser.parse_args()
    rng = random.Random(0)
    articles = list(read_articles(args.text))
    args.out.mkdir(parents=True, exist_ok=True)
    held_out = set(rng.sample(range(len(articles)), len(articles) // 5))
    for name, chosen in (("test", True), ("train", False)):
        data = []
        for index, (title, paragraphs) in enumerate(articles):
            if (index in held_out) == chosen:
                data.append({"title": title, "paragraphs": list(ask(paragraphs, title, rng))})
        counts = [len(p["qas"]) for article in data for p in article["paragraphs"]]
        text = json.dumps({"version": "v2.0", "data": data})
        (args.out / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{args.out / name}.json: {sum(counts):,} questions on {len(counts):,} paragraphs")


def read_articles(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Titles and the paragraphs below them."""
    opened = gzip.open if path.suffix == ".gz" else open
    title, paragraphs = "", []
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            heading = re.fullmatch(r" = ([^=].*[^=]) = \n", line)
            if heading:
                if paragraphs:
                    yield title, paragraphs
                title, paragraphs = heading[1].replace(" @-@ ", "-"), []
            elif len(line) >= SHORTEST and not line.startswith(" = "):
                paragraphs.append(re.sub(r" @([-,.])@ ", r"\1", line.strip()))
    if paragraphs:
        yield title, paragraphs


def ask(paragraphs: list[str], title: str, rng: random.Random) -> Iterator[dict]:
    """The paragraphs of an article that can be asked about, with their questions."""
    asked = [questions_of(paragraph, rng) for paragraph in paragraphs]
    for number, context in enumerate(paragraphs):
        found = []
        for question in asked[number]:
            answers = [{"text": question.answer, "answer_start": question.start}]
            found.append({"question": question.text, "answers": answers, "is_impossible": False})
        for question in asked[number - 1] if number else ():
            if question.answer not in context and rng.random() < UNANSWERABLE / (1 - UNANSWERABLE):
                found.append({"question": question.text, "answers": [], "is_impossible": True})
        for place, entry in enumerate(found):
            entry["id"] = f"{title}-{number}-{place}"
        if found:
            yield {"context": context, "qas": found}


def questions_of(paragraph: str, rng: random.Random) -> list[Question]:
    """Some questions that the paragraph answers, each once."""
    found = []
    for kind, pattern in KINDS.items():
        matches = list(pattern.finditer(paragraph))
        if len({match[0] for match in matches}) < 2:
            continue
        for match in matches:
            begin = paragraph.rfind(" . ", 0, match.start()) + 1
            end = paragraph.find(" . ", match.end())
            before = paragraph[begin : match.start()].strip(" .").split()[-AROUND:]
            after = paragraph[match.end() : end if end >= 0 else None].strip(" .").split()[:AROUND]
            # Words of which there are few say little about where they stand.
            if len(before) + len(after) >= AROUND and paragraph.count(match[0]) == 1:
                text = " ".join([*before, kind, *after])
                found.append(Question(text, match[0], match.start()))
    return rng.sample(found, min(QUESTIONS, len(found)))


if __name__ == "__main__":
    main()
