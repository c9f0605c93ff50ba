"""Question answering files: answers at their offsets, none where there is none."""

from __future__ import annotations

import gzip
import json

import pytest

from jaxbert.data.rows import load_task, split_parts
from jaxbert.data.squad import read_squad
from jaxbert.data.tables import BadRow
from jaxbert.data.tasks import describe_task
from jaxbert.errors import UserError

CONTEXT = "Café Zürich opened in 1923. 𠀀 It closed in 1984."


def question(text="When did it open?", answer="1923", start=None, **more):
    start = CONTEXT.index(answer) if start is None else start
    return {
        "id": "q",
        "question": text,
        "answers": [{"text": answer, "answer_start": start}],
        **more,
    }


def squad(*questions, contexts=(CONTEXT,)):
    paragraphs = [{"context": c, "qas": list(questions)} for c in contexts]
    return {"version": "1.1", "data": [{"title": "a", "paragraphs": paragraphs}]}


def write(path, value) -> str:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return f"squad:{path}"


def load(source: str, **more):
    return load_task(describe_task("mine", source=source, dev=source, test=source, **more))


IMPOSSIBLE = question("Who built it?", is_impossible=True)


def test_questions_come_with_their_answers_or_none(tmp_path):
    none = {"id": "n", "question": "Who?", "answers": [], "is_impossible": True}
    source = write(
        tmp_path / "a.json", squad(question(), question("And close?", "1984"), none, IMPOSSIBLE)
    )
    data = load(source)
    assert data.task.kind == "spans" and data.metric == "f1" and data.labels == ()
    assert data.train.texts == ["When did it open?", "And close?", "Who?", "Who built it?"]
    assert data.train.pairs == [CONTEXT] * 4 and data.train.labels is None
    assert data.train.answers == [((22, "1923"),), ((43, "1984"),), (), ()]
    assert all(CONTEXT[s:].startswith(t) for ((s, t),) in data.train.answers[:2])
    record = data.rows[source]
    assert (record["read"], record["used"], record["skipped"]) == (4, 4, 0)


def test_the_same_rows_from_packed_and_from_json_lines(tmp_path):
    value = squad(question(), question("And close?", "1984"), IMPOSSIBLE)
    plain = load(write(tmp_path / "a.json", value))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    rows = []
    for q, context, given in zip(
        plain.train.texts, plain.train.pairs, plain.train.answers, strict=True
    ):
        answers = {"text": [a.text for a in given], "answer_start": [a.start for a in given]}
        rows.append({"question": q, "context": context, "answers": answers})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for source, more in (
        (f"squad:{tmp_path}/a.json.gz", {}),
        (f"jsonl:{tmp_path}/a.jsonl", {"kind": "spans"}),
    ):
        assert load(source, **more).train.sha256 == plain.train.sha256


def test_questions_on_one_context_fall_into_one_split(tmp_path):
    contexts = [f"Number {i} opened in 1923." for i in range(60)]
    questions = [question(f"Question {q}?", "1923", 0) for q in range(3)]
    value = squad(contexts=contexts)
    for paragraph in value["data"][0]["paragraphs"]:
        start = paragraph["context"].index("1923")
        paragraph["qas"] = [
            {**q, "answers": [{"text": "1923", "answer_start": start}]} for q in questions
        ]
    data = load_task(describe_task("mine", source=write(tmp_path / "a.json", value)))
    for rows in (data.train, data.dev, data.test):
        assert len(set(split_parts(rows)) & {8, 9}) <= 1
        assert all(rows.pairs.count(context) == 3 for context in rows.pairs)
    assert data.overlap == {"dev": 0, "test": 0}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            question(start=21),
            "answer '1923' is not at 21, where ' 192' stands, {}:answers[0]; it stands at 22",
        ),
        (question(start=2200), "answer '1923' is not at 2200, where '' stands"),
        (question(start=-4), "-4 is no offset"),
        (question(start=True), "True is no offset"),
        (question(start="22"), "'22' is no offset"),
        (
            question(answer="1950", start=22),
            "answer '1950' is not at 22, where '1923' stands, {}:answers[0]; "
            "it does not stand in the context",
        ),
        (question(answer=" ", start=22), "empty text, {}:answers[0]"),
        (question(answer=5, start=22), "a int instead of text"),
        (question() | {"answers": []}, "a question without an answer, {}.answers; give one, or"),
        (question() | {"answers": "1923"}, "no list of answers, {}.answers"),
        (question(text=""), "empty text, {}:question"),
        (question(text=None), "nothing instead of text, {}:question"),
        ("when?", "a JSON str instead of an object, {}"),
    ],
)
def test_a_question_that_cannot_be_used_is_named_or_left_out_and_counted(bad, message, tmp_path):
    source = write(tmp_path / "a.json", squad(question(), bad))
    message = message.format(f"{tmp_path}/a.json: data[0].paragraphs[0].qas[1]")
    with pytest.raises(UserError) as error:
        load(source)
    assert error.value.line.startswith(message)
    many = [question(f"When {i}?") for i in range(150)]
    write(tmp_path / "a.json", squad(*many, bad))
    data = load(source, on_bad_row="skip")
    record = data.rows[source]
    assert (record["read"], record["used"], record["skipped"]) == (151, 150, 1)
    assert record["problems"][0].startswith(message.partition(", {")[0][:20])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", r"not JSON: .*a.json:1:2; mend"),
        (b'{"data": 1}', r"there is no list, .*a.json: data; give a file as SQuAD has it"),
        (b'{"data": [{"title": "x"}]}', r"there is no list, .*a.json: data\[0\].paragraphs"),
        (b'{"data": [{"paragraphs": [5]}]}', r"no list, .*data\[0\].paragraphs\[0\].qas"),
        (b"[" * 100_000, "not JSON"),
        (b"caf\xe9", r"byte 0xe9 is not UTF-8, .*a.json: byte 3"),
    ],
)
def test_a_file_of_another_form_is_said(text, message, tmp_path):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=message):
        list(read_squad(tmp_path / "a.json", ["question"]))


@pytest.mark.parametrize("ending", ["json", "json.gz"])
def test_a_file_larger_than_one_reads_at_once_is_refused(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a.{ending}"
    whole = json.dumps(squad(question())).encode() + b" " * (80 << 20)
    if ending == "json":
        monkeypatch.setattr("jaxbert.data.squad._LARGEST", 64 << 20)
    path.write_bytes(whole if ending == "json" else gzip.compress(whole))
    with pytest.raises(UserError, match=f"more than 64 MiB.*{path}; ") as error:
        load(f"squad:{path}")
    assert "\n" not in error.value.line


def test_a_byte_order_mark_is_none_of_the_json_and_another_column_is_said(tmp_path):
    text = json.dumps(squad(question()), ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (row,) = read_squad(tmp_path / "a.json", ["question", "id"])
    assert not isinstance(row, BadRow) and row.values["id"] == "q"
    with pytest.raises(
        UserError, match=r"no 'title', .*it has 'question', 'context', 'answers', 'id'"
    ):
        list(read_squad(tmp_path / "a.json", ["title"]))


def test_questions_to_predict_need_no_answers(tmp_path):
    write(tmp_path / "a.json", squad({"id": "q", "question": "When?"}))
    (row,) = read_squad(tmp_path / "a.json", ["question", "context"])
    assert (row.values["question"], row.values["context"]) == ("When?", CONTEXT)


def test_rows_without_any_answer_teach_nothing(tmp_path):
    with pytest.raises(UserError, match=r"all 1 training rows have no answer.*with answers"):
        load(write(tmp_path / "a.json", squad(IMPOSSIBLE)))
