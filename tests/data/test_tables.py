"""Tables: every row comes out or is named, whatever stands in the file."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbert.data import tables
from jaxbert.data.tables import READERS, BadRow, Record, matching_files, read_lines
from jaxbert.errors import UserError

COLUMNS = ("text", "label")


def read(kind: str, path, columns=COLUMNS):
    return list(READERS[kind](path, columns))


def pack(path, data: bytes):
    """Writes bytes as the name's ending has them."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(data)
    else:
        path.write_bytes(data)
    return path


def numbered(data: bytes, lines: list[bytes | None]) -> list[tuple[int, int, bytes | None]]:
    """Lines with their number from 1, and the byte of the data that each begins at."""
    starts = [0, *(place + 1 for place, byte in enumerate(data) if byte == ord("\n"))]
    return list(zip(range(1, len(lines) + 1), starts, lines, strict=False))


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a",
        b"a\n",
        b"\n",
        b"\n\n",
        b"a\r\nb\r\n",
        b"\xef\xbb\xbfa\nb",
        b"\r\r\n\n",
        b"x" * 3000,
    ],
)
def test_lines_end_at_line_feeds_alone(tmp_path, ending, data):
    path = pack(tmp_path / f"file{ending}", data)
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = [line.removesuffix(b"\r") for line in lines[: -1 if not lines[-1] else None]]
    assert list(read_lines(path)) == numbered(data, expected)


@pytest.mark.parametrize("longest", [1, 2, 7])
@given(data=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"bb"]), max_size=30).map(b"".join))
def test_a_line_that_is_too_long_is_passed_over_and_no_other(tmp_path_factory, longest, data):
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(data)
    lines = data.split(b"\n")[: -1 if data.endswith(b"\n") or not data else None]
    expected = [line.removesuffix(b"\r") if len(line) <= longest else None for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "LONGEST_LINE", longest)
        assert list(read_lines(path)) == numbered(data, expected)


def test_a_row_of_ten_megabytes_is_named_and_the_next_is_read(tmp_path):
    path = tmp_path / "long.tsv"
    path.write_bytes(b"text\tlabel\n" + b"x" * 10_000_000 + b"\t1\nfine\t0\n")
    bad, good = read("tsv", path)
    assert isinstance(bad, BadRow) and bad.where == f"{path}:2" and "1,048,576 bytes" in bad.what
    assert good == Record(f"{path}:3", {"text": "fine", "label": "0"})


HOSTILE = [
    ('a lone " quote', None),
    ("a line separator \u2028 and \x85 next line", None),
    ("\ufeffa byte order mark inside", None),
    ("two\ttabs", "3 fields instead of 2"),
    ("a NUL \0 character", "a NUL character"),
]


@pytest.mark.parametrize(("text", "problem"), HOSTILE)
def test_hostile_text_in_tsv(tmp_path, text, problem):
    path = tmp_path / "rows.tsv"
    path.write_bytes(f"text\tlabel\nfirst\t0\n{text}\t1\nlast\t0\n".encode())
    first, row, last = read("tsv", path)
    assert first.values["text"] == "first" and last.values["text"] == "last"
    if problem is None:
        assert row.values == {"text": text, "label": "1"}
    else:
        assert row.what == problem and row.where.startswith(f"{path}:3")


def test_bytes_that_are_not_utf8_and_empty_lines_are_named(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"text\tlabel\r\ncaf\xe9\t1\r\n\r\nfine\t1\r\n")
    latin, empty, fine = read("tsv", path)
    assert (latin.what, latin.where) == ("byte 0xe9 is not UTF-8", f"{path}:2:4")
    assert (empty.what, empty.where) == ("an empty line", f"{path}:3")
    assert fine.values == {"text": "fine", "label": "1"}


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0")), st.booleans()
        ),
        max_size=20,
    )
)
def test_tsv_gives_back_every_row_that_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tsv") / "rows.tsv"
    lines = ["text\tlabel", *(f"{text}\t{int(label)}" for text, label in rows)]
    path.write_bytes("\n".join(lines).encode())
    records = read("tsv", path)
    assert [(r.values["text"], r.values["label"]) for r in records] == [
        (text, str(int(label))) for text, label in rows
    ]


@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), st.booleans()),
        max_size=20,
    )
)
def test_csv_gives_back_every_row_that_was_written_and_its_line(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([COLUMNS, *rows])
    records = read("csv", path)
    assert [(r.values["text"], r.values["label"]) for r in records] == [
        (text, str(label)) for text, label in rows
    ]
    line = 2
    for record, (text, _) in zip(records, rows, strict=True):
        assert record.where == f"{path}:{line}"
        line += 1 + text.count("\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('fine,0\n"never closed,1\nlost,0\n', r"not CSV: .*rows.csv:3; double the quotes"),
        ('fine,0\n"closed" twice",1\n', r"not CSV: .*rows.csv:3"),
        ("fine,0\nNUL \0,1\n", r"a NUL character, .*rows.csv:3:5"),
    ],
)
def test_csv_stops_where_rows_cannot_be_told_apart(tmp_path, body, message):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + body)
    with pytest.raises(UserError, match=message):
        read("csv", path)


def test_csv_names_rows_with_other_fields_and_goes_on(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b,c\n\nfine,1\n")
    many, empty, fine = read("csv", path)
    assert (many.what, many.where) == ("3 fields instead of 2", f"{path}:2")
    assert (empty.what, empty.where) == ("an empty line", f"{path}:3")
    assert fine.where == f"{path}:4"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes"),
        ("", "not JSON: Expecting value"),
        ("[1]", "a JSON list instead of an object"),
        ('{"text": "a"}', "no 'label'; it has 'text'"),
        ("[" * 100_000, "not JSON: "),
        ('{"text": "a", "label": 1, "label": 0}', "not JSON: a name stands there twice"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
    ],
)
def test_jsonl_names_lines_that_are_no_rows(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    good = {"text": "fine \u2028", "label": True, "other": None}
    path.write_text(f"{line}\n{json.dumps(good, ensure_ascii=False)}\n", encoding="utf-8")
    bad, fine = read("jsonl", path)
    assert bad.what.startswith(problem) and bad.where.startswith(f"{path}:1")
    assert fine == Record(f"{path}:2", good)


def test_parquet_rows_come_in_order_over_row_groups(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"text": [f"t{i}" for i in range(9)] + [None], "label": range(10)})
    pyarrow.parquet.write_table(table, path, row_group_size=4)
    records = read("parquet", path)
    assert [r.values["label"] for r in records] == list(range(10))
    assert records[9] == Record(f"{path}: row 9", {"text": None, "label": 9})
    (tmp_path / "no.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"not a Parquet file.*no.parquet; copy the file again"):
        read("parquet", tmp_path / "no.parquet")


@pytest.mark.parametrize("kind", ["tsv", "csv", "parquet"])
def test_a_missing_column_is_said_with_those_that_are_there(tmp_path, kind):
    path = tmp_path / "rows"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"words": ["a"], "label": [1]}), path)
    else:
        path.write_text("words,label\n".replace(",", {"tsv": "\t", "csv": ","}[kind]))
    with pytest.raises(UserError, match=r"column 'text' stands there 0 times.*'words', 'label'"):
        read(kind, path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_packed_file_that_is_cut_short_or_damaged_is_said(tmp_path, ending):
    path = pack(tmp_path / f"rows.tsv{ending}", b"text\tlabel\n" + b"some text\t1\n" * 5_000)
    whole = path.read_bytes()
    damaged = whole[:20] + bytes(255 - byte for byte in whole[20:40]) + whole[40:]
    for data in (whole[: len(whole) // 2], damaged, b"not packed\n"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"cannot be read .*rows.tsv.*copy the file again"):
            read("tsv", path)


BOMB = 4 << 20  # bytes that a few kilobytes unpack to


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("tsv", b"a" * 999 + b"\tb\n"),
        ("csv", b'"' + b"\n" * 99 + b'",'),
        ("jsonl", b" " * 999 + b"{}\n"),
    ],
)
@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_small_file_that_unpacks_to_far_more_is_refused(
    tmp_path, kind, line, ending, monkeypatch
):
    monkeypatch.setattr(tables, "_UNPACKED", 1 << 20)
    path = tmp_path / f"a.{kind}.{ending}"
    header = {"tsv": b"text\tlabel\n", "csv": b"text,label\n"}.get(kind, b"")
    pack(path, header + line * (BOMB // len(line)))
    assert path.stat().st_size < BOMB // 100
    rows = READERS[kind](path, COLUMNS)
    with pytest.raises(UserError, match=f"unpacks to more than 1 MiB.*{path}; unpack it first"):
        for _ in rows:
            pass


def test_text_that_packs_well_is_read_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_UNPACKED", 1 << 10)
    path = tmp_path / "a.tsv.gz"
    text = "".join(f"a film {i} of {i * i}\tgood\n" for i in range(20_000))
    pack(path, f"text\tlabel\n{text}".encode())
    assert len(read("tsv", path)) == 20_000


def test_a_damaged_parquet_file_is_said(tmp_path):
    path = tmp_path / "rows.parquet"
    texts = [f"text {i * 7919 % 1000}" for i in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": range(5000)}), path)
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(255 - byte for byte in data[200:400])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"row group 0 cannot be read .*rows.parquet; write"):
        read("parquet", path)
    latin = pyarrow.array([b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": latin, "label": [0]}), path)
    with pytest.raises(UserError, match=r"row group 0 cannot be read .*rows.parquet; write"):
        read("parquet", path)


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_a_file_without_even_a_header_is_said(tmp_path, kind):
    path = tmp_path / "rows"
    path.touch()
    with pytest.raises(UserError, match=r"it is empty, without a header line, .*rows; remove"):
        read(kind, path)


def test_a_long_csv_field_is_read_and_a_longer_one_is_said_for_what_it_is(tmp_path):
    path = tmp_path / "rows.csv"
    for size in (200_000, 2_000_000):
        # Over lines, none of which is too long.
        text = ("x" * 99 + "\n") * (size // 100)
        path.write_text(f'text,label\n"{text}",1\n')
        if size < tables.LONGEST_LINE:
            assert read("csv", path)[0].values == {"text": text, "label": "1"}
        else:
            with pytest.raises(UserError, match=r"field larger than field limit.*below 1 MiB"):
                read("csv", path)


def test_messages_are_short_whatever_stands_in_the_file(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("\t".join(f"{'column' * 100} {i}" for i in range(1000)) + "\n")
    with pytest.raises(UserError) as error:
        read("tsv", path)
    assert len(error.value.line) < 3000
    path.write_text(json.dumps({f"{'name' * 100} {i}": i for i in range(1000)}) + "\n")
    assert len(read("jsonl", path)[0].what) < 3000


def test_a_million_blank_lines_are_a_million_lines(tmp_path):
    path = tmp_path / "blank.txt"
    path.write_bytes(b"\n" * 1_000_000)
    assert sum(1 for _ in read_lines(path)) == 1_000_000


def test_patterns_are_one_file_or_many_in_order(tmp_path):
    for name in ("b.tsv", "a.tsv", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.tsv").mkdir()
    found = matching_files(f"{tmp_path}/*.tsv", "look again")
    assert [path.name for path in found] == ["a.tsv", "b.tsv"]
    assert matching_files(f"{tmp_path}/c.txt", "") == [tmp_path / "c.txt"]
    (tmp_path / "x[1].tsv").touch()  # the name of a file is that file, whatever is in it
    assert matching_files(f"{tmp_path}/x[1].tsv", "") == [tmp_path / "x[1].tsv"]
    for pattern in ("a**b", "~nobody-of-that-name/x", "x" * 5000):
        with pytest.raises(UserError, match=r"; look again"):
            matching_files(pattern, "look again")
    for pattern in ("", f"{tmp_path}/y*", str(tmp_path)):
        with pytest.raises(UserError, match=r"no file matches.*; look again"):
            matching_files(pattern, "look again")


def test_a_row_group_larger_than_the_memory_is_read_a_little_at_a_time(tmp_path):
    texts = [f"{i:2000}" for i in range(10_000)]  # 20 MB
    table = pyarrow.table({"text": texts, "label": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    del table
    rows = READERS["parquet"](tmp_path / "a.parquet", COLUMNS)
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    assert next(rows).values["text"] == texts[0]
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert python < 4_000_000 and pyarrow.total_allocated_bytes() - before < 10_000_000
    assert [row.values["label"] for row in rows] == texts[1:]
