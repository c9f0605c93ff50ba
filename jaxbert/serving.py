"""A model to ask from Python: ``jaxbert.load("runs/task").predict(["an utter delight"])``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbert.data.encoding import encode_rows
from jaxbert.data.packing import Examples
from jaxbert.data.rows import Rows
from jaxbert.data.tasks import SIMILARITY
from jaxbert.data.tokenizer import check_text, load_tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.embeddings import ENCODER, embedder
from jaxbert.evaluation.predict import collect_by_width, encode_for, predictor
from jaxbert.evaluation.predictions import describe
from jaxbert.files import check_seal, read_object
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.models.bert import Params, scored_groups

FEW = (1, 8)  # rows of the batches for what is left over
# What MTEB's versions say beside the texts that changes nothing here.
_OF_MTEB = (
    *("task_metadata", "hf_split", "hf_subset", "prompt_name"),
    *("show_progress_bar", "convert_to_numpy", "convert_to_tensor"),
)


def load(reference: str | Path, *, max_length: int = 0) -> TextModel:
    """A model that is ready to be asked.

    Args:
      reference: a model folder, the workdir of a run (its student is meant), or one of
        ``run:WORKDIR[#MODEL]``, ``pkg:NAME[==VERSION]`` and ``hf:ORG/NAME@COMMIT``.
      max_length: word pieces at which texts are cut; 0 = those of the run, else as many as the
        model has positions.

    Raises:
      UserError: there is no such model.
    """
    model = read_model(hub.resolve(str(reference)))
    return TextModel(model, read_asking(reference, max_length))


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a model is asked, beyond what its folder says.

    Attributes:
      max_length: word pieces at which texts are cut; 0 = the model's positions.
      similarity: whether predictions are cosines of embeddings.
      stride: of spans, as in ``Task``.
      always: of spans, whether every question has an answer.
    """

    max_length: int = 0
    similarity: bool = False
    stride: int = 0
    always: bool = False


def read_asking(reference: str | Path, max_length: int = 0) -> Asking:
    """How the run that a reference names asks its models; without one, the defaults.

    Raises:
      UserError: a record of the run is not what was written, or cannot be read.
    """
    workdir, _ = hub.split_run(reference)
    if not (hub.is_workdir(workdir) and (workdir / "config.json").is_file()):
        return _read_exported(workdir / "export.json", max_length)
    check_seal(workdir, "run its train.py command again, which writes it anew")
    config, summary = (
        read_object(path, "restore the file") if path.is_file() else {}
        for path in (workdir / "config.json", workdir / "summary.json")
    )
    task = config.get("task") or {}
    return Asking(
        max_length or config.get("max_length", 0),
        task.get("kind") == SIMILARITY,
        task.get("stride", 0),
        summary.get("task", {}).get("all_answered", False),
    )


def _read_exported(path: Path, max_length: int) -> Asking:
    """How a model is asked that ``jaxbert export`` has written; the defaults for any other."""
    if not path.is_file():
        return Asking(max_length)
    fix = "export it anew"
    report = read_object(path, fix)
    try:
        asking = Asking(**report["asking"])
        return dataclasses.replace(asking, max_length=max_length or report["max_length"])
    except (KeyError, TypeError) as error:
        raise UserError(f"not understood: {error!r}", str(path), fix) from error


class TextModel:
    """A model that is asked for predictions and embeddings, from any number of threads.

    Texts are sorted into rows of a few lengths (16, 32, ... word pieces) and batches of a few
    sizes: what was compiled for one list of texts serves the next. Everything is computed in
    float32.

    Args:
      model: as read from its folder.
      asking: how it is asked.

    Attributes:
      kind: of its predictions: that of its head, ``similarity``, or empty where it has none.
      labels: the names of its classes, in the order of its logits.
      max_length: word pieces at which texts are cut.
      folder: where the model was read from.
      config: its shape, in float32.
      params: the groups that are asked, on the device.
    """

    def __init__(self, model: Model, asking: Asking = Asking()) -> None:
        positions = model.config.max_position_embeddings
        self.max_length = min(asking.max_length or positions, positions)
        self.labels, self.folder = model.labels, model.folder
        self.kind = model.config.head if "classifier" in model.params else ""
        if asking.similarity:
            self.kind = SIMILARITY
        self._asking, self._tokenizer = asking, load_tokenizer(model.folder)
        config = model.config.replace(dtype="float32")
        groups = ENCODER if self.kind in ("", SIMILARITY) else scored_groups(config)
        self.params: Params = jax.device_put({group: model.params[group] for group in groups})
        self._predict, self.config = predictor(config), config
        self._embedders = {wanted: embedder(config, normalize=wanted) for wanted in (False, True)}

    def __repr__(self) -> str:
        return f"<jaxbert {self.kind or 'encoder'} from {self.folder}>"

    def predict(self, texts: Iterable[Any], *, batch_size: int = 32) -> list[dict[str, Any]]:
        """What the model says of texts.

        Args:
          texts: N texts; of pairs, and of questions and contexts, two each. A sentence to tag is a
            text, whose words have blanks between them, or a list of words.
          batch_size: texts at a time, at most.

        Returns:
          For each text what `jaxbert.evaluation.predictions.describe` says of it: of classification
          ``{"label": NAME, "scores": {NAME: PROBABILITY, ...}}``.

        Raises:
          UserError: the model has no head, or something that is no text.
        """
        if not self.kind:
            fix = "fine-tune or distil one, or ask it to encode"
            raise UserError("the model has no classifier", str(self.folder), fix)
        items = _listed(texts)
        said: list[dict[str, Any]] = [{"words": [], "tags": [], "scores": []} for _ in items]
        for ids, rows in self._rows(items):
            examples, read = encode_for(
                self.kind,
                self._tokenizer,
                rows,
                max_length=self.max_length,
                stride=self._asking.stride,
                always=self._asking.always,
            )
            found = read(self.ask(examples, batch_size=batch_size))
            for index, one in zip(ids, describe(self.kind, self.labels, rows, found), strict=True):
                said[index] = one
        return said

    def encode(
        self,
        sentences: Iterable[Any],
        normalize: bool = False,
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        task_name: str | None = None,
        prompt_type: Any = None,
        **others: Any,
    ) -> np.ndarray:
        """The embeddings of texts: the mean of the last hidden state over a text's tokens.

        It is asked as MTEB asks an encoder; what MTEB itself takes is `jaxbert.mteb.MTEBEncoder`.

        Args:
          sentences: N texts, or batches of them, ``{"text": [...]}``.
          normalize: divide each embedding by its length.
          batch_size: texts at a time, at most.
          normalize_embeddings: the same as normalize.
          task_name: not read: every text is encoded in one way.
          prompt_type: not read.
          others: further words of MTEB, not read.

        Returns:
          float32 [N, D].

        Raises:
          UserError: something that is no text, or a word that nobody knows.
        """
        for word in others:
            if word not in _OF_MTEB:
                what = f"encode does not read {word}"
                raise UserError(what, "its call", "remove it: it reads normalize and batch_size")
        texts = _flat(_listed(sentences))
        if not texts:
            return np.zeros((0, self.config.hidden_size), np.float32)
        run = self._embedders[bool(normalize or normalize_embeddings)]
        rows = Rows(texts, None, None)
        examples = encode_rows(self._tokenizer, rows, max_length=self.max_length)
        return self._ask(run, examples, "", batch_size)

    def ask(self, examples: Examples, *, batch_size: int = 32) -> np.ndarray:
        """What the model says of examples that are encoded already.

        Args:
          examples: as `encode_for` of the model's kind makes them.
          batch_size: examples at a time, at most.

        Returns:
          float32 [items, C], the head's logits as `jaxbert.evaluation.predict.predict` orders them;
          of similarity and without a head the embeddings of length 1, [N, D].
        """
        run = self._embedders[True] if self.kind in ("", SIMILARITY) else self._predict
        return self._ask(run, examples, self.kind, batch_size)

    def _rows(self, items: Sequence[Any]) -> Iterator[tuple[list[int], Rows]]:
        """The items as rows, single texts and pairs apart, and which they are."""
        read = [_texts(item, f"item {index}") for index, item in enumerate(items)]
        pairs = self.kind in ("spans", SIMILARITY)
        if self.kind == "tagging":
            words = [
                tuple(item.split()) if isinstance(item, str) else texts
                for item, texts in zip(items, read, strict=True)
            ]
            ids = [index for index, sentence in enumerate(words) if sentence]
            chosen = [words[index] for index in ids]
            tags = [np.zeros(len(sentence), np.int32) for sentence in chosen]
            if ids:
                yield ids, Rows([" ".join(w) for w in chosen], None, None, chosen, tags)
            return
        two = [index for index, item in enumerate(items) if not isinstance(item, str)]
        one = [index for index, item in enumerate(items) if isinstance(item, str)]
        wrong = [index for index in two if len(read[index]) != 2] + one * pairs
        if wrong:
            fix = "give two texts, (first, second)" if pairs else "give a text, or two of a pair"
            raise UserError("neither a text nor two", f"item {wrong[0]}", fix)
        if one:
            yield one, Rows([read[index][0] for index in one], None, None)
        if two:
            firsts, seconds = map(list, zip(*(read[index] for index in two), strict=True))
            answers: list[tuple] | None = [()] * len(two) if self.kind == "spans" else None
            yield two, Rows(firsts, seconds, None, answers=answers)

    def _ask(
        self, run: Callable[..., jax.Array], examples: Examples, kind: str, batch_size: int
    ) -> np.ndarray:
        """What a function says of examples, as `collect` gives it, in batches of few shapes."""
        with jax.default_matmul_precision("highest"):
            return collect_by_width(
                run,
                self.params,
                examples,
                kind,
                self.max_length,
                lambda ids, _: _batches(ids, max(1, batch_size)),
            )


def _batches(ids: np.ndarray, largest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts ids into what fills batches of the largest size, and a rest in one that is large enough.

    Yields:
      The ids, and the rows of their batches.
    """
    full = len(ids) - len(ids) % largest
    if full:
        yield ids[:full], largest
    if full < len(ids):
        rest = ids[full:]
        sizes = (*(rows for rows in FEW if rows < largest), largest)
        yield rest, next(rows for rows in sizes if len(rest) <= rows)


def _listed(texts: Iterable[Any]) -> list[Any]:
    """Several texts: one alone, or a batch that is none of a list, would be taken for others."""
    if isinstance(texts, str):
        raise UserError("one text instead of several", "texts", "give a list: [text]")
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise UserError(
            f"a {type(texts).__name__} instead of texts", "texts", "give a list: [text]"
        )
    return list(texts)


def _texts(item: Any, where: str) -> tuple[str, ...]:
    """The texts of an item: itself, or those that it holds."""
    if isinstance(item, Mapping | set | bytes) or not isinstance(item, Iterable):
        what = f"a {type(item).__name__} instead of text"
        raise UserError(what, where, "give a text, or two: (first, second)")
    texts = (item,) if isinstance(item, str) else tuple(item)
    for text in texts:
        check_text(text, where)
    return texts


def _flat(texts: Iterable[Any]) -> list[Any]:
    """The texts, those of batches among them; the tokenizer sees whether each is one."""
    found: list[Any] = []
    for item in texts:
        batch = item.get("text", [item]) if isinstance(item, Mapping) else [item]
        found += [batch] if isinstance(batch, str) or not isinstance(batch, Iterable) else batch
    return found
