"""The model card of an exported student: what it is, what it was made from, what it scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxbert.errors import UserError

_TAGS = {
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
    "spans": "question-answering",
}
_SENTENCES = "sentence-similarity"
_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
_UNKNOWN = "unknown: see the teacher"
_TEXT = "an utter delight"
# `transformers` 5 has no pipeline that answers questions.
_ANSWER = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForQuestionAnswering.from_pretrained({name!r})
given = tokenizer("Who wrote it ?", "It was written by an old friend .", return_tensors="pt")
with torch.no_grad():
    said = model(**given)
inside = torch.tensor([part == 1 for part in given.sequence_ids(0)])  # pieces of the second text
allowed = (inside[:, None] & inside).triu()  # no answer ends before it begins
scores = said.start_logits[0, :, None] + said.end_logits[0]
place = int(scores.masked_fill(~allowed, -torch.inf).argmax())
first, last = divmod(place, len(inside))
print(tokenizer.decode(given["input_ids"][0, first : last + 1]))
"""


def model_card(
    name: str,
    kind: str,
    *,
    formats: Mapping[str, Mapping[str, Any]],
    files: Sequence[str],
    max_length: int,
    run: Mapping[str, Any] | None,
    license: str = "",
) -> str:
    """A README.md with the metadata that model hubs read.

    Args:
      name: what the model is called.
      kind: of its head; empty or ``similarity`` where embeddings are what it is for.
      formats: format -> what was measured when it was read back.
      files: the files that the formats consist of.
      max_length: word pieces at which it was asked.
      run: ``config``, ``summary`` and ``eval`` (or None), as the run's files hold them;
        ``parameter_hash``, of the model; ``origins``, of the models that it starts from the
        reference and the licence, which may be empty; ``seeds``, what is said of runs with other
        seeds, or empty. None where it is not known which run made it.
      license: of the model; empty = not known.

    Raises:
      UserError: the run's ``eval`` is not what an evaluation writes.
    """
    tag = _TAGS.get(kind, _SENTENCES)
    licensed = f"license: {license}" if license else "license: other\nlicense_name: unknown"
    teacher = run["config"].get("teacher") if run else None
    origin = run["origins"][teacher][0] if run is not None and teacher else ""
    base = f"base_model: {origin[3:].partition('@')[0]}"
    head = [
        *("---", licensed, f"pipeline_tag: {tag}", *[base] * origin.startswith("hf:")),
        f"library_name: {'transformers' if tag in _CLASSES else 'sentence-transformers'}",
        *("tags:", "- jaxbert", "- bert", "- distillation", "---"),
    ]
    parts = ["\n".join(head), f"# {name}", _use(name, tag, "huggingface" in formats)]
    if run is not None:
        parts += _history(run)
    else:
        parts.append("It is not known which run made this model.")
    parts += ["## Files", _files(formats, files), "## Limits", _limits(max_length, run)]
    parts += ["## Licence", f"{license or _UNKNOWN}."]
    return "\n\n".join(parts) + "\n"


def _use(name: str, tag: str, loads: bool) -> str:
    if not loads:
        return "See the files below; weights for `transformers` are not among them."
    if tag == _SENTENCES:
        code = "from sentence_transformers import SentenceTransformer\n\n"
        return f"```python\n{code}SentenceTransformer({name!r}).encode([{_TEXT!r}])\n```"
    if tag == _TAGS["spans"]:
        return f"```python\n{_ANSWER.format(name=name)}```"
    code = f"from transformers import pipeline\n\npipeline({tag!r}, {name!r})({_TEXT!r})"
    return f"```python\n{code}\n```\n\nor `{_CLASSES[tag]}.from_pretrained({name!r})`."


def _history(run: Mapping[str, Any]) -> list[str]:
    config, summary, found = run["config"], run["summary"], run.get("eval")
    task, teacher = config.get("task") or {}, summary.get("teacher") or {}
    data = [task.get("source") or task.get("name"), config.get("corpus")]
    origins = run["origins"]
    reference = teacher.get("reference") or config.get("teacher")
    others = [name for name in origins if name not in (reference, config.get("init_from"))]
    versions = ", ".join(f"{k} {v}" for k, v in (summary.get("versions") or {}).items())
    command = summary.get("command")
    phases = [
        f"- `{name}`: {phase.get('steps'):,} steps, {phase.get('real_tokens', 0):,} tokens"
        for name, phase in (summary.get("phases") or {}).items()
    ]
    facts = {
        "teacher": _origin(origins, reference) or "none",
        "parameters of the teacher, SHA-256": teacher.get("hash"),
        "other teachers": "; ".join(_origin(origins, name) for name in others),
        "data": ", ".join(filter(None, data)) or "none",
        "continues": _origin(origins, config.get("init_from")),
        "command": f"`{command}`" if command else "",
        "made by": "`jaxbert train`, with the configuration below; `jaxbert rerun` repeats it",
        "revision of jaxbert": summary.get("git_revision"),
        "seed": config.get("seed"),
        "versions": versions,
        "parameters, SHA-256": run["parameter_hash"],
    }
    listed = [f"- {key}: {value}" for key, value in facts.items() if value not in (None, "")]
    parts = ["## How it was made", "\n".join([*listed, "", *phases]).rstrip()]
    folded = "<details><summary>configuration</summary>\n\n```json\n{}\n```\n\n</details>"
    parts.append(folded.format(json.dumps(config, indent=1)))
    try:
        parts += ["## Scores", _scores(found)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"it is not what an evaluation writes ({error!r})"
        raise UserError(what, "the run's eval.json", "evaluate the run again") from error
    return [*parts, "### Over seeds", run["seeds"]] if run["seeds"] else parts


def _origin(origins: Mapping[str, tuple[str, str]], reference: str | None) -> str:
    """A model that a run starts from, what it comes from, and under which licence."""
    if not reference:
        return ""
    origin, licence = origins.get(reference, (reference, ""))
    made = "" if origin == reference else f", made from {origin}"
    return f"{reference}{made}; licence: {licence or 'not known'}"


def _scores(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "Not evaluated."
    columns = (found["metric"], "parameters", "size_mb", "milliseconds")
    rows = [
        "| model | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, model in found["models"].items():
        cells = (_cell(model.get(column)) for column in columns)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    error = found.get("standard_error")
    said = f"On {found['examples']:,} examples of {found['task']}, split {found['split']}"
    said += f" ({found['splits']})" if found.get("splits") else ""
    said += f"; standard error at most {error:.4f}" if error is not None else ""
    if tokens := found.get("latency_tokens"):
        said += f". Milliseconds: one text of {tokens} word pieces on one thread"
    return "\n".join(rows) + f"\n\n{said}, {found.get('device', '')}."


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _files(formats: Mapping[str, Mapping[str, Any]], files: Sequence[str]) -> str:
    listed = [f"- `{name}`" for name in files]
    said = [
        f"- {name}: " + "; ".join(f"{key} {_cell(value)}" for key, value in measured.items())
        for name, measured in formats.items()
    ]
    return "\n".join([*listed, "", "What came back when each was read again:", "", *said])


def _limits(max_length: int, run: Mapping[str, Any] | None) -> str:
    limits = [
        f"- Texts are cut after {max_length} word pieces.",
        "- It has learnt what its teacher and its data say, their errors and biases included.",
    ]
    if run is None or not run.get("eval"):
        limits.append("- How good it is on any data is not known.")
    else:
        runs = "the runs above" if run["seeds"] else "one run"
        limits.append(f"- The scores are of {runs} on one test part; other text was not tried.")
    return "\n".join(limits)
