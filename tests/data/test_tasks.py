"""Tasks as users describe them: known ones, known ones from elsewhere, and their own."""

import dataclasses
import json

import pytest

from jaxbert.data.glue import FILES
from jaxbert.data.tasks import TASKS, Task, describe_task
from jaxbert.errors import UserError, UserErrors


def test_a_known_task_needs_its_name_alone_and_what_is_given_goes_first():
    assert describe_task("sst2") == TASKS["sst2"]
    changed = describe_task("sst2", metric="f1", dev="tsv:dev.tsv")
    assert (changed.metric, changed.dev, changed.test) == ("f1", "tsv:dev.tsv", TASKS["sst2"].test)


def test_a_known_task_is_read_from_the_official_files_with_their_own_columns():
    mrpc = describe_task("mrpc", source="glue:data/glue")
    assert mrpc.columns == ("#1 String", "#2 String") and mrpc.label == "Quality"
    assert (mrpc.source, mrpc.test) == ("glue:data/glue", "glue:data/glue#dev")
    assert mrpc.labels == TASKS["mrpc"].labels
    assert describe_task("rte", source="glue:d[:50%]").test == "glue:d#dev"
    assert describe_task("mnli", source="glue:d").test == "glue:d#dev_matched"
    other = describe_task("mnli", source="glue:d", test="glue:d#dev_mismatched")
    assert other.test == "glue:d#dev_mismatched"
    assert {name for name in TASKS if TASKS[name].source.startswith("tfds:glue/")} == set(FILES) - {
        "ax"
    }


def test_a_known_task_from_a_file_keeps_its_labels_and_not_its_test_rows():
    own = describe_task("sst2", source="tsv:mine.tsv")
    assert own.labels == TASKS["sst2"].labels and own.columns == ("sentence",)
    assert own.test == own.dev == ""


def test_ones_own_task_is_described_or_what_is_missing_is_said_at_once():
    own = describe_task("mine", source="csv:a.csv", columns=("text",), labels=("no", "yes"))
    assert own == Task("mine", "csv:a.csv", ("text",), ("no", "yes"))
    assert describe_task(source="csv:a.csv", columns=("text",), labels=("x", "y")).name == "task"
    with pytest.raises(UserErrors) as error:
        describe_task("mine", source="csv:a.csv", labels=("a", "b", "a"))
    assert error.value.lines == [
        "0 columns, config key task.columns; name the column of the text, or the two of a pair",
        "3 labels, 2 of them different, config key task.labels; name the classes in order; a row's "
        "label is a name or its number from 0",
    ]
    with pytest.raises(UserError, match=r"3 columns, config key task\.columns"):
        describe_task("sst2", columns=("a", "b", "c"))
    with pytest.raises(UserError, match=r"unknown task 'sst3'.*rotten_tomatoes, sst2.*task.source"):
        describe_task("sst3")
    with pytest.raises(UserError, match=r"F1 is of two classes, config key task\.metric"):
        describe_task("mnli", metric="f1")


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_is_the_same_after_a_run_has_written_its_config(name):
    written = json.loads(json.dumps(dataclasses.asdict(TASKS[name])))
    assert describe_task(**written) == TASKS[name]
