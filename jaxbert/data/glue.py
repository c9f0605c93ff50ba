"""The official GLUE files (Wang et al. 2019): their folders, columns and headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxbert.data.tables import BadRow, Record, read_tsv
from jaxbert.errors import UserError


@dataclasses.dataclass(frozen=True)
class GlueFiles:
    """One task's files as GLUE's own download has them.

    Attributes:
      folder: below the GLUE folder.
      columns: the text columns.
      label: the label's column; empty where there are no labels (AX).
      dev: the split that has labels and is reported.
      header: the columns of files that have no header line.
    """

    folder: str
    columns: tuple[str, ...]
    label: str = "label"
    dev: str = "dev"
    header: tuple[str, ...] | None = None


_SENTENCES = ("sentence1", "sentence2")
FILES = {
    "cola": GlueFiles("CoLA", ("sentence",), header=("source", "label", "mark", "sentence")),
    "sst2": GlueFiles("SST-2", ("sentence",)),
    "mrpc": GlueFiles("MRPC", ("#1 String", "#2 String"), "Quality"),
    "qqp": GlueFiles("QQP", ("question1", "question2"), "is_duplicate"),
    "stsb": GlueFiles("STS-B", _SENTENCES, "score"),
    "mnli": GlueFiles("MNLI", _SENTENCES, "gold_label", dev="dev_matched"),
    "qnli": GlueFiles("QNLI", ("question", "sentence")),
    "rte": GlueFiles("RTE", _SENTENCES),
    "wnli": GlueFiles("WNLI", _SENTENCES),
    "ax": GlueFiles("AX", _SENTENCES, label="", dev="diagnostic"),
}


def read_glue(
    root: str, task: str, split: str, columns: Sequence[str]
) -> Iterator[Record | BadRow]:
    """Yields the rows of a split: ``ROOT/FOLDER/SPLIT.tsv`` or ``.tsv.gz``.

    Args:
      root: the GLUE folder.
      task: a key of ``FILES``.
      split: ``train``, ``dev``, for MNLI ``dev_matched`` or ``dev_mismatched``; for AX
        ``diagnostic``.
      columns: those that are wanted.

    Raises:
      UserError: no such file, unreadable, or without one of the columns.
    """
    files = FILES[task]
    plain = Path(root).expanduser() / files.folder / f"{split}.tsv"
    path = next((p for p in (plain, plain.with_suffix(".tsv.gz")) if p.is_file()), None)
    if path is None:
        fix = f"give glue:DIR#SPLIT with the folder that holds {files.folder}/{split}.tsv"
        raise UserError(
            f"there is neither {plain.name} nor {plain.name}.gz", str(plain.parent), fix
        )
    return read_tsv(path, columns, files.header)
