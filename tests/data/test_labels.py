"""Labels of every kind, from every table: what is used, what is named, and that nothing is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tfds_files
from hypothesis import given
from hypothesis import strategies as st

from jaxbert.data.encoding import encode_rows
from jaxbert.data.rows import load_task
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError

TOPICS = {"columns": ("text",), "kind": "multi_label", "labels": ("war", "art", "sport")}
SCORE = {"columns": ("text",), "kind": "regression", "bounds": (0.0, 5.0)}
TAGS = {"columns": ("words",), "kind": "tagging", "labels": ("PER", "LOC")}


def write(path: Path, label: str, values: list, texts: list | None = None, column="text") -> str:
    """A file of JSON lines; returns the reference to it."""
    texts = texts or [f"text {i}" for i in range(len(values))]
    rows = [{column: text, label: value} for text, value in zip(texts, values, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return f"jsonl:{path}"


def load(source: str, **said):
    """All of a source as training rows."""
    return load_task(describe_task("mine", source=source, dev=source, test=source, **said))


# --- several labels -------------------------------------------------------------------------------


def test_several_labels_are_names_between_commas_or_a_list(tmp_path):
    values = ["war", "art, war", "", [], ["sport"], [0, "2"], "1"]
    data = load(write(tmp_path / "a.jsonl", "label", values), **TOPICS)
    assert data.train.labels.dtype == np.float32 and data.metric == "f1_micro"
    wanted = [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0]]
    assert data.train.labels.tolist() == wanted
    assert data.task.num_outputs == 3 and data.task.reported[:2] == ("f1_micro", "f1_macro")


def test_another_separator_and_lists_of_parquet(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\na\twar|art\nb\t\nc\tsport\n")
    data = load(f"tsv:{tmp_path}/a.tsv", separator="|", **TOPICS)
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [["war", "art"], [], ["sport"]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    other = load(f"parquet:{tmp_path}/a.parquet", **TOPICS)
    assert data.train.sha256 == other.train.sha256
    assert data.train.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("war,arts", "unknown label 'arts', {}:label; the labels are 'war', 'art', 'sport'"),
        ("war,", "unknown label '', {}:label"),
        ("war, art,war", "a label stands twice in 'war, art,war', {}:label"),
        (["war", 0], "a label stands twice in"),
        (None, "None instead of label names, {}:label; give a list, or a text with ',' between"),
        (1, "1 instead of label names"),
        ([[]], "unknown label []"),
        (["war", None], "unknown label None"),
        ([3], "unknown label 3"),
    ],
)
def test_names_that_are_none_are_named_by_their_line(value, message, tmp_path):
    source = write(tmp_path / "a.jsonl", "label", ["war", value, "art"])
    with pytest.raises(UserError) as error:
        load(source, **TOPICS)
    assert error.value.line.startswith(message.format(f"{tmp_path}/a.jsonl:2"))


def test_the_same_labels_on_every_row_teach_nothing(tmp_path):
    source = write(tmp_path / "a.jsonl", "label", ["war", ["war"]])
    with pytest.raises(UserError, match="all 2 training rows have the same labels"):
        load(source, **TOPICS)


# --- numbers --------------------------------------------------------------------------------------


def test_numbers_are_numbers_or_texts_of_numbers(tmp_path):
    values = [0, 5, 2.5, "3.25", "+1", "1e0", ".5", " 4. "]
    data = load(write(tmp_path / "a.jsonl", "label", values), **SCORE)
    assert data.train.labels.dtype == np.float32 and data.task.num_outputs == 1
    assert data.train.labels.tolist() == [0, 5, 2.5, 3.25, 1, 1, 0.5, 4]
    assert (data.metric, data.labels) == ("pearson_spearman", ())
    free = load(
        write(tmp_path / "a.jsonl", "label", [-1e30, 7]), columns=("text",), kind="regression"
    )
    assert free.train.labels.tolist() == [np.float32(-1e30), 7]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("five", "'five' is no number, {}:label; mend or remove the row"),
        ("", "'' is no number"),
        ("1,5", "'1,5' is no number"),
        ("1_0", "'1_0' is no number"),
        ("٣", "'٣' is no number"),
        ("nan", "'nan' is no number"),
        ("-inf", "'-inf' is no number"),
        (None, "None is no number"),
        (True, "True is no number"),
        ([1], "[1] is no number"),
        (math.nan, "nan is no finite number, {}:label"),
        (math.inf, "inf is no finite number"),
        (10**400, "1000000000"),
        (5.01, "5.01 is out of range, {}:label; give 0 to 5"),
        ("-0.1", "'-0.1' is out of range"),
    ],
)
def test_what_is_no_number_in_range_is_named_by_its_line(value, message, tmp_path):
    source = write(tmp_path / "a.jsonl", "label", [1, value, 2])
    with pytest.raises(UserError) as error:
        load(source, **SCORE)
    assert error.value.line.startswith(message.format(f"{tmp_path}/a.jsonl:2"))
    assert f"{tmp_path}/a.jsonl:2:label" in error.value.line


def test_one_number_on_every_row_teaches_nothing(tmp_path):
    with pytest.raises(
        UserError, match=r"all 2 training rows have the label 3, .*; give rows of at"
    ):
        load(write(tmp_path / "a.jsonl", "label", [3, 3.0]), **SCORE)


# --- tags -----------------------------------------------------------------------------------------


def test_words_and_tags_are_lists_or_texts_of_as_many(tmp_path):
    words = [["Ada", "in", "Rome"], "Ada in Rome", ["Ada"]]
    tags = [["B-PER", "O", "B-LOC"], "B-PER O B-LOC", [1]]
    data = load(write(tmp_path / "a.jsonl", "tags", tags, words, "words"), **TAGS)
    assert [t.tolist() for t in data.train.tags] == [[1, 0, 3], [1, 0, 3], [1]]
    assert data.train.words == [("Ada", "in", "Rome")] * 2 + [("Ada",)]
    assert data.rows[f"jsonl:{tmp_path}/a.jsonl"]["scheme"] == "IOB2"


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        (["a", "b"], ["O"], "2 words and 1 tags, {}:tags"),
        ([], [], "no words, {}:words"),
        (["a", ""], ["O", "O"], "empty text, {}:words[1]"),
        (["a", None], ["O", "O"], "nothing instead of text, {}:words[1]"),
        (["a", "b\0"], ["O", "O"], "a NUL character, {}:words[1]"),
        (["a", "b"], ["O", "B-ORG"], "unknown tag 'B-ORG', {}:tags[1]; the tags are 'O', 'B-PER'"),
        (["a", "b"], ["O", 5], "unknown tag 5, {}:tags[1]"),
        (["a", "b"], ["O", None], "unknown tag None, {}:tags[1]"),
        (["a", "b"], ["O", "I-PER"], "'I-PER' cannot follow 'O' in IOB2, {}:tags[1]"),
        (["a"], {"O": 1}, "{{'O': 1}} instead of a list, {}:tags"),
        (7, ["O"], "7 instead of a list, {}:words"),
    ],
)
def test_a_sentence_that_cannot_be_used_is_named_by_its_word(words, tags, message, tmp_path):
    texts = [["x", "y"], words, ["z"], ["z"]]
    path = tmp_path / "a.jsonl"
    source = write(path, "tags", [["B-PER", "I-PER"], tags, ["O"], ["B-LOC"]], texts, "words")
    with pytest.raises(UserError) as error:
        load(source, **TAGS)
    assert error.value.line.startswith(message.format(f"{path}:2"))


def test_a_word_without_a_piece_is_an_unknown_one_and_its_sentence_is_used(tmp_path, tokenizer):
    words = [["Ada", "\x96", "left"], ["in", "\u200b"], ["\u00a0", "Rome", "\ufffd"]]
    tags = [["B-PER", "O", "O"], ["O", "O"], ["O", "B-LOC", "O"]]
    source = write(tmp_path / "a.jsonl", "tags", tags, words, "words")
    data = load(source, **TAGS)
    assert data.train.words == [tuple(sentence) for sentence in words]
    assert (data.rows[source]["used"], data.rows[source]["skipped"]) == (3, 0)
    examples = encode_rows(tokenizer, data.train, max_length=8)
    first = examples.tokens[: examples.offsets[1]].tolist()
    ada, left = (tokenizer.encode([word])[0].tolist() for word in ("Ada", "left"))
    assert first == [tokenizer.cls_id, *ada, tokenizer.unk_id, *left, tokenizer.sep_id]
    assert np.diff(examples.marks.offsets).tolist() == [3, 2, 3]


def test_one_tag_on_every_word_teaches_nothing(tmp_path):
    source = write(tmp_path / "a.jsonl", "tags", [["O"], ["O"]], [["x"], ["y"]], "words")
    with pytest.raises(UserError, match="all 2 training rows have the tag 'O' on every word"):
        load(source, **TAGS)


# --- rows in are rows used and rows reported ------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = st.sampled_from(["war", "art", "B-PER", "I-PER", "O", "1", "-1", "war,art", "5.5"])
CONTEXT = "Ada was born in London."
ANSWER = st.fixed_dictionaries(
    {"text": st.lists(st.sampled_from(["Ada", "London", " "]), max_size=2),
     "answer_start": st.lists(st.sampled_from([0, 16, 5, -1, None]), max_size=2)}
)  # fmt: skip
KINDS = {
    "classification": {"columns": ("a",), "labels": ("war", "art")},
    "multi_label": {"columns": ("a",), "labels": ("war", "art")},
    "regression": {"columns": ("a",), "bounds": (-5.0, 5.0)},
    "tagging": {"columns": ("a",), "labels": ("PER",)},
    "spans": {"columns": ("a", "b")},
}
GOOD = {
    "classification": ("text", ["war", "art"]),
    "multi_label": ("text", [["war"], "art,war"]),
    "regression": ("text", [1, "2.5"]),
    "tagging": (["Ada", "Byron"], [["B-PER", "I-PER"], ["O", "B-PER"]]),
    "spans": ("Who?", [{"text": ["Ada"], "answer_start": [0]}, {"text": [], "answer_start": []}]),
}


@pytest.mark.parametrize("kind", list(KINDS))
@given(
    hostile=st.lists(
        st.tuples(
            JSON | st.text(min_size=1) | st.lists(st.text(max_size=3), min_size=1, max_size=3),
            JSON | NAMES | st.lists(NAMES, min_size=1, max_size=3) | ANSWER,
        ),
        max_size=12,
    )
)
def test_every_row_is_used_or_reported(kind, hostile, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    text, labels = GOOD[kind]
    good = [(text, labels[i % 2]) for i in range(12)]
    rows = [{"a": a, "b": CONTEXT, "gold": label} for a, label in [*good, *hostile]]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    source = f"jsonl:{path}"
    task = describe_task(
        "mine", source=source, dev=source, test=source, label="gold", kind=kind, on_bad_row="skip",
        **KINDS[kind],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxbert.data.rows._TOO_MANY", 1.0)
        data = load_task(task)
    record = data.rows[source]
    assert record["read"] == len(rows) == record["used"] + record["skipped"]
    assert len(data.train) == record["used"] >= 12
    assert len(record["problems"]) == min(5, record["skipped"])
    for problem in record["problems"]:
        assert f"{path}:" in problem
    counts = {len(v) for v in vars(data.train).values() if v is not None}
    assert counts == {len(data.train)}
    if kind == "tagging":
        for words, tags in zip(data.train.words, data.train.tags, strict=True):
            assert len(words) == len(tags) and set(tags.tolist()) <= {0, 1, 2}
    elif kind == "spans":
        for answers in data.train.answers:
            assert all(
                CONTEXT[start:].startswith(answer) and answer.strip() for start, answer in answers
            )
    else:
        low, high = {"regression": (-5, 5)}.get(kind, (0, 1))
        assert ((data.train.labels >= low) & (data.train.labels <= high)).all()


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_hash_of_rows_is_of_every_label_and_parts_of_them_keep_theirs(kind, tmp_path):
    text, labels = GOOD[kind]

    def rows(order):
        values = [{"a": text, "b": CONTEXT, "gold": labels[i]} for i in order]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
        source = f"jsonl:{tmp_path}/a.jsonl"
        return load(source, label="gold", kind=kind, **KINDS[kind]).train

    one = rows((0, 1, 0))
    assert one.sha256 != rows((0, 0, 1)).sha256
    assert one.take(np.array([True, True, False])).sha256 == rows((0, 1)).sha256


# --- TFDS -----------------------------------------------------------------------------------------


def test_named_entities_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    tags = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
    features = {
        "tokens": tfds.features.Sequence(tfds.features.Text()),
        "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=tags)),
    }
    rows = [
        {"tokens": ["Ada", "Byron", "in", "Zürich"], "ner": ["B-PER", "I-PER", "O", "B-LOC"]},
        {"tokens": ["UN"], "ner": ["B-ORG"]},
    ]
    splits = {"train": rows, "dev": rows[:1], "test": rows[1:]}
    tfds_files.prepare(tmp_path, "conll2003", "conll2003", features, splits)
    data = load_task(describe_task("conll2003"), str(tmp_path))
    assert data.labels == tuple(tags)
    assert data.train.words == [("Ada", "Byron", "in", "Zürich"), ("UN",)]
    assert [t.tolist() for t in data.train.tags] == [[1, 2, 0, 5], [3]]
    assert (len(data.dev), len(data.test)) == (1, 1)


@pytest.mark.parametrize(("name", "version"), [("squad", "v1.1"), ("squad2", "v2.0")])
def test_questions_of_tfds(name, version, tmp_path):
    import tensorflow_datasets as tfds

    answers = {"text": tfds.features.Text(), "answer_start": np.int32}
    features = {"question": None, "context": None, "answers": tfds.features.Sequence(answers)}
    rows = [
        {"question": "Who?", "context": CONTEXT, "answers": {"text": ["Ada"], "answer_start": [0]}},
        {"question": "Why?", "context": "Café " + CONTEXT,
         "answers": {"text": [], "answer_start": []}},
        {"question": "Where?", "context": "Café " + CONTEXT,
         "answers": {"text": ["London", "Ada"], "answer_start": [21, 5]}},
    ] * 20  # fmt: skip
    rows = [{**row, "context": f"{row['context']} {i}"} for i, row in enumerate(rows)]
    splits = {"train": rows, "validation": rows[:3]}
    tfds_files.prepare(tmp_path, "squad", version, features, splits)
    data = load_task(describe_task(name), str(tmp_path))
    assert len(data.train) + len(data.dev) == 60 and data.overlap["test"] > 0
    found = dict(zip(data.test.texts, data.test.answers, strict=True))  # TFDS shuffles
    assert found == {"Who?": ((0, "Ada"),), "Why?": (), "Where?": ((21, "London"), (5, "Ada"))}


def test_reviews_of_tfds_and_several_labels_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    rows = [{"text": f"film {i}", "label": i % 2} for i in range(50)]
    splits = {"train": rows, "test": rows[:7]}
    features = {"text": None, "label": ("neg", "pos")}
    tfds_files.prepare(tmp_path, "imdb_reviews", "plain_text", features, splits)
    data = load_task(describe_task("imdb"), str(tmp_path))
    assert data.labels == ("neg", "pos") and data.test.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    classes = tfds.features.Sequence(tfds.features.ClassLabel(names=("art", "war", "sport")))
    rows = [{"text": "a", "label": ["war"]}, {"text": "b", "label": []}]
    tfds_files.prepare(tmp_path, "topics", "all", {"text": None, "label": classes}, {"train": rows})
    source = "tfds:topics/all"
    mine = describe_task("mine", source=source, dev=source, test=source, **TOPICS)
    assert load_task(mine, str(tmp_path)).train.labels.tolist() == [[1, 0, 0], [0, 0, 0]]
