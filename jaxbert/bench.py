"""How fast models answer, how large they are, and what they cost, in each library that runs them.

Latency is of one text on one thread, throughput of a batch on all that the machine has, each in a
process of its own. What is timed is the forward pass from word piece ids to logits (or, without a
head, to states or their mean), of rows without padding; tokenising is left out, being the same for
every model. Models and libraries take turns, so that whatever else the machine does meets all.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.errors import UserError, exit_on_user_error
from jaxbert.evaluation.latency import Apart, in_turns, pin_to_one_cpu
from jaxbert.workdir import processor

BACKENDS = ("jax", "onnxruntime", "onnx-int8", "torch")
LENGTHS = (16, 32, 64, 128, 256, 512)
PATIENCE = 60.0  # seconds of one length, from which on three calls are enough
_NEEDS = {"onnxruntime": ("onnx", "onnxruntime"), "torch": ("torch", "transformers")}
_NEEDS["onnx-int8"] = _NEEDS["onnxruntime"]


def available(backend: str) -> bool:
    """Whether a backend's packages are installed."""
    return all(importlib.util.find_spec(name) for name in _NEEDS.get(backend, ()))


def bench(
    models: Sequence[str],
    *,
    lengths: Sequence[int] = LENGTHS,
    batch: int = 32,
    rounds: int = 50,
    backends: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures models.

    Args:
      models: model references.
      lengths: word pieces of a text.
      batch: texts at a time where throughput is measured.
      rounds: timed calls of each model in each library; a fifth as many of batches. Three are
        enough of a length that takes longer than a minute.
      backends: out of ``BACKENDS``; empty = those that are installed.

    Returns:
      ``models``, name -> ``parameters``, ``parameters_without_embeddings`` and ``flops`` (by
      length); ``measured``, a list of ``model``, ``backend``, ``bytes``, and by length
      ``p50_ms``, ``p90_ms`` (one text, one thread) and ``texts_per_second`` (a batch, all
      threads), null where a text is longer than the model's positions; ``left_out``; ``machine``
      and ``versions``.

    Raises:
      UserError: there is no such model, or no such library.
    """
    from jaxbert.interop.huggingface import read_model

    left_out = {}
    for name in backends or BACKENDS:
        if name not in BACKENDS:
            fix = f"give some of {','.join(BACKENDS)}"
            raise UserError(f"unknown library {name!r}", "flag --backends", fix)
        if not available(name):
            left_out[name] = f"{' and '.join(_NEEDS[name])} are needed"
    if backends and left_out:
        name, why = next(iter(left_out.items()))
        raise UserError(why, f"flag --backends={name}", "install them")
    chosen = [name for name in (backends or BACKENDS) if name not in left_out]
    with tempfile.TemporaryDirectory() as scratch:
        entries, described = [], {}
        for index, (name, folder) in enumerate(_named(models).items()):
            model = read_model(folder)
            described[name] = _describe(model, lengths)
            for backend in chosen:
                if backend == "torch" and _plain(folder) != "bert":
                    left_out[f"torch, {name}"] = "transformers does not load it"
                    continue
                file = _prepare(model, backend, Path(scratch, f"{index}"))
                parts = file.parent.glob("*.safetensors") if file.suffix == ".json" else [file]
                size = sum(part.stat().st_size for part in parts)
                entries.append(_Entry(name, backend, str(folder), str(file), size))
        spec = {"entries": [dataclasses.asdict(e) for e in entries], "lengths": list(lengths)}
        one = {"rows": 1, "rounds": rounds, "warm_up": 3, "threads": 1}
        many = {"rows": batch, "rounds": max(1, rounds // 5), "warm_up": 1, "threads": 0}
        alone, whole = (_apart(scratch, spec | how) for how in (one, many))
    measured = []
    for entry, single, batches in zip(entries, alone, whole, strict=True):
        found: dict[str, Any] = {"model": entry.model, "backend": entry.backend}
        found |= {"bytes": entry.bytes, "p50_ms": {}, "p90_ms": {}, "texts_per_second": {}}
        for length, taken in single.items():
            found["p50_ms"][length] = statistics.median(taken) if taken else None
            found["p90_ms"][length] = float(np.quantile(taken, 0.9)) if taken else None
        for length, taken in batches.items():
            rate = 1e3 * batch / statistics.median(taken) if taken else None
            found["texts_per_second"][length] = rate
        measured.append(found)
    return {
        "models": described,
        "measured": measured,
        "left_out": left_out,
        "batch": batch,
        "rounds": rounds,
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "versions": _versions(chosen),
    }


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A model in a library."""

    model: str
    backend: str
    folder: str
    file: str
    bytes: int


def _named(models: Sequence[str]) -> dict[str, Path]:
    from jaxbert.interop import hub

    return {reference: hub.resolve(reference) for reference in models}


def _plain(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")


def _describe(model: Any, lengths: Sequence[int]) -> dict[str, Any]:
    from jaxbert.evaluation.embeddings import ENCODER
    from jaxbert.evaluation.flops import forward_flops
    from jaxbert.models.bert import count_parameters, scored_groups

    head = "classifier" in model.params
    groups = scored_groups(model.config) if head else ENCODER
    counts = {group: count_parameters(model.params[group]) for group in groups}
    total = sum(counts.values())
    flops = {str(n): forward_flops(model.config, n, head=head) for n in lengths}
    without = total - counts["embeddings"]
    return {"parameters": total, "parameters_without_embeddings": without, "flops": flops}


def _prepare(model: Any, backend: str, scratch: Path) -> Path:
    """The file that a library reads a model from; made if it is ONNX."""
    from jaxbert.interop import onnx
    from jaxbert.interop.tensors import INDEX, WEIGHTS

    if "onnx" not in backend:
        whole = model.folder / WEIGHTS
        return whole if whole.exists() else model.folder / INDEX
    plain, small = scratch.with_suffix(".onnx"), scratch.with_suffix(".int8.onnx")
    if not plain.exists():
        onnx.write_onnx(plain, model.config, model.params)
    if backend == "onnx-int8":
        onnx.quantize_onnx(plain, small)
        return small
    return plain


def _apart(scratch: str, spec: dict[str, Any]) -> list[dict[str, list[float]]]:
    """What `_measure` returns, from a fresh process."""
    path = Path(scratch, "spec.json")
    path.write_text(json.dumps(spec), encoding="utf-8")
    quiet = {"JAX_PLATFORMS": "cpu", "TRANSFORMERS_VERBOSITY": "error"}
    with Apart(__name__, [str(path)], **quiet) as process:
        return process.answer()


def _measure(spec: dict[str, Any]) -> list[dict[str, list[float]]]:
    """Of each entry, by length, the milliseconds of each call."""
    makers = {"jax": _jax, "torch": _torch}
    entries = spec["entries"]
    calls = [makers.get(e["backend"], _onnx)(e, spec["threads"]) for e in entries]
    times: list[dict[str, list[float]]] = [{} for _ in entries]
    for length in spec["lengths"]:
        ready = {}
        for index, (ask, longest, pieces) in enumerate(calls):
            if length <= longest:
                ids = np.random.default_rng(length).integers(0, pieces, (spec["rows"], length))
                ready[index] = ask(ids)
        turns = in_turns(list(ready.values()), spec["rounds"], spec["warm_up"], PATIENCE)
        taken = dict(zip(ready, turns, strict=True))
        for index, found in enumerate(times):
            found[str(length)] = taken.get(index, [])
    return times


# A library's (entry, threads) -> (ids int [B, T] -> a call to time), positions and word pieces.
_Ask = Callable[[np.ndarray], Callable[[], Any]]
_Made = tuple[_Ask, int, int]


def _jax(entry: dict[str, Any], threads: int) -> _Made:
    import jax

    from jaxbert.batch import Batch
    from jaxbert.evaluation.embeddings import ENCODER, embedder
    from jaxbert.evaluation.predict import predictor
    from jaxbert.interop.huggingface import read_model
    from jaxbert.models.bert import scored_groups

    model = read_model(Path(entry["folder"]))
    config, head = model.config.replace(dtype="float32"), "classifier" in model.params
    groups = scored_groups(config) if head else ENCODER
    params = jax.device_put({group: model.params[group] for group in groups})
    run = predictor(config) if head else embedder(config, normalize=False)

    def ask(ids: np.ndarray) -> Callable[[], Any]:
        ones, count = np.ones_like(ids, np.int32), len(ids)
        places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        starts = np.zeros((count, 1), np.int32)
        weights = np.ones((count, 1), np.float32)
        batch = Batch(
            ids.astype(np.int32), ones, ones - 1, places, starts, None, weights, places, ones - 1
        )
        return lambda: np.asarray(run(params, batch))

    return ask, config.max_position_embeddings, config.vocab_size


def _onnx(entry: dict[str, Any], threads: int) -> _Made:
    from jaxbert.interop import onnx
    from jaxbert.interop.huggingface import read_model

    session = onnx.Session(Path(entry["file"]), threads, spinning=False)
    config = read_model(Path(entry["folder"])).config

    def ask(ids: np.ndarray) -> Callable[[], Any]:
        ones = np.ones_like(ids)
        return lambda: session(ids, ones, ones - 1)

    return ask, config.max_position_embeddings, config.vocab_size


def _torch(entry: dict[str, Any], threads: int) -> _Made:
    import torch
    import transformers

    if threads:
        torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(entry["folder"])
    # A published encoder may name no class: then there is no head.
    named = (config.architectures or ["BertModel"])[0]
    if not (named.startswith("BertFor") and named.endswith(("Classification", "Answering"))):
        named = "BertModel"  # without a head that the other libraries do not run
    model = getattr(transformers, named).from_pretrained(entry["folder"]).eval()

    def ask(ids: np.ndarray) -> Callable[[], Any]:
        given = torch.from_numpy(ids)

        def run() -> Any:
            with torch.inference_mode():
                return model(given)

        return run

    return ask, config.max_position_embeddings, config.vocab_size


def _versions(backends: Sequence[str]) -> dict[str, str]:
    names = {"jaxbert", "jax", "jaxlib", *(n for b in backends for n in _NEEDS.get(b, ()))}
    owners = importlib.metadata.packages_distributions()  # onnxruntime may be onnxruntime-gpu's
    return {n: importlib.metadata.version(owners.get(n, [n])[0]) for n in sorted(names)}


def main() -> None:
    """The process that measures: prints what `_measure` returns as JSON."""
    parser = argparse.ArgumentParser(prog="jaxbert")
    parser.add_argument("spec", type=Path)
    spec = json.loads(parser.parse_args().spec.read_text(encoding="utf-8"))
    if spec["threads"] == 1:
        pin_to_one_cpu()
    with exit_on_user_error():
        found = _measure(spec)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
