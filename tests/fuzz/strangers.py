"""Files as strangers give them, what reads them, and how they are spoilt."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.numpy
import spiece
from hypothesis import strategies as st
from small import STUDENT, visible_params

from jaxbert.cli.rerun import _summary
from jaxbert.data.prepare import open_reference
from jaxbert.data.prepared import open_corpus
from jaxbert.data.rows import load_task
from jaxbert.data.tasks import describe_task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.data.vectors import open_vectors
from jaxbert.errors import UserError
from jaxbert.evaluation.finished import read_run
from jaxbert.files import SEAL
from jaxbert.interop.huggingface import read_model, write_model
from jaxbert.interop.tensors import INDEX, WEIGHTS
from jaxbert.training.checkpoint import Checkpoints
from jaxbert.training.journal import Journal
from jaxbert.training.stored import Stored
from jaxbert.verify import verify

SECONDS = 20  # that reading a few kilobytes may take on the busiest machine
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "##s", "good", "bad"]
TEXT = {"columns": ("text",), "labels": ("bad", "good")}


class Hangs(BaseException):
    """Reading takes longer than it may."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      make: writes good files into a folder.
      read: reads them, or raises a UserError.
      spoilt: names of the files that are spoilt; all if empty.
      sealed: whether JSON is sealed again once it is spoilt, as whoever means harm would do it.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    spoilt: tuple[str, ...] = ()
    sealed: bool = False


# --- good files -----------------------------------------------------------------------------------


def _vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")


def _tokenizer(folder: Path) -> None:
    _vocabulary(folder)
    load_tokenizer(folder).save(folder)


def _model(folder: Path) -> None:
    _vocabulary(folder)
    config = STUDENT.replace(vocab_size=len(PIECES), projection_size=0)
    params = visible_params(config, 1)
    write_model(folder / "m", config, params, ("a", "b", "c"), load_tokenizer(folder))
    for path in (folder / "m").iterdir():
        path.rename(folder / path.name)
    (folder / "m").rmdir()
    (folder / SEAL).unlink()


def _sharded(folder: Path) -> None:
    _model(folder)
    params = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(params)
    places = {name: f"{i * 2 // len(names)}.safetensors" for i, name in enumerate(names)}
    for place in set(places.values()):
        part = {name: params[name] for name in names if places[name] == place}
        safetensors.numpy.save_file(part, folder / place)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _sentencepiece(folder: Path) -> None:
    lines = ["a good film", "bad films", "what a film"] * 3
    spiece.train(folder, lines, 32, hard_vocab_limit=False)
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')


def _rows(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return make


def _parquet(folder: Path) -> None:
    table = pyarrow.table({"text": ["a good film", "bad"] * 8, "label": ["good", "bad"] * 8})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")


def _corpus(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    _vocabulary(source)
    lines = "".join(f"a good film {i}\n\nbad films\n\n" for i in range(9))
    (source / "text.txt").write_text(lines, encoding="utf-8")
    corpus = open_reference(
        f"text:{source / 'text.txt'}", load_tokenizer(source), source, cache=source / "cache"
    )
    for path in corpus.folder.iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(source)


def _checkpoint(folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    note = {"totals": {"seconds": 1.0}, "values": {}, "pending": [], "sources": {}}
    checkpoints.save(1, {"w": jnp.arange(6.0)}, note, due=True)
    checkpoints.judge(1, 0.5, note)
    checkpoints.close()


def _run(folder: Path) -> None:
    task = {"name": "mine", "source": "tsv:rows.tsv", "columns": ["text"], "labels": ["bad"]}
    config = {"task": task, "teacher": "", "phases": ["finetune"], "seed": 0}
    phase = {"model": "student", "steps": 3, "parameter_hash": "0" * 64}
    summary = {"phases": {"finetune": phase}, "parameter_hash": "0" * 64, "config": config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    lines = [json.dumps({"phase": "finetune", "step": i, "loss": 1.5}) for i in range(4)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- what reads them ------------------------------------------------------------------------------


def _read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.pieces) == tokenizer.vocab_size == len(tokenizer.continues)
    assert tokenizer.fingerprint
    tokenizer.encode(["a good film", "", "films \u4e00 [SEP]"])
    tokenizer.encode_with_offsets(["a good film"])


def _read_model(folder: Path) -> None:
    read_model(folder)
    _read_tokenizer(folder)


def _read_rows(name: str, **task: Any) -> Callable[[Path], None]:
    kind = "squad" if name == "rows.json" else name.split(".")[1]

    def read(folder: Path) -> None:
        source = f"{kind}:{folder / name}"
        load_task(describe_task(name="mine", source=source, dev=source, test=source, **task))

    return read


def _read_corpus(folder: Path) -> None:
    with contextlib.suppress(UserError):
        open_corpus(folder, verify=True)
    corpus = open_corpus(folder)
    assert corpus.sha256 and corpus.manifest_sha256
    corpus.check_tokenizer(corpus.manifest["tokenizer"]["fingerprint"], "x")
    corpus.read(np.arange(min(corpus.num_documents, 50)))


def _read_checkpoint(folder: Path) -> None:
    stored = Stored(folder / "1")
    assert stored.best is None or len(stored.best) == 2
    stored.verify()
    stored.restore({"w": jnp.zeros(6)})


def _read_run(folder: Path) -> None:
    for read in (read_run, _summary, lambda folder: verify(folder, str)):
        with contextlib.suppress(UserError):
            read(folder)
    Journal(folder).rewind("finetune", 2)


def _read_vectors(folder: Path) -> None:
    vectors = open_vectors(f"glove:{folder / 'vectors.txt'}", None, (), np.zeros((0, 2)))  # type: ignore[arg-type]
    vectors.nearest("film", 2)


_SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "a good film",
                    "qas": [
                        {
                            "id": "1",
                            "question": "what",
                            "answers": [{"text": "film", "answer_start": 7}],
                        },
                        {"id": "2", "question": "who", "answers": [], "is_impossible": True},
                    ],
                }
            ]
        }
    ]
    * 8
}
_TSV = "text\tlabel\n" + "a good film\tgood\nbad\tbad\n" * 8
_JSONL = '{"text": "a good film", "label": "good"}\n{"text": "bad", "label": "bad"}\n' * 8
_CONLL = "a O\nfilm B-PER\ns I-PER\n\nbad B-LOC\n\n" * 8

KINDS: dict[str, Kind] = {
    "model": Kind(_model, _read_model, ("config.json", "model.safetensors")),
    "tokenizer": Kind(
        _tokenizer,
        _read_tokenizer,
        ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    ),
    "sharded model": Kind(_sharded, _read_model, (INDEX, "0.safetensors", "1.safetensors")),
    "SentencePiece": Kind(_sentencepiece, _read_tokenizer),
    "vocabulary": Kind(_vocabulary, _read_tokenizer),
    "tsv": Kind(_rows("rows.tsv", _TSV), _read_rows("rows.tsv", **TEXT)),
    "tsv.gz": Kind(_rows("rows.tsv.gz", _TSV), _read_rows("rows.tsv.gz", **TEXT)),
    "csv": Kind(_rows("rows.csv", _TSV.replace("\t", ",")), _read_rows("rows.csv", **TEXT)),
    "jsonl": Kind(_rows("rows.jsonl", _JSONL), _read_rows("rows.jsonl", **TEXT)),
    "parquet": Kind(_parquet, _read_rows("rows.parquet", **TEXT)),
    "conll": Kind(
        _rows("rows.conll", _CONLL),
        _read_rows("rows.conll", kind="tagging", columns=("0",), labels=("PER", "LOC")),
    ),
    "squad": Kind(
        _rows("rows.json", json.dumps(_SQUAD)), _read_rows("rows.json", kind="spans", columns=())
    ),
    "corpus": Kind(_corpus, _read_corpus),
    "checkpoint": Kind(_checkpoint, _read_checkpoint),
    "checkpoint, sealed anew": Kind(
        _checkpoint, _read_checkpoint, ("1/record/metadata", "1/record/judgement"), sealed=True
    ),
    "run": Kind(_run, _read_run),
    "vectors": Kind(_rows("vectors.txt", "film 1 0.5\nbad 0 1\ngood 1 1\n"), _read_vectors),
}

# --- how they are spoilt --------------------------------------------------------------------------

# What stands in the place of a value of JSON.
VALUES = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**40, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "a", "\u0000", "\ud800", "../../outside", "/etc/passwd", "float32", "object",
    "O8", "9" * 5000, [], {}, [[]], [None], {"a": None}, [1, 2], ["a", "b"], [[1, "x"]],
)  # fmt: skip
_BYTES = (
    b"", b"\x00", b"\xff", b"\n", b"\r\n", b"\t", b'"', b"{", b"[", b"[" * 5000, b"\\ud800",
    b"1e999", b"-", b" ", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"9" * 5000, b"nan", b"\xff" * 8,
    b"\x00" * 64,
)  # fmt: skip

FRACTIONS = st.floats(0, 1, exclude_max=True, width=32)
CHANGES = st.lists(
    st.tuples(
        FRACTIONS,  # which file
        st.sampled_from(("json", "json", "json", "bytes", "bytes", "flip", "cut", "twice", "gone")),
        FRACTIONS,  # where
        FRACTIONS,  # how much
        st.sampled_from(range(max(len(VALUES), len(_BYTES)))),
    ),
    min_size=1,
    max_size=3,
)


def spoil(kind: Kind, folder: Path, changes: list[Any]) -> None:
    """Spoils the files of a folder."""
    names = kind.spoilt or tuple(
        str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()
    )
    for which, how, where, much, value in changes:
        path = folder / names[int(which * len(names))]
        if not path.exists():
            continue
        data = path.read_bytes()
        if how == "gone":
            path.unlink()
            continue
        at = int(where * (len(data) + 1))
        end = min(at + int(much * much * 64), len(data))
        if how == "json" or kind.sealed:
            data = _spoilt_json(data, where, value, kind.sealed)
        elif how == "bytes":
            data = data[:at] + _BYTES[value % len(_BYTES)] + data[end:]
        elif how == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :]
        elif how == "cut":
            data = data[:at]
        elif how == "twice":
            data = data[:at] + data[at:end] * 2 + data[end:]
        path.write_bytes(data)


def _spoilt_json(data: bytes, where: float, value: int, sealed: bool) -> bytes:
    """JSON, or the header of safetensors, or a line of JSON, with another value somewhere."""
    head, tail = b"", b""
    body = data
    if (
        len(data) > 8
        and (size := int.from_bytes(data[:8], "little")) < len(data)
        and data[8:9] == b"{"
    ):
        body, tail = data[8 : 8 + size], data[8 + size :]
        head = b"safetensors"
    elif b"\n{" in data and data[:1] == b"{":
        lines = data.split(b"\n")
        at = int(where * len(lines))
        head, body = b"".join(line + b"\n" for line in lines[:at]), lines[at]
        tail = b"".join(b"\n" + line for line in lines[at + 1 :])
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return data
    places = list(_places(tree))
    if not places:
        return data
    owner, key = places[int((where * 997) % 1 * len(places))]
    if value == 0 and isinstance(owner, dict):
        del owner[key]
    else:
        owner[key] = VALUES[value % len(VALUES)]
    if sealed and isinstance(tree, dict) and "content" in tree:
        content = json.dumps(tree["content"], sort_keys=True).encode()
        tree["sha256"] = hashlib.sha256(content).hexdigest()
    body = json.dumps(tree).encode()
    if head == b"safetensors":
        head = len(body).to_bytes(8, "little")
    return head + body + tail


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


# --- reading, watched -----------------------------------------------------------------------------


@functools.cache
def good(name: str, root: Path) -> Path:
    """A folder of good files, made once."""
    folder = root / f"good {name}"
    folder.mkdir()
    KINDS[name].make(folder)
    return folder


def read_spoilt(name: str, root: Path, changes: list[Any]) -> str:
    """Spoils files and reads them, as ``read_changed`` does."""
    return read_changed(name, root, lambda folder: spoil(KINDS[name], folder, changes))


def read_changed(name: str, root: Path, change: Callable[[Path], None]) -> str:
    """Reads good files that something has changed; what was said, nothing if they were read.

    Raises:
      Exception: anything but a UserError came out.
      Hangs: it took too long.
      AssertionError: something was written elsewhere.
    """
    folder = root / "case" / "here"
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(good(name, root), folder)
    change(folder)
    there = _beside(root, folder)
    said = ""
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        KINDS[name].read(folder)
    except UserError as error:
        said = error.line
        assert said
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    elsewhere = _beside(root, folder) ^ there
    assert not elsewhere, f"written elsewhere: {sorted(elsewhere)}"
    return said


def _beside(root: Path, folder: Path) -> set[tuple[str, int, int]]:
    """What lies below a root but not in a folder of it: names, sizes, times of the last change."""
    paths = (path for path in root.rglob("*") if not path.is_relative_to(folder))
    found = ((path, path.lstat()) for path in paths if path != folder.parent)
    return {(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found}


def _hangs(*_: Any) -> None:
    raise Hangs
