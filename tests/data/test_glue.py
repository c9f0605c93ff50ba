"""The official GLUE layouts, each from a file with the header of the download."""

import gzip
import re

import pytest

from jaxbert.data.glue import FILES, read_glue
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
    "ax": "index\tsentence1\tsentence2",
}
NAMED = ("mnli", "qnli", "rte")  # whose files have the names of the classes; others numbers


def write_split(root, name, split, count, packed=False):
    files, header = FILES[name], HEADERS[name].split("\t")
    lines = [] if files.header else ["\t".join(header)]
    for i in range(count):
        row = {column: f'{column} {i} with a lone " quote' for column in header}
        if files.label:
            labels = TASKS[name].labels if name in NAMED else range(2)
            row[files.label] = str(labels[i % len(labels)])
        lines.append("\t".join(row.values()))
    (root / files.folder).mkdir(parents=True, exist_ok=True)
    path = root / files.folder / f"{split}.tsv"
    data = "\n".join(lines).encode()  # as the official CoLA: no line feed at the end
    path.with_suffix(".tsv.gz" * packed or ".tsv").write_bytes(
        gzip.compress(data) if packed else data
    )


@pytest.mark.parametrize("name", list(FILES))
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


@pytest.mark.parametrize("name", [name for name in TASKS if name in FILES])
@pytest.mark.parametrize("packed", [True, False])
def test_a_task_is_loaded_from_its_official_files(name, packed, tmp_path):
    write_split(tmp_path, name, "train", 200, packed)
    write_split(tmp_path, name, FILES[name].dev, 40, packed)
    data = load_task(describe_task(name, source=f"glue:{tmp_path}"))
    assert len(data.train) + len(data.dev) == 200 and len(data.test) == 40
    classes = len(TASKS[name].labels) if name in NAMED else 2
    assert data.test.labels.tolist() == [i % classes for i in range(40)]
    assert (data.test.pairs is None) == (len(FILES[name].columns) == 1)


def test_a_file_that_is_not_there_or_a_task_of_another_kind_is_said(tmp_path):
    with pytest.raises(UserError, match=r"neither train.tsv nor train.tsv.gz.*RTE.*RTE/train.tsv"):
        load_task(describe_task("rte", source=f"glue:{tmp_path}"))
    with pytest.raises(
        UserError, match=r"'mine' is no task of GLUE that is known, config key task\.name"
    ):
        load_task(
            describe_task("mine", source=f"glue:{tmp_path}", columns=("text",), labels=("a", "b"))
        )
