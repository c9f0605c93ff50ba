"""The official GLUE files (Wang et al. 2019): what is downloaded, and what is handed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxbert.data.tables import BadRow, Record, read_tsv
from jaxbert.errors import UserError
from jaxbert.files import local_path, whole


@dataclasses.dataclass(frozen=True)
class GlueFiles:
    """One task's files as GLUE's own download has them, and those that it takes.

    Attributes:
      folder: below the GLUE folder.
      columns: the text columns.
      label: the label's column; empty where there are no labels (AX).
      dev: the split that has labels and is reported; empty where there is none.
      header: the columns of labelled files that have no header line.
      names: what stands for each class in a file that is handed in; empty for a score.
      index: the column of the test files that numbers their rows.
      tests: the splits without labels, each with the name of the file that is handed in; empty
        for ``test`` and the folder's name.
    """

    folder: str
    columns: tuple[str, ...]
    label: str = "label"
    dev: str = "dev"
    header: tuple[str, ...] | None = None
    names: tuple[str, ...] = ("0", "1")
    index: str = "index"
    tests: Mapping[str, str] = dataclasses.field(default_factory=dict)


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_INFERENCE = ("entailment", "neutral", "contradiction")
_MNLI = {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}
_AX = {"diagnostic": "AX.tsv"}


FILES = {
    "cola": GlueFiles("CoLA", ("sentence",), header=("source", "label", "mark", "sentence")),
    "sst2": GlueFiles("SST-2", ("sentence",)),
    "mrpc": GlueFiles("MRPC", ("#1 String", "#2 String"), "Quality"),
    "qqp": GlueFiles("QQP", ("question1", "question2"), "is_duplicate", index="id"),
    "stsb": GlueFiles("STS-B", _SENTENCES, "score", names=()),
    "mnli": GlueFiles(
        "MNLI", _SENTENCES, "gold_label", dev="dev_matched", names=_INFERENCE, tests=_MNLI
    ),
    "qnli": GlueFiles("QNLI", ("question", "sentence"), names=_ENTAILMENT),
    "rte": GlueFiles("RTE", _SENTENCES, names=_ENTAILMENT),
    "wnli": GlueFiles("WNLI", _SENTENCES),
    "ax": GlueFiles("diagnostic", _SENTENCES, "", dev="", names=_INFERENCE, tests=_AX),
}


def read_glue(
    root: str, task: str, split: str, columns: Sequence[str]
) -> Iterator[Record | BadRow]:
    """Yields the rows of a labelled split: ``ROOT/FOLDER/SPLIT.tsv`` or ``.tsv.gz``.

    Args:
      root: the GLUE folder.
      task: a key of ``FILES``.
      split: ``train``, ``dev``, for MNLI ``dev_matched`` or ``dev_mismatched``.
      columns: those that are wanted.

    Raises:
      UserError: no such file, unreadable, or without one of the columns.
    """
    return read_tsv(_find(root, FILES[task].folder, split), columns, FILES[task].header)


def _find(root: str, folder: str, split: str) -> Path:
    plain = local_path(root).expanduser() / folder / f"{split}.tsv"
    path = next((p for p in (plain, plain.with_suffix(".tsv.gz")) if p.is_file()), None)
    if path is None:
        fix = f"give glue:DIR#SPLIT with the folder that holds {folder}/{split}.tsv"
        raise UserError(
            f"there is neither {plain.name} nor {plain.name}.gz", str(plain.parent), fix
        )
    return path


@dataclasses.dataclass(frozen=True)
class GlueTest:
    """The rows of a split without labels, all of them and in their order.

    Attributes:
      indices: N, as they stand in the file, whose first column they are.
      texts: N texts.
      pairs: N second texts, or None for a task of single ones.
      file: the name of the file that is handed in for them.
    """

    indices: list[str]
    texts: list[str]
    pairs: list[str] | None
    file: str


def read_glue_test(root: str, task: str) -> list[GlueTest]:
    """Reads the splits of a task that have no labels; MNLI has two.

    Args:
      root: the GLUE folder.
      task: a key of ``FILES``.

    Raises:
      UserError: no such task or file, or a row that cannot be read: none may be left out.
    """
    if task not in FILES:
        fix = f"give one of {', '.join(FILES)}"
        raise UserError(f"{task!r} is no task of GLUE", "config key task.name", fix)
    files = FILES[task]
    splits = []
    for split, name in (files.tests or {"test": f"{files.folder}.tsv"}).items():
        indices: list[str] = []
        texts: list[list[str]] = [[] for _ in files.columns]
        for row in read_tsv(_find(root, files.folder, split), [files.index, *files.columns]):
            if isinstance(row, BadRow):
                raise row.error
            indices.append(row.values[files.index])
            for column, found in zip(files.columns, texts, strict=True):
                found.append(row.values[column])
        splits.append(GlueTest(indices, texts[0], texts[1] if len(texts) > 1 else None, name))
    return splits


def write_submission(folder: Path, task: str, test: GlueTest, predictions: np.ndarray) -> Path:
    """Writes the file that GLUE takes, in one piece: ``index TAB prediction``, a line a row.

    Args:
      folder: made if absent.
      task: a key of ``FILES``.
      test: the rows.
      predictions: int [N] class numbers in the order of the task's labels; of STS-B float [N]
        scores, written within 0 to 5.

    Returns:
      The file.
    """
    names = FILES[task].names
    if names:
        said = [names[number] for number in predictions.tolist()]
    else:
        said = [f"{score:.3f}" for score in np.clip(predictions, 0, 5).tolist()]
    rows = zip(test.indices, said, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["index\tprediction", *(f"{index}\t{prediction}" for index, prediction in rows)]
    with whole(folder / test.file) as file:
        file.write("\n".join(lines) + "\n")
    return folder / test.file
