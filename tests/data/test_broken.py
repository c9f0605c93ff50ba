"""The broken files of tests/data/broken, each with what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxbert.data.rows import load_task
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError

FOLDER = Path(__file__).parent / "broken"
TEXT = {"columns": ("text",), "labels": ("bad", "good")}
SCORE = {"columns": ("text",), "label": "score", "kind": "regression", "bounds": (0.0, 5.0)}
TOPICS = {"columns": ("text",), "label": "topics", "kind": "multi_label", "labels": ("art", "war")}
ENTITIES = {"labels": ("PER", "LOC")}
WORDS = {**ENTITIES, "columns": ("words",), "kind": "tagging"}
ROW = "mend or remove the row"
TWO = "put one tab between two fields, and none inside of one"
CSV = "double the quotes inside of a quoted field, close it, and keep it below 1 MiB"
LABELS = "the labels are 'bad', 'good'"
COLUMN = "column 'text' stands there 0 times, FILE:1; it has 'review', 'label'"
SKIP = ", or set task.on_bad_row=skip"

# File, the task that it is read for, and the message (FILE is its path, "..." what a library says)
# or, where nothing is wrong in spite of what stands there, how many rows it has.
TABLE = {
    "missing_column.tsv": (TEXT, COLUMN),
    "missing_column.csv": (TEXT, COLUMN),
    "extra_tab.tsv": (TEXT, f"3 fields instead of 2, FILE:4; {TWO}"),
    "missing_field.tsv": (TEXT, f"1 fields instead of 2, FILE:4; {TWO}"),
    "lone_quote.tsv": (TEXT, 3),
    "lone_quote.csv": (TEXT, f"not CSV: ... FILE:4; {CSV}"),
    "open_quote.csv": (TEXT, f"not CSV: ... FILE:4; {CSV}"),
    "nul.tsv": (TEXT, f"a NUL character, FILE:4:4; {ROW}"),
    "latin1.tsv": (TEXT, "byte 0xe9 is not UTF-8, FILE:4:6; save the file as UTF-8"),
    "byte_order_mark.tsv": (TEXT, 2),
    "crlf.tsv": (TEXT, 2),
    "empty_line.tsv": (TEXT, "an empty line, FILE:4; remove it"),
    "empty_text.tsv": (TEXT, f"empty text, FILE:4:text; {ROW}"),
    "line_separator.tsv": (TEXT, 3),
    "long_row.tsv.gz": (TEXT, f"the line is longer than 1,048,576 bytes, FILE:4; {ROW}"),
    "cut_short.tsv.gz": (TEXT, "it cannot be read ( ... ), FILE; copy the file again"),
    "no_rows.tsv": (TEXT, "the train split is empty, tsv:FILE; give more rows"),
    "no_header.tsv": (TEXT, "it is empty, without a header line, FILE; remove or mend the file"),
    "unknown_label.tsv": (TEXT, f"unknown label 'god', FILE:4:label; {LABELS}"),
    "label_out_of_range.tsv": (TEXT, f"unknown label '2', FILE:4:label; {LABELS}"),
    "label_minus_one.tsv": (
        TEXT,
        "unknown label '-1' (-1 marks the rows of GLUE's test splits), FILE:4:label; " + LABELS,
    ),
    "label_of_another_type.jsonl": (TEXT, f"unknown label 0.5, FILE:2:label; {LABELS}"),
    "one_class.tsv": (
        TEXT,
        "all 2 training rows have the label 'good', tsv:FILE; give rows of at least two classes",
    ),
    "not_json.jsonl": (TEXT, f"not JSON: ... , FILE:2:25; {ROW}"),
    "name_twice.jsonl": (TEXT, f"not JSON: a name stands there twice, FILE:2:1; {ROW}"),
    "lone_surrogate.jsonl": (TEXT, f"'\\ud800' is no character of UTF-8, FILE:2:text; {ROW}"),
    "no_text.jsonl": (TEXT, f"nothing instead of text, FILE:2:text; {ROW}"),
    "not_parquet.parquet": (TEXT, "not a Parquet file ( ... ), FILE; copy the file again"),
    "not_a_number.tsv": (SCORE, f"'lots' is no number, FILE:3:score; {ROW}"),
    "nan.tsv": (SCORE, f"'NaN' is no number, FILE:3:score; {ROW}"),
    "infinite.jsonl": (SCORE, f"inf is no finite number, FILE:2:score; {ROW}"),
    "score_out_of_range.tsv": (SCORE, "'5.5' is out of range, FILE:3:score; give 0 to 5"),
    "unknown_topic.tsv": (
        TOPICS,
        "unknown label 'arts', FILE:3:topics; the labels are 'art', 'war'",
    ),
    "topic_twice.jsonl": (TOPICS, f"a label stands twice in ['art', 'art'], FILE:2:topics; {ROW}"),
    "unknown_tag.conll": (
        ENTITIES,
        "unknown tag 'B-PERS', FILE:6:-1; the tags are 'O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC', "
        "or set task.scheme=none for tags without B- and I-",
    ),
    "stray_inside.conll": (ENTITIES, f"'I-LOC' cannot follow 'O' in IOB2, FILE:7:-1; {ROW}"),
    "open_entity.conll": (
        {**ENTITIES, "scheme": "BIOES"},
        f"'O' cannot follow 'B-PER' in BIOES, FILE:7:-1; {ROW}",
    ),
    "missing_tag.conll": (
        ENTITIES,
        "1 columns instead of 2, FILE:7; write 2 columns on every line, as on the first one",
    ),
    "latin1.conll": (ENTITIES, "byte 0xe9 is not UTF-8, FILE:6:4; save the file as UTF-8"),
    "fewer_tags.jsonl": (WORDS, f"2 words and 1 tags, FILE:2:tags; {ROW}"),
    "no_words.jsonl": (WORDS, f"no words, FILE:2:words; {ROW}"),
    "offset.json": (
        {},
        "answer 'London' is not at 15, where ' Londo' stands, "
        "FILE: data[0].paragraphs[0].qas[1]:answers[0]; it stands at 16",
    ),
    "answer_elsewhere.json": (
        {},
        "answer 'Paris' is not at 16, where 'Londo' stands, "
        "FILE: data[0].paragraphs[0].qas[1]:answers[0]; it does not stand in the context",
    ),
    "no_answer.json": (
        {},
        "a question without an answer, FILE: data[0].paragraphs[0].qas[1].answers; "
        "give one, or is_impossible",
    ),
    "not_squad.json": (
        {},
        "there is no list, FILE: data; give a file as SQuAD has it: data, paragraphs, qas",
    ),
    "not_json.json": ({}, "not JSON: ... , FILE:2:1; mend or copy the file again"),
}
FORMATS = {"conll": "conll", "json": "squad"}


@pytest.mark.parametrize("name", list(TABLE))
def test_a_broken_file_is_said_in_one_line(name):
    said, expected = TABLE[name]
    ending = name.removesuffix(".gz").rpartition(".")[2]
    source = f"{FORMATS.get(ending, ending)}:{FOLDER / name}"
    task = describe_task("mine", source=source, dev=source, test=source, **said)
    if isinstance(expected, int):
        assert len(load_task(task).train) == expected
        return
    with pytest.raises(UserError) as error:
        load_task(task)
    line = error.value.line.replace(str(FOLDER / name), "FILE").removesuffix(SKIP)
    start, library, end = expected.partition(" ... ")
    assert line == expected or (library and line.startswith(start) and line.endswith(end))


def test_every_broken_file_is_in_the_table():
    assert {path.name for path in FOLDER.iterdir()} - {".gitattributes"} == set(TABLE)
