"""Model folders: config.json, model.safetensors and tokenizer files, as `transformers` has them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxbert.errors import UserError, UserErrors
from jaxbert.files import SEAL, as_path, check_seal, fetched, is_remote, seal
from jaxbert.interop import layout as table
from jaxbert.interop.configuration import (
    PROBLEMS,
    config_json,
    no_names,
    read_config,
    read_labels,
)
from jaxbert.interop.tensors import WEIGHTS, Tensors, open_tensors, read_json
from jaxbert.models.bert import BertConfig
from jaxbert.objects import send

LAYOUTS = ("huggingface", "tinybert")
_SHOWN = 10  # names in one message


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as read from a folder.

    Attributes:
      config: its shape; ``dtype`` is float32, how to compute is not stored.
      params: its parameter groups, NumPy float32.
      labels: the names of the classes in order; empty without a classifier, and where what it
        says has no names (a number, the bounds of a span).
      folder: where it was read from.
    """

    config: BertConfig
    params: dict[str, Any]
    labels: tuple[str, ...]
    folder: Path

    @property
    def unnamed(self) -> bool:
        """Whether nobody named its classes, so that they are known by their places alone."""
        return self.labels == no_names(len(self.labels))

    def class_order(self, classes: Sequence[str]) -> list[int] | None:
        """Which of its classes is each of others, by name.

        Args:
          classes: the names of others. Case counts only where classes differ in nothing else.

        Returns:
          An index into ``labels`` for each; None where they are not the same by name.
        """
        mine, theirs = list(self.labels), list(classes)
        if sorted(mine) != sorted(theirs):
            mine, theirs = ([name.casefold() for name in names] for names in (mine, theirs))
        if sorted(mine) != sorted(theirs) or len(set(mine)) != len(mine):
            return None
        return [mine.index(name) for name in theirs]


class TokenizerFiles(Protocol):
    """What a model folder needs of its tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files."""
        ...


def read_model(folder: Path) -> Model:
    """Reads a BERT from config.json and safetensors; pickles are never opened.

    Understood are BertModel and its pre-training, masked-LM, next-sentence, sequence and token
    classification and question answering variants, and TinyBERT's checkpoints with their
    projections. Without a word in config.json, a classifier beside a projection is TinyBERT's: only
    its authors' code makes these.

    A folder that ``write_model`` made holds hashes of its files, which are checked.

    Raises:
      UserError: no model, not a BERT, weights that do not fit the configuration, or a file that is
        not what was written.
    """
    folder = as_path(folder)
    if is_remote(folder):
        copy = fetched(folder)
        try:
            return read_model(copy)
        except UserError as error:  # it is not the copy that is to be mended
            words = (error.what, error.where, error.fix)
            raise UserError(*(s.replace(str(copy), str(folder)) for s in words)) from error
    check_seal(folder, f"copy the folder anew, or write it anew; if you changed it, remove {SEAL}")
    path = folder / "config.json"
    values = read_json(path)
    with open_tensors(folder) as tensors:
        names, aliases = _canonical_names(tensors)
        patterns = {re.sub(r"(?<=\.)\d+(?=\.)", "{}", name) for name in names}
        found = dict.fromkeys(rule.group for rule in table.RULES if rule.name in patterns)
        groups = tuple(dict.fromkeys(["embeddings", "encoder", *found]))
        config = read_config(
            values, path, groups, {name: tensors.shapes[names[name]] for name in names}
        )
        _check_names(config, groups, names, tensors)
        _check_shapes(config, groups, names, tensors)
        for alias, target in aliases.items():
            if not np.array_equal(tensors.read(alias), tensors.read(names[target])):
                raise UserError(
                    f"tensor {alias!r} differs from {target!r}, to which it is tied",
                    str(tensors.path),
                    "train a model with a tied decoder: jaxbert has no other",
                )
        params = table.from_tensors(config, groups, lambda name: tensors.read(names[name]))
    return Model(config, params, read_labels(values, config.num_classes, path), folder)


def _canonical_names(tensors: Tensors) -> tuple[dict[str, str], dict[str, str]]:
    """Canonical name -> name in the file, and the second names: in the file -> canonical."""
    names: dict[str, str] = {}
    aliases = {}
    for name in tensors.shapes:
        plain = table.canonical(name)
        if plain in table.BUFFERS:
            continue
        if plain in names:
            raise UserError(
                f"tensors {names[plain]!r} and {name!r} are the same parameter",
                str(tensors.path),
                "remove one",
            )
        names[plain] = name
    for alias, target in table.ALIASES.items():
        if alias in names:
            name = names.pop(alias)
            if target in names:
                aliases[name] = target
            else:
                names[target] = name
    return names, aliases


def _check_names(
    config: BertConfig, groups: Sequence[str], names: Mapping[str, str], tensors: Tensors
) -> None:
    expected = {name for r in table.rules_for(config, groups) for name in r.names(config)}
    missing = [repr(name) for name in expected - set(names)]
    unknown = [repr(names[name]) for name in set(names) - expected]

    def listed(what: str, found: list[str]) -> str:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"{what} {', '.join(sorted(found)[:_SHOWN])}{more}"

    if missing or unknown:
        parts = [listed("missing", missing)] * bool(missing)
        parts += [listed("unknown", unknown)] * bool(unknown)
        raise UserError(
            f"the tensors are not those of this BERT: {'; '.join(parts)}",
            str(tensors.path),
            "check num_hidden_layers of config.json, and that the model is a BERT",
        )


def _check_shapes(
    config: BertConfig, groups: Sequence[str], names: Mapping[str, str], tensors: Tensors
) -> None:
    known = table.sizes(config)
    errors = []
    for rule in table.rules_for(config, groups):
        want = tuple(known[size] if isinstance(size, str) else size for size in rule.shape)
        for name in rule.names(config):
            have = tensors.shapes[names[name]]
            if have == want:
                continue
            same_rank = len(have) == len(want)
            keys = [
                f"{key} = {size}"
                for i, (key, size) in enumerate(zip(rule.shape, want, strict=True))
                if isinstance(key, str) and not (same_rank and have[i] == size)
            ]
            errors.append(
                UserError(
                    f"tensor {names[name]!r} has shape {list(have)} instead of {list(want)}",
                    str(tensors.path),
                    f"config.json says {', '.join(keys)}" if keys else "give a whole model",
                )
            )
    if errors:
        raise UserErrors(errors[:_SHOWN])


def layout_for(config: BertConfig, params: Mapping[str, Any]) -> str:
    """The layout that a model is written in: ``huggingface`` wherever that can hold it."""
    heads = {"classifier", "mlm", "nsp"} & set(params)
    plain = "projection" not in params and config.position == "learned"
    plain &= "classifier" not in heads or (config.classifier == "bert" and len(heads) == 1)
    return "huggingface" if plain else "tinybert"


def write_model(
    folder: Path,
    config: BertConfig,
    params: Mapping[str, Any],
    labels: Sequence[str],
    tokenizer: TokenizerFiles,
    *,
    layout: str = "huggingface",
    extra: Mapping[str, str] | None = None,
) -> None:
    """Writes a model folder: all of it at once or nothing, read back before it gets its name.

    Args:
      folder: where to; a model already there is replaced.
      config: its shape; classes and projection are taken from the parameters.
      params: parameter groups, float32; all that are given are written.
      labels: the names of its classes in order; LABEL_0 and so on if empty.
      tokenizer: the tokenizer it was trained with.
      layout: ``huggingface``, which ``transformers`` loads and computes alike, or ``tinybert``,
        which has room for a projection, TinyBERT's classifier and other positions. Its
        ``model_type`` is one that ``transformers`` refuses, rather than computing otherwise.
      extra: further files, name -> text, that appear in the folder with it.

    Raises:
      UserError: the layout cannot hold the model, or the folder cannot be written.
    """
    folder = as_path(folder)
    if is_remote(folder):
        with tempfile.TemporaryDirectory() as here:
            place = Path(here) / folder.name
            write_model(place, config, params, labels, tokenizer, layout=layout, extra=extra)
            try:
                send(place, folder, SEAL)
            except OSError as error:
                what, fix = f"the model cannot be written ({error})", "run the same command again"
                raise UserError(what, str(folder), fix) from error
        return
    config = _fit_config(config, params)
    labels = (
        tuple(labels)
        if labels and config.num_labels
        else read_labels({}, config.num_classes, folder)
    )
    _check_layout(config, params, labels, tokenizer, layout, folder)
    plain = layout == "huggingface" and set(params) <= set(table.BACKBONE)
    tensors = table.to_tensors(config, params, "" if plain else table.PREFIX)
    partial, old = (folder.parent / f".{folder.name}.{end}" for end in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        text = json.dumps(
            config_json(config, set(params), labels, tokenizer.pad_id, layout), indent=2
        )
        for name, content in {"config.json": text + "\n", **(extra or {})}.items():
            (partial / name).write_text(content, encoding="utf-8")
        safetensors.numpy.save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        tokenizer.save(partial)
        seal(partial, [path.name for path in partial.iterdir()])
        _check_written(read_model(partial), config, params, labels)
        for path in (*partial.iterdir(), partial):
            _to_disk(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"the model cannot be written ({error})",
            str(folder),
            "make room, or choose another place",
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fit_config(config: BertConfig, params: Mapping[str, Any]) -> BertConfig:
    """The configuration with the classes and the projection that the parameters have."""
    changes: dict[str, Any] = {"num_labels": 0, "dtype": "float32"}
    if "classifier" in params:
        changes["num_labels"] = params["classifier"]["dense"]["bias"].shape[0]
    else:
        changes["head"] = "classification"
    projection = params.get("projection", {})
    rank = projection["down_kernel"].shape[-1] if "down_kernel" in projection else 0
    changes |= {
        "projection_size": projection["bias"].shape[-1] if projection else 0,
        "projection_per_layer": bool(projection) and projection["bias"].ndim == 2,
        "projection_rank": rank,
    }
    return config.replace(**changes)


def _check_layout(
    config: BertConfig,
    params: Mapping[str, Any],
    labels: Sequence[str],
    tokenizer: TokenizerFiles,
    layout: str,
    folder: Path,
) -> None:
    errors = []

    def wrong(what: str, fix: str) -> None:
        errors.append(UserError(what, str(folder), fix))

    if layout not in LAYOUTS:
        wrong(f"unknown layout {layout!r}", f"give one of {', '.join(LAYOUTS)}")
    if len(labels) != config.num_classes:
        wrong(f"{len(labels)} label names for {config.num_classes} classes", "give one for each")
    if "pooler" in params and config.num_labels and config.head not in PROBLEMS:
        wrong(f"a model for {config.head} has no pooler", "drop it")
    if tokenizer.vocab_size > config.vocab_size:
        wrong(
            f"the tokenizer has {tokenizer.vocab_size} word pieces, the model {config.vocab_size}",
            "give the tokenizer that the model was trained with",
        )
    if layout == "huggingface":
        if "classifier" in params and config.classifier == "tinybert":
            wrong(
                "layout huggingface has no TinyBERT classifier (with a relu)",
                'train with classifier="bert", or write layout="tinybert"',
            )
        if "projection" in params:
            wrong("layout huggingface has no projection", 'drop it, or write layout="tinybert"')
        if config.position != "learned":
            wrong(
                f"layout huggingface has no {config.position} positions",
                'train with position="learned", or write layout="tinybert"',
            )
        if "classifier" in params and {"mlm", "nsp"} & set(params):
            wrong(
                "layout huggingface has either a classifier or the pre-training heads",
                'drop mlm and nsp, or write layout="tinybert"',
            )
    if errors:
        raise UserErrors(errors)


def _check_written(
    model: Model, config: BertConfig, params: Mapping[str, Any], labels: Sequence[str]
) -> None:
    """Raises OSError unless what was read back is what was to be written, bit for bit."""

    def same(a: np.ndarray, b: Any) -> bool:
        b = np.asarray(b)
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and np.array_equal(a.view(np.uint32), np.ascontiguousarray(b).view(np.uint32))
        )

    agree = model.config == config and model.labels == tuple(labels)
    if not agree or not jax.tree.all(jax.tree.map(same, model.params, dict(params))):
        raise OSError("what was written reads back differently")


def _to_disk(path: Path) -> None:
    """Waits until a file or folder would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
