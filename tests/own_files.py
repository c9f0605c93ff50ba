"""Files of a user's own, by the names that the pages of docs give them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import commands
import pyarrow
import pyarrow.parquet


def write(folder: Path) -> None:
    """Labelled rows of every kind, plain text, and GLUE's files."""
    rows = [f"a {('dull', 'moving')[i % 2]} film, number {i}\t{i % 2}" for i in range(300)]
    text = "\n".join(["text\tlabel", *rows]) + "\n"
    (folder / "reviews.tsv").write_text(text, encoding="utf-8")
    new = [row.partition("\t")[0] for row in rows[:20]]
    (folder / "new.tsv").write_text("\n".join(["text", *new]) + "\n", encoding="utf-8")
    (folder / "texts").mkdir()
    documents = "\n\n".join(f"Film {i} is " + "rather long and " * 9 for i in range(40))
    (folder / "texts" / "a.txt").write_text(documents, encoding="utf-8")
    notes = "".join(f'{{"text": "note {i} is short"}}\n' for i in range(30))
    (folder / "notes.jsonl").write_text(notes, encoding="utf-8")
    glue = [f"{i}\tpremise {i}\tguess {i}\t{('', 'not_')[i % 2]}entailment" for i in range(100)]
    (folder / "data" / "glue" / "RTE").mkdir(parents=True)
    for split in ("train", "dev"):
        text = "\n".join(["index\tsentence1\tsentence2\tlabel", *glue])
        (folder / "data" / "glue" / "RTE" / f"{split}.tsv").write_text(text, encoding="utf-8")
    text = "\n".join(row.rpartition("\t")[0] for row in text.split("\n"))
    (folder / "data" / "glue" / "RTE" / "test.tsv").write_text(text, encoding="utf-8")
    _write_examples(folder)


def write_chinese(folder: Path) -> None:
    """Chinese rows, and a teacher with their characters, in the folder ``chinese_teacher``."""
    numbers = ("".join("零一二三四五六七八九"[int(digit)] for digit in str(i)) for i in range(200))
    said, labels = ("很差", "很好"), "差好"
    rows = [f"这部电影{said[i % 2]}看第{n}次\t{labels[i % 2]}" for i, n in enumerate(numbers)]
    (folder / "chinese.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    characters = sorted(set("".join(rows)) - {"\t"})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    config = commands.TEACHER.replace(vocab_size=len(pieces))
    commands.write_small_teacher(folder / "chinese_teacher", config, pieces=pieces)


def _write_examples(folder: Path) -> None:
    """The files that the examples of each kind of task name."""
    many = range(120)

    def lines(name: str, rows: Iterable[str]) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")

    answers = [f'"Why, {i}?","So, {i}.",{("no", "yes")[i % 2]}' for i in many]
    lines("questions.csv", ["question,answer,helpful", *answers])
    topics = (["art", "war"], "sport", [], "war, art")
    rows = [{"text": f"News {i}", "topics": topics[i % 4]} for i in many]
    lines("topics.jsonl", map(json.dumps, rows))
    pairs = [f"one {i}\tother {i}\t{i % 11 / 2}" for i in many]
    for name in ("pairs.tsv", "likeness.tsv"):
        lines(name, ["first\tsecond\tscore", *pairs])
    for name in ("a", "b"):
        sentences = (f"Ada B-PER\nByron I-PER\nsaw O\n{name}{i} B-LOC\n" for i in many)
        lines(f"names/{name}.txt", ["-DOCSTART- O\n", *sentences])
    rows = [{"words": ["Ada", "left", f"{i}"], "tags": ["B-PER", "O", "B-LOC"]} for i in many]
    lines("names.jsonl", map(json.dumps, rows))
    speech = {
        "words": [["Ada", "left", f"{i}"] for i in many],
        "tags": [["noun", "verb", "other"]] * 120,
    }
    pyarrow.parquet.write_table(pyarrow.table(speech), folder / "speech.parquet")
    rows = []
    for i in many:
        found = {"text": ["1923"] * (i % 2), "answer_start": [len(f"Film {i} came in ")] * (i % 2)}
        rows.append({"question": "When?", "context": f"Film {i} came in 1923.", "answers": found})
    lines("answers.jsonl", map(json.dumps, rows))
    data = []
    for row in rows:
        text, start = row["answers"].values()
        given = [{"text": text[0], "answer_start": start[0]}] if text else []
        question = {"question": "When?", "answers": given, "is_impossible": not given}
        data.append({"paragraphs": [{"context": row["context"], "qas": [question]}]})
    for name in ("train", "dev"):
        lines(f"{name}.json", [json.dumps({"data": data})])
    scores = [f"{i}\tone {i}\tother {i}\t{i % 11 / 2}" for i in many]
    for split in ("train", "dev"):
        header = "index\tsentence1\tsentence2\tscore"
        lines(f"data/glue/STS-B/{split}.tsv", [header, *scores])
