"""A task's training rows and copies of them with other words, in one file.

The file is JSON Lines: the columns and the label of the task under their own names, and under
``augmentation`` where the line comes from. It can be read as any ``jsonl:`` source of rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.config import AugmentationConfig
from jaxbert.data.augmentation import Augmenter, Recipe, Replacement
from jaxbert.data.copies import (
    changes_of,
    check_copies,
    partial_path,
    read_record,
    record_of,
    record_path,
    sentences_of,
    written,
)
from jaxbert.data.labels import read_example
from jaxbert.data.rows import Rows
from jaxbert.data.tables import BadRow, read_jsonl
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.data.vectors import open_vectors
from jaxbert.data.wording import (
    Wording,
    holds_chinese,
    load_segmenter,
    load_stop_words,
    piece_words,
)
from jaxbert.errors import UserError
from jaxbert.evaluation.fill_mask import MaskedLM, check_masked_lm
from jaxbert.evaluation.relabel import Labeller, check_labelling
from jaxbert.files import hold, sealed, unwritable, whole
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.training.hashing import parameter_hash

_CHUNK = 512  # rows that are augmented, and written, together
_FORMAT = 1  # of the file; another one is made anew


@dataclasses.dataclass(frozen=True)
class Engine:
    """What makes copies, checked.

    Attributes:
      augmenter: draws them.
      wording: says what may be replaced.
      hashes: of the masked language model, its tokenizer, and the word vectors.
    """

    augmenter: Augmenter
    wording: Wording
    hashes: dict[str, str]


def open_engine(config: AugmentationConfig, seed: int) -> Engine:
    """Opens the models that a config names.

    Raises:
      UserError: one is not there, or predicts no words.
    """
    model = read_model(hub.resolve(config.model))
    check_masked_lm(model.params, config.model)
    tokenizer = load_tokenizer(model.folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model {model.config.vocab_size}",
            f"model {config.model}",
            "put the tokenizer that the model was trained with into its folder",
        )
    wording = Wording(load_stop_words(config.stop_words), load_segmenter(config.segmenter))
    words = piece_words(tokenizer, chinese=wording.segmenter is not None)
    vectors = open_vectors(config.vectors, tokenizer, words, model.params["embeddings"]["word"])
    are_words = np.array([bool(word) for word in words])
    fill = MaskedLM(model.config, model.params, are_words, config.candidates)
    recipe = Recipe(config.copies, config.probability, config.mode, config.context, seed)
    hashes = {
        "model": parameter_hash(model.params),
        "tokenizer": tokenizer.fingerprint,
        "vectors": vectors.sha256,
    }
    return Engine(Augmenter(recipe, tokenizer, words, fill, vectors), wording, hashes)


def augment(
    config: AugmentationConfig,
    task: Task,
    rows: Rows,
    path: Path,
    *,
    seed: int,
    teacher: Model | None = None,
    max_length: int = 128,
    chunk: int = _CHUNK,
) -> dict[str, Any]:
    """Writes rows and their copies; the same call again goes on where it was stopped.

    Beside the file stands ``PATH.json``: what it was made from, how far it is, its SHA-256. While
    it grows it is ``PATH.part``; what was not written to the end of a chunk is cut off. One process
    at a time writes it.

    Args:
      config: how rows are copied.
      task: of the rows.
      rows: what to copy.
      path: the file.
      seed: of every draw.
      teacher: fine-tuned on the task; for ``relabel`` and ``filter``.
      max_length: word pieces that the teacher reads.
      chunk: rows between two saves; nothing that is written depends on it.

    Returns:
      What ``PATH.json`` holds.

    Raises:
      UserError: what is there was made otherwise, or by another process right now, or a model
        cannot do what is asked.
    """
    check_labelling(config, task)  # also what a config says that asks for no labeller
    labeller = None
    if config.relabel or config.filter:
        labeller = Labeller(config, task, teacher, max_length)
    engine = open_engine(config, seed)
    plain = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("model", "vectors")}
    plain["stop_words"] = sorted(engine.wording.stop_words)
    made_from = {
        "format": _FORMAT,
        "source": task.source,
        "rows": rows.sha256,
        "seed": seed,
        **engine.hashes,
        "teacher": parameter_hash(teacher.params) if labeller and teacher else None,
        "class_order": labeller.order if labeller else None,
        "max_length": labeller.max_length if labeller else None,
        "config": plain,
    }
    texts = rows.texts + (rows.pairs or [])
    chinese = sum(holds_chinese(text) for text in texts) if not config.segmenter else 0
    if chinese:
        print(
            f"augment: {chinese:,} texts hold Chinese, which stays as it is; "
            'pip install "jaxbert[chinese]" and set segmenter=jieba to replace whole words',
            flush=True,
        )
    try:
        with hold(path.with_name(f".{path.name}.lock")):
            return _write(engine, task, rows, _Output(path, made_from), labeller, chunk)
    except BlockingIOError as error:
        fix = "wait until it has finished, or give another file"
        raise UserError("another process is writing it", str(path), fix) from error
    except OSError as error:
        raise unwritable(path, error) from error


def _write(
    engine: Engine,
    task: Task,
    rows: Rows,
    output: _Output,
    labeller: Labeller | None,
    chunk: int,
) -> dict[str, Any]:
    """Writes what is missing of a file; returns what ``PATH.json`` holds."""
    if output.state["finished"]:
        print(f"augment: {output.path} is finished", flush=True)
        return output.state
    began, before = time.monotonic(), output.state["done"]
    for first in range(before, len(rows), chunk):
        ids = range(first, min(first + chunk, len(rows)))
        lines, counts = _chunk(engine, task, rows, ids, labeller, output.state["made_from"])
        output.append(lines, len(ids), counts)
        done, seconds = ids.stop, time.monotonic() - began
        left = seconds / (done - before) * (len(rows) - done)
        print(
            f"augment: {done:,}/{len(rows):,} rows, {output.state['counts']['copies']:,} copies, "
            f"{engine.augmenter.asked / seconds:,.0f} masked words/s, {left / 60:.1f} min left",
            flush=True,
        )
    if not output.state["counts"].get("copies"):
        output.remove()  # another config is to be free to write it
        raise UserError(
            f"not one copy of {len(rows):,} rows", task.source, "lower confidence, or other text"
        )
    return output.finish()


def _chunk(
    engine: Engine,
    task: Task,
    rows: Rows,
    ids: range,
    labeller: Labeller | None,
    made_from: dict[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The lines of some rows: each row itself as copy 0, then its copies, those alike but once."""
    sentences = [sentences_of(engine.wording, rows, index) for index in ids]
    found = engine.augmenter.copies(sentences, ids)
    origin = {key: made_from[key] for key in ("source", "seed")}
    origin |= {key: made_from[key][:16] for key in ("model", "vectors")}
    lines = []
    counts = {"rows": len(ids), "copies": 0, "same": 0, "filtered": 0, "replaced": 0}
    for index, row, copies in zip(ids, sentences, found, strict=True):
        seen: set[tuple] = set()
        itself: list[list[Replacement]] = [[] for _ in row]
        for number, replaced in enumerate([itself, *copies]):
            changes = changes_of(task.columns, row, replaced, rows.words is not None)
            # Words that a model puts in their own place change nothing.
            told = tuple(change for change in changes if change[2] != change[3])
            if told in seen or (number and not told):
                counts["same"] += 1
                continue
            seen.add(told)
            record = record_of(task, rows, index, row, replaced)
            about = {"row": index, "copy": number, **origin, "replaced": changes}
            lines.append({**record, "augmentation": about})
    if labeller is not None:
        lines, counts["filtered"] = labeller(lines)
    copies_kept = [line["augmentation"] for line in lines if line["augmentation"]["copy"]]
    counts["copies"] = len(copies_kept)
    counts["replaced"] = sum(len(about["replaced"]) for about in copies_kept)
    return lines, counts


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Rows with their copies.

    Attributes:
      rows: what is trained on.
      record: what ``PATH.json`` holds.
    """

    rows: Rows
    record: dict[str, Any]


def load(
    config: AugmentationConfig, task: Task, rows: Rows, path: Path, **options: Any
) -> Augmented:
    """`augment`, unless it has been done, and the rows that it wrote; arguments are the same."""
    record = augment(config, task, rows, path, **options)
    return Augmented(read_rows(task, path), record)


def read_rows(task: Task, path: Path) -> Rows:
    """The rows of a file that `augment` has written.

    Raises:
      UserError: a line cannot be used.
    """
    task = written(task)

    def examples() -> Iterator[Any]:
        for record in read_jsonl(path, [*task.columns, task.label]):
            example = read_example(task, record)
            if isinstance(example, BadRow):
                raise example.error
            yield example

    return Rows.join(task, list(examples()))


def check_rows(task: Task, rows: Rows, path: Path) -> None:
    """Raises a UserError if what is there is not what `write_rows` would write."""
    try:
        same = not path.exists() or path.read_bytes() == _plain(task, rows).encode()
    except OSError as error:
        raise unwritable(path, error) from error
    if not same:
        fix = "remove it, or give another --out"
        raise UserError("there is another file already", str(path), fix)


def write_rows(task: Task, rows: Rows, path: Path) -> None:
    """Writes rows as they are, in one piece, in the form of `augment`.

    Raises:
      UserError: another file has that name, or it cannot be written.
    """
    check_rows(task, rows, path)
    try:
        with whole(path) as file:
            file.write(_plain(task, rows))
    except OSError as error:
        raise unwritable(path, error) from error


def _plain(task: Task, rows: Rows) -> str:
    """Lines of the rows themselves."""
    wording, lines = Wording(frozenset()), []
    for index in range(len(rows)):
        sentences = sentences_of(wording, rows, index)
        record = record_of(task, rows, index, sentences, [[] for _ in sentences])
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


class _Output:
    """The file, as far as it is, and the record that proves it.

    Args:
      path: the file.
      made_from: all that it follows from.

    Attributes:
      path: the file.
      state: what the record holds.
    """

    def __init__(self, path: Path, made_from: dict[str, Any]) -> None:
        self.path, self._record, self._partial = path, record_path(path), partial_path(path)
        self._digest = hashlib.sha256()
        made_from = json.loads(json.dumps(made_from))
        self.state: dict[str, Any] = {
            "made_from": made_from,
            "finished": False,
            "done": 0,
            "bytes": 0,
            "sha256": self._digest.hexdigest(),
            "counts": {},
        }
        if self._record.exists():
            self._resume(made_from)
        elif path.exists():
            fix = "remove it, or give another file"
            raise UserError("there is a file already, and no record of it", str(path), fix)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.write_bytes(b"")

    def _resume(self, made_from: dict[str, Any]) -> None:
        old = read_record(self.path)
        theirs = old["made_from"]
        other = sorted(k for k in made_from | theirs if made_from.get(k) != theirs.get(k))
        if other:
            what = f"what is there was made with another {', '.join(other)}"
            raise UserError(what, str(self._record), "give the old values, or another file")
        held, data = check_copies(self.path, old)
        self._digest = hashlib.sha256(data)
        if held == self.path and not old["finished"]:  # stopped between the two last steps
            self.path.replace(self._partial)
        if not old["finished"]:
            with self._partial.open("r+b") as file:
                file.truncate(old["bytes"])
        self.state = old

    def append(self, lines: list[dict[str, Any]], rows: int, counts: dict[str, int]) -> None:
        """Writes the lines of the next rows, then the record of them."""
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with self._partial.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._digest.update(data)
        state = self.state
        totals = {key: state["counts"].get(key, 0) + counts[key] for key in counts}
        self.state = state | {
            "done": state["done"] + rows,
            "bytes": state["bytes"] + len(data),
            "sha256": self._digest.hexdigest(),
            "counts": totals,
        }
        self._keep()

    def remove(self) -> None:
        """Leaves nothing of a file that is not finished."""
        self._record.unlink(missing_ok=True)  # first: without it, the other is written anew
        self._partial.unlink(missing_ok=True)

    def finish(self) -> dict[str, Any]:
        """Gives the file its name."""
        self._partial.replace(self.path)
        self.state["finished"] = True
        self._keep()
        return self.state

    def _keep(self) -> None:
        """Writes the record."""
        with whole(self._record) as file:
            file.write(sealed(self.state) + "\n")
