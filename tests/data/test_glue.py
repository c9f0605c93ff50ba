"""The official GLUE layouts, each from a file with the header of the download."""

import gzip
import re

import numpy as np
import pytest

from jaxbert.data.glue import FILES, read_glue, read_glue_test, write_submission
from jaxbert.data.rows import load_task
from jaxbert.data.tables import Record
from jaxbert.data.tasks import TASKS, describe_task
from jaxbert.errors import UserError

# The header lines of the official files; CoLA has none.
HEADERS = {
    "cola": "gj04\tlabel\tmark\tsentence",
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
    "sentence1\tsentence2\tscore",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
# Those of the test files, which have no labels; of the other tasks they are the same but for it.
TEST_HEADERS = {
    **{name: header.rpartition("\t")[0] for name, header in HEADERS.items()},
    "cola": "index\tsentence",
    "sst2": "index\tsentence",
    "mrpc": "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tquestion1\tquestion2",
    "mnli": HEADERS["mnli"].partition("\tlabel1")[0],
    "ax": "index\tsentence1\tsentence2",
}
NAMED = ("mnli", "qnli", "rte")  # whose files have the names of the classes; others numbers


def official_label(name, i):
    """What stands in the label's column of row i."""
    labels = TASKS[name].labels if name in NAMED else (0.0, 2.5, 5.0) if name == "stsb" else (0, 1)
    return labels[i % len(labels)]


def write_split(root, name, split, count, packed=False):
    files, header = FILES[name], HEADERS[name].split("\t")
    lines = [] if files.header else ["\t".join(header)]
    for i in range(count):
        row = {column: f'{column} {i} with a lone " quote' for column in header}
        if files.label:
            row[files.label] = str(official_label(name, i))
        lines.append("\t".join(row.values()))
    (root / files.folder).mkdir(parents=True, exist_ok=True)
    path = root / files.folder / f"{split}.tsv"
    data = "\n".join(lines).encode()  # as the official CoLA: no line feed at the end
    path.with_suffix(".tsv.gz" * packed or ".tsv").write_bytes(
        gzip.compress(data) if packed else data
    )


@pytest.mark.parametrize("name", list(HEADERS))
def test_every_official_layout_is_read(name, tmp_path):
    files = FILES[name]
    write_split(tmp_path, name, files.dev, 30)
    records = list(read_glue(str(tmp_path), name, files.dev, files.columns))
    assert len(records) == 30 and all(isinstance(record, Record) for record in records)
    for i, record in enumerate(records):
        line = i + 1 + (files.header is None)
        assert record.where == f"{tmp_path / files.folder / files.dev}.tsv:{line}"
        for column in files.columns:
            assert re.match(rf"{re.escape(column)} {i} ", record.values[column])


@pytest.mark.parametrize("name", list(HEADERS))
@pytest.mark.parametrize("packed", [True, False])
def test_a_task_is_loaded_from_its_official_files(name, packed, tmp_path):
    write_split(tmp_path, name, "train", 200, packed)
    write_split(tmp_path, name, FILES[name].dev, 40, packed)
    data = load_task(describe_task(name, source=f"glue:{tmp_path}"))
    assert len(data.train) + len(data.dev) == 200 and len(data.test) == 40
    labels = [official_label(name, i) for i in range(40)]
    if name in NAMED:
        labels = [data.labels.index(label) for label in labels]
    assert data.test.labels.tolist() == labels
    assert (data.test.pairs is None) == (len(FILES[name].columns) == 1)


@pytest.mark.parametrize("name", list(TEST_HEADERS))
def test_rows_without_labels_are_read_and_handed_in_as_glue_takes_them(name, tmp_path):
    header = TEST_HEADERS[name].split("\t")
    folder = tmp_path / FILES[name].folder
    folder.mkdir()
    splits = {"mnli": ("test_matched", "test_mismatched"), "ax": ("diagnostic",)}
    for split in splits.get(name, ("test",)):
        rows = [[str(i), *(f'{split} {c} {i} "' for c in header[1:])] for i in range(5)]
        lines = ["\t".join(row) for row in (header, *rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    tests = read_glue_test(str(tmp_path), name)
    folders = {"mnli": ["MNLI-m", "MNLI-mm"], "ax": ["AX"]}
    assert [test.file for test in tests] == [
        f"{file}.tsv" for file in folders.get(name, [FILES[name].folder])
    ]
    for split, test in zip(splits.get(name, ("test",)), tests, strict=True):
        columns = FILES[name].columns
        assert test.indices == list("01234")
        assert test.texts == [f'{split} {columns[0]} {i} "' for i in range(5)]
        assert (test.pairs or [])[4:] == [f'{split} {c} 4 "' for c in columns[1:]]
    predicted = np.array([-0.5, 1.23456, 6, 5, 2.5] if name == "stsb" else [0, 1, 1, 0, 1])
    path = write_submission(tmp_path / "out", name, tests[0], predicted)
    lines = path.read_bytes().decode().split("\n")
    assert (lines[0], lines[-1]) == ("index\tprediction", "")
    two = ("entailment", "not_entailment") if name in NAMED else ("0", "1")
    names = ("entailment", "neutral") if name in ("mnli", "ax") else two
    scores = ["0.000", "1.235", "5.000", "5.000", "2.500"]
    wanted = scores if name == "stsb" else [names[i] for i in (0, 1, 1, 0, 1)]
    assert lines[1:-1] == [f"{i}\t{prediction}" for i, prediction in enumerate(wanted)]
    assert path.name == tests[0].file


def test_a_class_is_handed_in_under_the_name_that_the_labelled_files_have():
    for name in HEADERS:
        names, labels = FILES[name].names, TASKS[name].labels
        assert len(names) == len(labels) and (name not in NAMED or names == labels)


def test_no_row_without_a_label_is_left_out(tmp_path):
    (tmp_path / "RTE").mkdir()
    path = tmp_path / "RTE" / "test.tsv"
    path.write_text("index\tsentence1\tsentence2\n0\ta\tb\n1\ta\n")
    with pytest.raises(UserError, match=r"2 fields instead of 3, .*test.tsv:3; put one tab"):
        read_glue_test(str(tmp_path), "rte")
    with pytest.raises(UserError, match=r"neither test.tsv nor test.tsv.gz.*CoLA"):
        read_glue_test(str(tmp_path), "cola")
    with pytest.raises(UserError, match="'mine' is no task of GLUE"):
        read_glue_test(str(tmp_path), "mine")
    with pytest.raises(UserError, match=r"ax has no rows to train on.*jaxbert predict --glue"):
        describe_task("ax", source=f"glue:{tmp_path}")


def test_a_file_that_is_not_there_or_a_task_of_another_kind_is_said(tmp_path):
    with pytest.raises(UserError, match=r"neither train.tsv nor train.tsv.gz.*RTE.*RTE/train.tsv"):
        load_task(describe_task("rte", source=f"glue:{tmp_path}"))
    with pytest.raises(
        UserError, match=r"'mine' is no task of GLUE that is known, config key task\.name"
    ):
        load_task(
            describe_task("mine", source=f"glue:{tmp_path}", columns=("text",), labels=("a", "b"))
        )
