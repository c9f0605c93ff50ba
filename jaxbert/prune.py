"""A model with fewer word pieces: those that a corpus uses, and the rows that they have.

Embeddings are two thirds of a small BERT. What the rows that are left compute is what they computed
before, so that on text whose words are cut as before nothing changes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.corpus import find_corpus
from jaxbert.data.pruning import Pruned, as_wordpiece, compare, count_words, prune_vocabulary
from jaxbert.data.rows import load_task
from jaxbert.data.tasks import Task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.data.vocabulary import read_sample
from jaxbert.errors import UserError
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, layout_for, read_model, write_model
from jaxbert.models.bert import count_parameters
from jaxbert.training.hashing import parameter_hash
from jaxbert.workdir import versions

_BYTES = 4  # of a float32


@dataclasses.dataclass(frozen=True)
class Text:
    """What pieces are counted on, or how words are cut: a corpus, the rows of a task, or both.

    Attributes:
      corpus: a reference as ``find_corpus`` takes it; empty = none.
      task: whose training rows are read; None = none.
      data_dir: the TFDS folder.
    """

    corpus: str = ""
    task: Task | None = None
    data_dir: str = ""

    def check(self) -> None:
        """Finds the corpus, without reading it.

        Raises:
          UserError: it is not there, or holds no text.
        """
        if self.corpus.startswith("prepared:"):
            what, fix = "a prepared corpus holds pieces and no words", "give the text it is made of"
            raise UserError(what, f"corpus {self.corpus}", fix)
        if self.corpus:
            find_corpus(self.corpus, self.data_dir)

    def documents(self) -> Iterator[str]:
        """Every text."""
        if self.corpus:
            yield from read_sample(self.corpus, 0, self.data_dir)
        if self.task:
            rows = load_task(self.task, self.data_dir).train
            yield from itertools.chain(rows.texts, rows.pairs or ())


def prune(
    reference: str, text: Text, out: Path, *, min_count: int = 1, held_out: Text | None = None
) -> dict[str, Any]:
    """Writes a model folder with the pieces that a text uses, and its report, prune.json.

    Args:
      reference: the model, anything that ``hub.resolve`` takes.
      text: what pieces are counted on.
      out: the folder to make.
      min_count: how often a piece must be used to be kept.
      held_out: other text to report on.

    Returns:
      The report.

    Raises:
      UserError: no such model or text, no WordPiece, or ``out`` is there already.
    """
    if out.exists():
        raise UserError("there is something already", str(out), "give another --out, or remove it")
    model = read_model(hub.resolve(reference))
    tokenizer = as_wordpiece(load_tokenizer(model.folder), f"model {reference}")
    rows = model.config.vocab_size
    if tokenizer.vocab_size > rows:
        what = f"the tokenizer has {tokenizer.vocab_size} pieces, the model {rows}"
        fix = "put the tokenizer that the model was trained with into its folder"
        raise UserError(what, f"model {reference}", fix)
    texts = {"corpus": text} | ({"held_out": held_out} if held_out else {})
    for one in texts.values():
        one.check()
    words = {name: count_words(tokenizer, one.documents()) for name, one in texts.items()}
    if not words["corpus"]:
        raise UserError("there is no word in it", f"corpus {text.corpus}", "give one with text")
    pruned = prune_vocabulary(tokenizer, words["corpus"], min_count)
    small = cut_rows(model, pruned)
    report = {
        "model": reference,
        "model_hash": parameter_hash(model.params),
        "corpus": text.corpus,
        "task": text.task.source if text.task else "",
        "min_count": min_count,
        "pieces": {"before": rows, "after": len(pruned.kept)},
        "parameters": _sizes((model, small), count_parameters),
        "without_embeddings": _sizes((model, small), _without_embeddings),
        "megabytes": _sizes((model, small), lambda p: _BYTES * count_parameters(p) / 1e6),
        "texts": {
            name: dataclasses.asdict(compare(tokenizer, pruned.tokenizer, counts))
            for name, counts in words.items()
        },
        "parameter_hash": parameter_hash(small.params),
        "versions": versions(),
    }
    write_model(
        out,
        small.config,
        small.params,
        small.labels,
        pruned.tokenizer,
        layout=layout_for(small.config, small.params),
        extra={"prune.json": json.dumps(report, indent=2) + "\n"},
    )
    return report


def cut_rows(model: Model, pruned: Pruned) -> Model:
    """The model with the rows of the kept pieces, in the word table and in the masked-LM bias."""
    params = dict(model.params)
    word = np.asarray(params["embeddings"]["word"])[pruned.kept]
    params["embeddings"] = params["embeddings"] | {"word": word}
    if "mlm" in params:
        params["mlm"] = params["mlm"] | {"bias": np.asarray(params["mlm"]["bias"])[pruned.kept]}
    config = model.config.replace(vocab_size=len(pruned.kept))
    return dataclasses.replace(model, config=config, params=params)


def _without_embeddings(params: Any) -> int:
    return count_parameters({k: v for k, v in params.items() if k != "embeddings"})


def _sizes(models: Iterable[Model], size: Any) -> dict[str, Any]:
    return dict(zip(("before", "after"), (size(m.params) for m in models), strict=True))
