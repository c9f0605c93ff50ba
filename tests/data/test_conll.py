"""Column files: sentences, columns, documents, and lines that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbert.data.conll import read_conll
from jaxbert.data.rows import load_task
from jaxbert.data.tables import BadRow, Record
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError

# CoNLL-2003's own first lines, with its four columns.
TEXT = """\
-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O
. . O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def test_sentences_come_with_the_columns_that_are_asked_for(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(TEXT)
    for label, tags in (
        ("-1", ["I-ORG", "O", "I-MISC", "O", "O"]),
        ("1", ["NNP", "VBZ", "JJ", "NN", "."]),
    ):
        first, second = read_conll(path, ["0", label])
        assert first.values == {"0": ["EU", "rejects", "German", "call", "."], label: tags}
        assert first.where == f"{path}:3" and first.places[2] == f"{path}:5"
        assert second.values["0"] == ["Peter", "Blackburn"] and second.where == f"{path}:9"


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \n\t\n"])
@pytest.mark.parametrize("separator", [" ", "  ", "\t"])
def test_spaces_or_tabs_part_columns_and_blank_lines_part_sentences(tmp_path, end, separator):
    path = tmp_path / "rows"
    lines = ["a O", "b O", " ", "", "c O"]
    path.write_bytes(
        "\r\n".join(line.replace(" ", separator) for line in lines).encode() + end.encode()
    )
    rows = list(read_conll(path, ["0", "1"]))
    assert [row.values["0"] for row in rows] == [["a", "b"], ["c"]]
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:5"]


def test_only_one_tab_parts_two_columns_so_that_an_empty_word_is_seen(tmp_path):
    path = tmp_path / "rows"
    path.write_text("New York\tB-LOC\n\tO\n")
    (row,) = read_conll(path, ["0", "1"])
    assert row.values == {"0": ["New York", ""], "1": ["B-LOC", "O"]}


def test_lines_of_another_width_or_not_of_text_make_their_sentence_bad_and_no_other(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b"a O\nb\nc O\n\nd O\n\ncaf\xe9 O\ne O\n\nf\0 O\n\ng O\n")
    width, d, latin, nul, g = read_conll(path, ["0", "1"])
    assert isinstance(width, BadRow) and width.where == f"{path}:2"
    assert width.what == "1 columns instead of 2" and "2 columns on every line" in width.fix
    assert (latin.what, latin.where) == ("byte 0xe9 is not UTF-8", f"{path}:7:4")
    assert (nul.what, nul.where) == ("a NUL character", f"{path}:10:2")
    assert isinstance(d, Record) and isinstance(g, Record)


def test_a_sentence_without_an_end_is_bad_and_the_next_is_read(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("a O\n" * 70_000 + "\nfilm O\n")
    bad, good = read_conll(path, ["0"])
    assert isinstance(bad, BadRow) and isinstance(good, Record)
    assert bad.error.line == (
        f"a sentence of more than 65,536 words, {path}:65537; put an empty line between sentences"
    )


def test_a_column_that_is_not_there_is_said(tmp_path):
    path = tmp_path / "rows"
    path.write_text("a O\n")
    for column, message in (
        ("ner", r"column 'ner' is no number.*number the columns from 0"),
        ("2", r"there is no column 2, .*rows:1; number them from 0 to 1"),
        ("-3", "there is no column -3"),
    ):
        with pytest.raises(UserError, match=message):
            list(read_conll(path, ["0", column]))


FINE = [b"Ada B-PER", b"left O", b"Rome\tB-LOC", b"\xe2\x80\xa8x O", b" a  O ", b"\xe2\x80\xa8 O"]
FINE += [b"Rome I-LOC"]
BLANK = [b"", b" ", b"\t", b"\r", b"-DOCSTART- O"]
BAD = [b"x", b"a b c", b"caf\xe9 O", b"n\0 O", b"Rome B-XYZ", b"\tO"]
LINES = st.sampled_from([*FINE, *BLANK, *BAD])


@given(lines=st.lists(LINES, max_size=30), end=st.sampled_from([b"", b"\n"]))
def test_every_sentence_is_used_or_reported_whatever_stands_in_the_file(
    lines, end, tmp_path_factory
):
    path = tmp_path_factory.mktemp("conll") / "a.txt"
    good = [b"Ada B-PER", b"left O", b""] * 2
    path.write_bytes(b"\n".join([*good, *lines]) + end)
    # What stands between blank lines and those between two documents.
    blocks: list[list[bytes]] = [[]]
    for line in lines:
        if not line.strip(b" \t\r") or line.startswith(b"-DOCSTART-"):
            blocks.append([])
        else:
            blocks[-1].append(line)
    source = f"conll:{path}"
    splits = {"source": source, "dev": source, "test": source}
    # Of the scheme that is found out, the two good sentences may be the bad ones.
    task = describe_task("mine", **splits, on_bad_row="skip", labels=("PER", "LOC"), scheme="IOB2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxbert.data.rows._TOO_MANY", 1.0)
        data = load_task(task)
    record = data.rows[source]
    assert record["read"] == 2 + sum(map(bool, blocks)) == record["used"] + record["skipped"]
    certain = sum(bool(block) and set(block) <= {b"Ada B-PER", b"left O"} for block in blocks)
    possible = sum(bool(block) and set(block) <= set(FINE) for block in blocks)
    assert 2 + certain <= record["used"] <= 2 + possible


LABELS = {"labels": ("PER", "ORG", "LOC", "MISC")}


def test_a_task_of_ones_own_needs_its_source_and_the_types_of_its_entities(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT)
    source = f"conll:{tmp_path}/train.txt"
    task = describe_task("mine", source=source, dev=source, test=source, **LABELS)
    assert (task.kind, task.metric, task.num_outputs) == ("tagging", "entity_f1", 9)
    data = load_task(task)
    assert data.labels[:3] == ("O", "B-PER", "I-PER")
    tags = [[data.labels[tag] for tag in tags] for tags in data.train.tags]
    assert tags == [["B-ORG", "O", "B-MISC", "O", "O"], ["B-PER", "I-PER"]]
    assert data.train.texts[1] == "Peter Blackburn" and data.train.labels is None
    assert data.train.words[1] == ("Peter", "Blackburn")
    record = data.rows[source]
    assert (record["read"], record["used"], record["scheme"]) == (2, 2, "IOB1")
    assert data.overlap == {"dev": 2, "test": 2}


def test_parts_of_speech_are_tags_without_a_scheme(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT)
    source = f"conll:{tmp_path}/train.txt"
    given = {"source": source, "dev": source, "test": source, "label": "1", "scheme": "none"}
    task = describe_task("pos", labels=("NNP", "VBZ", "JJ", "NN", "."), **given)
    assert (task.metric, task.reported) == ("accuracy", ("accuracy",))
    assert [tags.tolist() for tags in load_task(task).train.tags] == [[0, 1, 2, 3, 4], [0, 0]]
    with pytest.raises(UserError, match=r"unknown tag 'VBZ', .*train.txt:4:1; the tags are 'NNP',"):
        load_task(describe_task("pos", labels=("NNP", "JJ"), **given))
    with pytest.raises(UserError, match=r"unknown tag 'NNP'.*task.scheme=none for tags without B-"):
        load_task(describe_task("pos", labels=("NNP", "JJ"), **(given | {"scheme": ""})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("I-MISC", "I-FOO"), r"unknown tag 'I-FOO', {}:5:-1; the tags are 'O', 'B-PER'"),
        (("I-MISC", "i-MISC"), r"unknown tag 'i-MISC', {}:5:-1"),
        (("I-MISC", "B-MISC"), r"'B-MISC' cannot follow 'O' in IOB1, {}:5:-1"),
        (("German JJ", "German"), r"3 columns instead of 4, {}:5; write 4 columns"),
    ],
)
def test_a_tag_that_cannot_be_is_named_by_its_line(change, message, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(TEXT.replace(*change))
    source = f"conll:{path}"
    with pytest.raises(UserError, match=message.format(path)):
        load_task(describe_task("mine", source=source, dev=source, test=source, **LABELS))


def test_tags_in_the_place_of_types_are_refused():
    with pytest.raises(UserError, match=r"O, B-PER is a tag and no type.*PER for B-PER and I-PER"):
        describe_task("mine", source="conll:a", labels=("O", "B-PER"))
