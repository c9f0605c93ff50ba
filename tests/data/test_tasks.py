"""Tasks as users describe them: known ones, known ones from elsewhere, and their own."""

import dataclasses
import json

import pytest

from jaxbert.config import TASK_KINDS, TASK_METRICS, TaskConfig
from jaxbert.data.glue import FILES
from jaxbert.data.tasks import METRICS, TASKS, Task, describe_task
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


CONLL = {"source": "conll:a.txt", "labels": ("PER",)}


@pytest.mark.parametrize(
    ("said", "kind", "columns", "label", "metric"),
    [
        (CONLL, "tagging", ("0",), "-1", "entity_f1"),
        (
            {**CONLL, "label": "1", "scheme": "none", "labels": ("NN", "VB")},
            "tagging",
            ("0",),
            "1",
            "accuracy",
        ),
        ({"source": "squad:a.json"}, "spans", ("question", "context"), "answers", "f1"),
        ({"source": "jsonl:a", "kind": "spans"}, "spans", ("question", "context"), "answers", "f1"),
        (
            {"source": "jsonl:a", "kind": "spans", "columns": ("q", "c"), "label": "a"},
            "spans",
            ("q", "c"),
            "a",
            "f1",
        ),
        (
            {"source": "jsonl:a", "kind": "tagging", "columns": ("w",), "labels": ("PER",)},
            "tagging",
            ("w",),
            "tags",
            "entity_f1",
        ),
        (
            {"source": "tsv:a", "kind": "regression", "columns": ("t",)},
            "regression",
            ("t",),
            "label",
            "pearson_spearman",
        ),
        (
            {"source": "tsv:a", "kind": "multi_label", "columns": ("t",), "labels": ("x",)},
            "multi_label",
            ("t",),
            "label",
            "f1_micro",
        ),
    ],
)
def test_what_a_kind_or_a_source_says_need_not_be_said(said, kind, columns, label, metric):
    task = describe_task("mine", **said)
    assert (task.kind, task.columns, task.label, task.metric) == (kind, columns, label, metric)
    assert task.reported[0] == metric and set(task.reported) <= set(METRICS[kind])
    assert describe_task(**json.loads(json.dumps(dataclasses.asdict(task)))) == task


def test_a_known_task_from_a_file_of_its_format_has_the_columns_of_that():
    names = describe_task("conll2003", source="conll:eng.train", test="conll:eng.testb")
    assert (names.columns, names.label, names.dev) == (("0",), "-1", "")
    assert names.classes[:3] == ("O", "B-PER", "I-PER") and names.num_outputs == 9
    questions = describe_task("squad", source="squad:train.json")
    assert (questions.kind, questions.test, questions.num_outputs) == ("spans", "", 2)
    plain = describe_task("conll2003", label="pos", labels=("NN", "VB"), scheme="none")
    assert (plain.metric, plain.classes) == ("accuracy", ("NN", "VB"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({**CONLL, "columns": ("0", "1")}, r"2 columns, .*columns; name the column of the words"),
        ({**CONLL, "labels": ()}, r"0 labels, .*labels; name the types of the entities"),
        ({**CONLL, "metric": "f1"}, r"'f1' is no metric of tagging, .*metric; give one of entity"),
        ({**CONLL, "scheme": "none", "labels": ("A", "B"), "metric": "entity_f1"}, "form no entit"),
        ({"source": "squad:a", "labels": ("x", "y")}, r"2 labels, and spans has none, .*; remove"),
        ({"source": "squad:a", "columns": ("context",)}, "1 columns, .*the question and of the"),
        (
            {"source": "tsv:a", "columns": ("t",), "kind": "regression", "bounds": (5.0, 0.0)},
            r"\(5.0, 0.0\) are no bounds, config key task.bounds; give the least",
        ),
        (
            {"source": "tsv:a", "columns": ("t",), "labels": ("a", "b"), "metrics": ("f2",)},
            r"'f2' is no metric of classification, config key task.metrics; give one of accuracy",
        ),
        *(
            (
                {"source": "tsv:a", "columns": ("t",), "labels": ("a", "b"), key: value},
                f"classification has no {key}, config key task.{key}; remove it: .* of {kinds}",
            )
            for key, value, kinds in (
                ("bounds", (0.0, 5.0), "regression and similarity"),
                ("separator", ";", "multi_label"),
                ("scheme", "IOB2", "tagging"),
                ("stride", 64, "spans"),
            )
        ),
    ],
)
def test_what_cannot_be_of_a_kind_is_said_with_its_key(said, message):
    with pytest.raises(UserErrors, match=message):
        describe_task("mine", **said)


def test_a_known_task_of_another_kind_leaves_behind_what_that_does_not_have():
    scores = describe_task("stsb", kind="classification", labels=("no", "yes"))
    assert (scores.bounds, describe_task("stsb").bounds) == ((), (0.0, 5.0))


def test_the_config_offers_the_kinds_and_metrics_that_there_are():
    assert set(TASK_KINDS) == set(METRICS)
    assert set(TASK_METRICS) == {name for names in METRICS.values() for name in names}
    assert {field.name for field in dataclasses.fields(TaskConfig)} == {
        field.name for field in dataclasses.fields(Task)
    }
