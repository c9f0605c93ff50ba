"""A model to the formats that others read: each is read back and compared before it counts.

A folder has the layout of a model hub, in which `transformers`, `sentence-transformers` and
transformers.js find their files:

    config.json  tokenizer files  README.md  export.json
    model.safetensors  modules.json  sentence_bert_config.json  1_Pooling/    huggingface
    tinybert/  config.json  model.safetensors  tokenizer files                tinybert
    onnx/model.onnx                                                           onnx
    onnx/model_quantized.onnx                                                 onnx-int8
    stablehlo/model.stablehlo                                                 stablehlo
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.packing import Examples
from jaxbert.data.rows import Rows
from jaxbert.data.tasks import SIMILARITY, Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.errors import UserError, warn
from jaxbert.evaluation.finished import FinishedRun, read_run
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predict import encode_for, label_order
from jaxbert.evaluation.predictions import Predictions
from jaxbert.files import SEAL, file_sha256, hold, read_object, read_seal, seal, unwritable
from jaxbert.history import read_history
from jaxbert.interop import hub, onnx, stablehlo
from jaxbert.interop.card import model_card
from jaxbert.interop.huggingface import Model, layout_for, read_model, write_model
from jaxbert.interop.tensors import WEIGHTS
from jaxbert.models.bert import POOLED, scored_groups
from jaxbert.serving import TextModel, read_asking
from jaxbert.stopping import saving
from jaxbert.training.hashing import parameter_hash
from jaxbert.workdir import write_json

FORMATS = ("huggingface", "tinybert", "onnx", "onnx-int8", "stablehlo")
FILES = {
    "huggingface": WEIGHTS,
    "tinybert": f"tinybert/{WEIGHTS}",
    "onnx": "onnx/model.onnx",
    "onnx-int8": "onnx/model_quantized.onnx",
    "stablehlo": "stablehlo/model.stablehlo",
}
CARD = "README.md"
_POOLING = "1_Pooling"
_PARTS = sorted({_POOLING, *(Path(name).parent.name for name in FILES.values())} - {""})
_AWAY = "move it away, or give another folder"
# Relative to max(1, |what it is to be|): two float32 programs round differently, deep ones more.
TOLERANCE = 1e-4  # beyond it something else is wrong
PROMISED = 1e-5  # beyond it is said
COMPARED = 64  # rows on which formats are compared
SCORED = 2_000  # rows on which a quantised model is scored, at most
Run = Callable[..., np.ndarray]

# Where there are no rows of a task.
_TEXTS = (
    "A student that is small enough can answer before the reader has looked up from the page .",
    "An utter delight from the first minute to the last , and then some more of it at home .",
    "The committee met in Amsterdam on 12 May 1998 and adopted the report (see annex 3).",
    "Why ?",
    "so very dull , so very long , and nobody in it whom one would ever want to meet again",
)


def export(
    reference: str,
    folder: Path,
    formats: Sequence[str],
    *,
    max_loss: float = 0.01,
    force: bool = False,
    license: str = "",
    seeds: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes a model in some formats, all of them or none.

    Args:
      reference: a run's workdir (its student), a model folder, or another model reference.
      folder: where to; an earlier export there is replaced, if nothing else lies with it.
      formats: out of ``FORMATS``.
      max_loss: of the task's metric on the run's development rows, what int8 may cost.
      force: write an int8 model that costs more, or whose cost is not known.
      license: of the model, for its card.
      seeds: workdirs of runs that differ from the model's in their seed alone, for its card.

    Returns:
      What export.json holds: under ``formats`` of each its ``bytes`` and ``difference``, the
      largest to what jaxbert computes on ``rows`` rows; of int8 the ``metric``, its value before
      and after, and the ``loss``. ``card`` is the SHA-256 of the card as it was written.

    Raises:
      UserError: the folder holds what no export has written; a format cannot hold the model, does
        not give what jaxbert gives, or int8 costs too much; a run of `seeds` is none of the same
        recipe.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        what = f"unknown format {unknown[0]!r}" if unknown else "no format"
        raise UserError(what, "flag --format", f"give some of {','.join(FORMATS)}")
    if not 0 <= max_loss < math.inf:
        fix = "give a finite number of at least 0"
        raise UserError(f"{max_loss:g} is no loss", "flag --max_loss", fix)
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError("it is a file", str(folder), "give a folder")
    if others := _others(folder) if folder.exists() else []:
        named = ", ".join(others[:3]) + f" and {len(others) - 3} more" * (len(others) > 3)
        raise UserError(f"the folder holds something else: {named}", str(folder), _AWAY)
    subject = Subject(reference, seeds)
    if subject.model.folder.resolve().is_relative_to(folder):
        raise UserError("the model itself lies there", str(folder), "give another folder")
    try:
        with hold(folder.with_name(f".{folder.name}.lock")):
            report = _replace(subject, reference, folder, formats, max_loss, force, license)
    except BlockingIOError as error:
        fix = "wait until it has finished, or give another folder"
        raise UserError("another process exports there", str(folder), fix) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    without = [name for name in report["formats"] if name != "tinybert"]
    if subject.projection and without:
        said = f"the projections are left out of {', '.join(without)}; format tinybert keeps them"
        warn(said)
    return report


def _replace(
    subject: Subject,
    reference: str,
    folder: Path,
    formats: Sequence[str],
    max_loss: float,
    force: bool,
    license: str,
) -> dict[str, Any]:
    """Writes a folder beside the one that is there, and puts it in its place; its export.json."""
    partial, before = (folder.with_name(f".{folder.name}.{end}") for end in ("export", "before"))
    if before.exists() and not folder.exists():  # of a process that was killed between two names
        before.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)  # likewise
    try:
        found = _write(subject, partial, formats, max_loss=max_loss, force=force)
        report = {
            "reference": reference,
            "kind": subject.served.kind,
            "labels": list(subject.model.labels),
            "max_length": subject.served.max_length,
            "asking": dataclasses.asdict(subject.asking),
            "formats": found,
        }
        card = model_card(
            folder.name,
            subject.served.kind,
            formats=found,
            files=[FILES[name] for name in found],
            max_length=subject.served.max_length,
            run=subject.history,
            license=license,
        )
        (partial / CARD).write_text(card, encoding="utf-8")
        report["card"] = file_sha256(partial / CARD)
        # What is loaded from its own folder is asked as its run was, too.
        for place in (partial, *[(partial / FILES["tinybert"]).parent] * ("tinybert" in found)):
            write_json(place / hub.REPORT, report)
        for place in (partial, *(path for path in partial.iterdir() if path.is_dir())):
            kept = (SEAL, CARD)  # the card is for its owner to edit
            seal(place, [p.name for p in place.iterdir() if p.is_file() and p.name not in kept])
        with saving():  # a stop between two names waits
            shutil.rmtree(before, ignore_errors=True)
            if folder.exists():
                folder.rename(before)
            partial.rename(folder)
            shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


class Subject:
    """A model that is exported, and the rows that it is held against.

    Args:
      reference: as `export` takes it.
      seeds: likewise.

    Attributes:
      model: its head and what that reads; without a head all but projections.
      projection: these, the group ``projection`` of its parameters; empty where it has none.
      asking: how its run asks it.
      served: it, computed by jaxbert.
      history: of its run, as `model_card` takes it; None without one.
    """

    def __init__(self, reference: str, seeds: Sequence[str] = ()) -> None:
        whole = model = read_model(hub.resolve(reference))
        self.asking = read_asking(reference)
        groups = [group for group in model.params if group not in ("projection", "classifier")]
        if "classifier" in model.params and not self.asking.similarity:
            groups = list(scored_groups(model.config))
        params = {group: model.params[group] for group in groups}
        # Without its projection it is written, and read, as a model that never had one.
        shape = model.config.replace(
            projection_size=0, projection_per_layer=False, projection_rank=0
        )
        labels = model.labels
        if "classifier" not in groups:
            shape, labels = shape.replace(num_labels=0, head="classification"), ()
        self.model = dataclasses.replace(model, config=shape, params=params, labels=labels)
        self.projection: dict[str, Any] = model.params.get("projection", {})
        self.served = TextModel(self.model, self.asking)
        self.tokenizer = load_tokenizer(model.folder)
        self._run: FinishedRun | None = None
        workdir, _ = hub.split_run(reference)
        self.history = read_history(workdir, seeds)
        if self.history is not None:
            # Of all that was trained, as its phase's record has it.
            self.history["parameter_hash"] = parameter_hash(whole.params)
            task = self.history["config"].get("task") or {}
            if task.get("name") or task.get("source"):
                self._run = read_run(workdir)

    @functools.cached_property
    def scored(self) -> tuple[Task, Rows] | None:
        """The task of its run and some development rows of it; None where there are none."""
        if self._run is None or not self.served.kind:
            return None
        try:
            dev = self._run.load_task().dev
        except UserError as error:
            warn(f"the rows of the run are not read: {error.line}")
            return None
        return self._run.task, dev.sample(SCORED)

    @functools.cached_property
    def rows(self) -> Rows:
        """Some rows to compare on."""
        if self.scored is not None:
            return self.scored[1].take(np.arange(len(self.scored[1])) < COMPARED)
        texts, kind = list(_TEXTS), self.served.kind
        if kind == "spans":
            return Rows(texts[:1] * len(texts), texts, None, answers=[()] * len(texts))
        if kind == "tagging":
            words = [tuple(text.split()) for text in texts]
            return Rows(texts, None, None, words, [np.zeros(len(w), np.int32) for w in words])
        return Rows(texts, texts[::-1] if kind == SIMILARITY else None, None)

    def encoded(self, rows: Rows) -> tuple[Examples, Callable[[np.ndarray], Predictions]]:
        """Rows as the model reads them, and how what it says is read."""
        kind = self.served.kind
        if not kind:
            rows = Rows(rows.texts, None, None)
        return encode_for(
            kind or SIMILARITY,
            self.tokenizer,
            rows,
            max_length=self.served.max_length,
            stride=self.asking.stride,
            always=self.asking.always,
        )

    def score(self, ask: Callable[[Examples], np.ndarray]) -> float | None:
        """The task's metric of what a function says of the development rows."""
        if self.scored is None:
            return None
        task, rows = self.scored
        examples, read = self.encoded(rows)
        order, values = label_order(self.model, task), ask(examples)
        found = read(values if order is None else values[:, order])
        return score_rows(task, rows, found, (task.metric,))[task.metric].value


def ask(run: Run, examples: Examples, kind: str, pad: int, size: int = 32) -> np.ndarray:
    """What an exported model says of examples, in padded batches.

    Args:
      run: (ids, mask, types) int [B, T] -> what `jaxbert.interop.onnx` describes.
      examples: what is asked.
      kind: of the model's predictions.
      pad: the id of what fills a row.
      size: examples at a time.

    Returns:
      float32 [items, C], example after example: logits; or embeddings of length 1.
    """
    found = []
    for begin in range(0, len(examples), size):
        part = examples.gather(np.arange(begin, min(begin + size, len(examples))))
        lengths = part.lengths
        place = np.arange(lengths.max())
        mask = place < lengths[:, None]  # [B, T]
        ids = np.full(mask.shape, pad, np.int64)
        ids[mask] = part.tokens
        types = mask & (place >= part.seconds[:, None])
        out = run(ids, mask.astype(np.int64), types.astype(np.int64))
        if kind in POOLED:
            found.append(out)
        elif kind == "spans":
            found.append(out[mask])
        elif kind == "tagging":
            assert part.marks is not None
            row = np.repeat(np.arange(len(part)), np.diff(part.marks.offsets))
            found.append(out[row, part.marks.places])
        else:
            means = np.where(mask[:, :, None], out, 0).sum(1) / lengths[:, None]
            found.append(means / np.linalg.norm(means, axis=1, keepdims=True))
    return np.concatenate(found)


def _others(folder: Path) -> list[str]:
    """What lies in a folder and is not as an export has written it there, by name.

    Raises:
      UserError: it cannot be read, or what says what was written is damaged.
    """
    try:
        if not (folder / hub.REPORT).is_file():
            return sorted(path.name for path in folder.iterdir())
        places = [folder, *(folder / part for part in _PARTS if (folder / part).is_dir())]
        written = {p / name: sha for p in places for name, sha in read_seal(p, _AWAY).items()}
        written[folder / CARD] = read_object(folder / hub.REPORT, _AWAY).get("card", "")

        def known(path: Path) -> bool:
            if path in written and path.is_file():
                return file_sha256(path) == written[path]
            return path in places or path.name == SEAL

        found = (path for place in places for path in sorted(place.iterdir()))
        return [str(path.relative_to(folder)) for path in found if not known(path)]
    except OSError as error:
        raise UserError(f"cannot be read: {error}", str(folder), _AWAY) from error


def _write(
    subject: Subject, folder: Path, formats: Sequence[str], *, max_loss: float, force: bool
) -> dict[str, dict[str, Any]]:
    """Writes and compares the formats; what was measured of each."""
    model, length = subject.model, subject.served.max_length
    plain = "huggingface" in formats
    layout = "huggingface" if plain else layout_for(model.config, model.params)
    _write_folder(subject, folder, model.params, layout)
    examples, _ = subject.encoded(subject.rows)
    kind, pad = subject.served.kind, subject.tokenizer.pad_id
    wanted = subject.served.ask(examples)
    found: dict[str, dict[str, Any]] = {}

    def compare(name: str, given: np.ndarray) -> None:
        worst = np.max(np.abs(given - wanted) / np.maximum(1, np.abs(wanted)))
        if not worst <= TOLERANCE:  # NaN, too
            what = f"it differs by {worst:.3g} from what jaxbert computes"
            raise UserError(what, f"format {name}", "report it: this is a fault of jaxbert")
        if worst > PROMISED:
            warn(f"format {name} differs by {worst:.3g} from what jaxbert computes")
        found[name] = {"bytes": (folder / FILES[name]).stat().st_size, "difference": float(worst)}
        found[name]["rows"] = len(subject.rows)

    if plain:
        _write_pooling(folder, model, length)
        again = TextModel(read_model(folder), subject.asking)
        compare("huggingface", again.ask(examples))
    if "tinybert" in formats:
        place = (folder / FILES["tinybert"]).parent
        projection = {"projection": subject.projection} if subject.projection else {}
        _write_folder(subject, place, model.params | projection, "tinybert")
        again = TextModel(read_model(place), subject.asking)
        compare("tinybert", again.ask(examples))
    if {"onnx", "onnx-int8"} & set(formats):
        path, small = folder / FILES["onnx"], folder / FILES["onnx-int8"]
        path.parent.mkdir()
        onnx.write_onnx(path, model.config, model.params)
        compare("onnx", ask(onnx.Session(path), examples, kind, pad))
        if "onnx-int8" in formats:
            onnx.quantize_onnx(path, small)
            found["onnx-int8"] = {"bytes": small.stat().st_size}
            found["onnx-int8"] |= _loss(subject, onnx.Session(small), wanted, max_loss, force)
        if "onnx" not in formats:
            path.unlink()
            found.pop("onnx")
    if "stablehlo" in formats:
        path = folder / FILES["stablehlo"]
        path.parent.mkdir()
        stablehlo.write_stablehlo(path, model.config, model.params)
        compare("stablehlo", ask(stablehlo.Program(path), examples, kind, pad, len(examples)))
    if not plain:
        (folder / WEIGHTS).unlink()
    return found


def _write_folder(subject: Subject, folder: Path, params: dict[str, Any], layout: str) -> None:
    """A model folder without its seal, until all is written; what is read back is held to the bit.

    `transformers` cuts texts there where jaxbert does.
    """
    model = subject.model
    write_model(folder, model.config, params, model.labels, subject.tokenizer, layout=layout)
    (folder / SEAL).unlink()
    path = folder / "tokenizer_config.json"
    cut = {"model_max_length": subject.served.max_length}
    values = json.loads(path.read_text(encoding="utf-8")) | cut
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _loss(
    subject: Subject, session: Run, wanted: np.ndarray, max_loss: float, force: bool
) -> dict[str, Any]:
    """What quantisation costs: of the task's metric, or of the cosine of embeddings.

    Raises:
      UserError: it costs too much, or that is not known, and it is not forced.
    """
    kind, pad = subject.served.kind, subject.tokenizer.pad_id
    run = functools.partial(ask, session, kind=kind, pad=pad)
    if kind:
        name, rows = "", 0
        if subject.scored is not None:
            name, rows = subject.scored[0].metric, len(subject.scored[1])
        before, after = subject.score(subject.served.ask), subject.score(run)
    else:
        name, rows = "cosine", len(subject.rows)
        before = 1.0
        given = run(subject.encoded(subject.rows)[0])
        after = float(np.einsum("nd,nd->n", given, wanted).mean())
    fix = "export another format, or give --force"
    if before is None or after is None:
        if not force:
            why = f"{name} is undefined on {rows} development rows"
            if subject.scored is None:
                why = "the model comes with no development rows"
                fix = f"give the workdir of its run, {fix}"
            raise UserError(f"what int8 costs is not known: {why}", "format onnx-int8", fix)
        return {"metric": None}
    loss = before - after
    if not loss <= max_loss and not force:  # NaN, too
        what = f"int8 costs {loss:.4f} of {name} ({before:.4f} to {after:.4f} on {rows} rows)"
        where = f"format onnx-int8, where --max_loss is {max_loss:g}"
        raise UserError(what, where, fix)
    return {"metric": name, "before": before, "after": after, "loss": loss, "rows": rows}


def _write_pooling(folder: Path, model: Model, length: int) -> None:
    """What `sentence-transformers` reads: the mean of the last hidden state."""
    kinds = {"": "Transformer", _POOLING: "Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {
        "word_embedding_dimension": model.config.hidden_size,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / _POOLING).mkdir()
    cut = {"max_seq_length": length, "do_lower_case": False}
    for name, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", cut),
        (f"{_POOLING}/config.json", pooling),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
