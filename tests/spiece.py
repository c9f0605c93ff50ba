"""SentencePiece models with BERT's special pieces, trained on a few lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece


def train(folder: Path, lines: Iterable[str], vocab_size: int, **options: Any) -> None:
    """Writes ``spiece.model`` and ``spiece.vocab``; options are the trainer's."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spiece"),
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]"],
        user_defined_symbols=["[MASK]"],
        minloglevel=2,
        **options,
    )
