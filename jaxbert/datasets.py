"""What the phases of a run learn from and are measured on: text and labelled rows, as batches."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

from jaxbert import augment
from jaxbert.batch import Batch
from jaxbert.config import PhaseConfig, RunConfig
from jaxbert.data.copies import KEPT
from jaxbert.data.encoding import count_cuts, encode_rows
from jaxbert.data.examples import Examples, ExampleSource
from jaxbert.data.heldout import pretraining_text
from jaxbert.data.masking import MaskedBatches
from jaxbert.data.packing import PackedBatches
from jaxbert.data.pipeline import RandomAccess
from jaxbert.data.prepare import check_reference, open_reference
from jaxbert.data.progress import show_progress
from jaxbert.data.rows import Rows, TaskData, load_task
from jaxbert.data.spans import Spans
from jaxbert.data.tasks import SIMILARITY, describe_task
from jaxbert.data.taught import Taught, TaughtBatches
from jaxbert.data.tokenizer import Tokenizer
from jaxbert.errors import UserError
from jaxbert.evaluation.predict import all_answered
from jaxbert.files import kept_folder, scratch
from jaxbert.library import Library

MEASURED_TOGETHER = 64  # examples a batch where pre-training is measured


class Datasets:
    """The data that the phases name, each read when it is first asked for.

    Args:
      config: the run's.
      library: gives the tokenizer, and the teacher that labels copies.
      workdir: the run's folder.
    """

    def __init__(self, config: RunConfig, library: Library, workdir: Path) -> None:
        self._config, self._library, self._workdir = config, library, workdir

    def reads(self, *kinds: str) -> bool:
        """Whether a phase reads data of one of these kinds, as ``PhaseConfig.data`` names them."""
        return any(phase.data in kinds for phase in self._config.sections.values())

    @property
    def reads_task(self) -> bool:
        """Whether a phase learns from the task's rows or is measured on them."""
        phases = self._config.sections.values()
        measured = any(p.eval_every and p.objective != "pretrain" for p in phases)
        return self.reads("task", "augmentation") or (bool(self._config.task) and measured)

    @functools.cached_property
    def task(self) -> TaskData:
        """The labelled task."""
        data = load_task(
            describe_task(**dataclasses.asdict(self._config.task)), self._config.data_dir
        )
        print(
            f"task {data.name}: {len(data.train):,} rows to train on, {len(data.dev):,} to choose "
            f"on, {len(data.test):,} to report",
            flush=True,
        )
        for reference, rows in data.rows.items():
            if rows["skipped"]:
                some = "; ".join(rows["problems"])
                print(f"{reference}: {rows['skipped']:,} rows skipped: {some}", flush=True)
        for split, count in data.overlap.items():
            if count:
                print(f"{count:,} {split} rows are among the training rows, too", flush=True)
        return data

    @functools.cached_property
    def examples(self) -> Examples:
        """The encoded training rows of the task."""
        found = self.encode(self.task.train)
        cuts = count_cuts(self.task.train, found)
        if cuts["truncated"]:
            print(
                f"{cuts['truncated']:,} training rows ({cuts['percent']} %) are cut to "
                f"max_length = {self._config.max_length}",
                flush=True,
            )
        return found

    def encode(self, rows: Rows, tokenizer: Tokenizer | None = None) -> Examples:
        """Rows of the task, in the pieces of the run's tokenizer or of another."""
        # Embeddings are of texts by themselves, in training as in evaluation.
        alone = self.task.task.kind == SIMILARITY
        return encode_rows(
            tokenizer or self._library.tokenizer,
            rows.single_texts if alone else rows,
            max_length=self._config.max_length,
            stride=self.task.task.stride,
        )

    @functools.cached_property
    def augmented(self) -> augment.Augmented:
        """The task's training rows and their copies, made once and kept in the workdir."""
        config = self._config.augmentation
        return augment.load(
            config,
            self.task.task,
            self.task.train,
            scratch(self._workdir) / "cache" / KEPT,
            seed=self._config.seed,
            teacher=self._library.get("teacher") if config.relabel or config.filter else None,
            max_length=self._config.max_length,
        )

    @functools.cached_property
    def copies(self) -> Examples:
        """The encoded rows and their copies."""
        return self.encode(self.augmented.rows)

    @functools.cached_property
    def corpus(self) -> Spans:
        """The text, tokenised now or before."""
        began = time.monotonic()
        config, library = self._config, self._library
        with show_progress() as report:
            corpus = open_reference(
                config.corpus,
                library.tokenizer,
                library.tokenizer_folder,
                cache=kept_folder(self._workdir, config.corpus_cache) / "corpora",
                data_dir=config.data_dir,
                report=report,
            )
        spans = Spans(
            corpus,
            library.tokenizer,
            max_length=config.max_length,
            num_documents=config.num_documents,
            seed=config.seed,
        )
        facts, left_out = spans.facts, corpus.manifest["empty"] + corpus.manifest["duplicates"]
        print(
            f"corpus: {facts['documents']:,} documents"
            + f", without {left_out:,} empty or repeated ones" * bool(left_out)
            + f"; {facts['spans']:,} spans, {time.monotonic() - began:.0f} s -> {corpus.folder}",
            flush=True,
        )
        for part in spans.shares if len(spans.shares) > 1 else ():
            print(f"corpus: {part['share']:.1%} {part['reference']}, {part['times']:.2f} times")
        return spans

    def check(self) -> list[UserError]:
        """What is wrong with text and copies, as far as can be known before they are made."""
        config, errors = self._config, []
        for used, look in (
            (
                self.reads("augmentation"),
                lambda: augment.open_engine(config.augmentation, config.seed),
            ),
            (self.reads("corpus"), lambda: check_reference(config.corpus, config.data_dir)),
        ):
            try:
                if used:
                    look()
            except UserError as error:
                errors.append(error)
        return errors

    def tokenize(self) -> None:
        """Tokenises the corpus, so that a line that is no text is said before all else."""
        if self.reads("corpus"):
            _ = self.corpus
        for phase in self._config.sections.values():
            if phase.objective == "pretrain":
                self._pretraining_text(phase, measured=True)

    def packed(self, phase: PhaseConfig, multiple: int) -> PackedBatches:
        """A phase's batches, before anything is masked.

        Args:
          phase: names its data.
          multiple: of the rows of a batch, as ``PackedBatches`` has it.
        """
        if phase.objective == "pretrain":
            examples: ExampleSource = self._pretraining_text(phase, measured=False)
        elif phase.data == "corpus":
            examples = self.corpus
        elif phase.data == "task":
            examples = self.examples
        else:
            examples = self.copies
        return PackedBatches(
            examples,
            batch_size=phase.batch_size,
            row_length=self._config.max_length,
            seed=self._config.seed,
            packing=phase.packing,
            multiple=multiple,
            vocab_size=self._library.vocab_size,
        )

    def as_read_by(self, tokenizer: Tokenizer, phase: PhaseConfig) -> Examples:
        """The labelled rows that a phase learns from, in the pieces of another tokenizer."""
        rows = self.task.train if phase.data == "task" else self.augmented.rows
        return self.encode(rows, tokenizer)

    def stream(
        self, phase: PhaseConfig, batches: PackedBatches, taught: Taught | None
    ) -> RandomAccess:
        """What a phase is trained on: its packed batches, and what is added to them.

        Args:
          phase: says whether it learns to fill masks.
          batches: the phase's.
          taught: what its teacher has said of their examples, if it was asked before.
        """
        if taught is not None:
            return TaughtBatches(batches, taught)
        if not phase.masks:
            return batches
        return self._masked(batches, phase, self._config.seed)

    def measured(self, phase: PhaseConfig) -> list[Batch]:
        """What a phase that pre-trains is measured on, with the same masks for every seed.

        Masks are drawn by batch and row, so that no key but those of the text may change these.
        """
        batches = PackedBatches(
            self._pretraining_text(phase, measured=True),
            batch_size=MEASURED_TOGETHER,
            row_length=self._config.max_length,
            seed=0,
            shuffle=False,
            epochs=1,
        )
        masked = self._masked(batches, phase, seed=0)
        return [masked[step] for step in range(len(batches))]

    def _pretraining_text(self, phase: PhaseConfig, *, measured: bool) -> ExampleSource:
        return pretraining_text(
            self.corpus,
            self.corpus.documents,
            self._library.tokenizer,
            pairs=phase.nsp,
            measured=measured,
            seed=0 if measured else self._config.seed,
        )

    def _masked(self, batches: PackedBatches, phase: PhaseConfig, seed: int) -> MaskedBatches:
        return MaskedBatches(
            batches,
            self._library.tokenizer,
            row_length=self._config.max_length,
            seed=seed,
            rate=phase.masking_rate,
            whole_words=phase.whole_words,
        )

    def facts(self) -> dict[str, Any]:
        """What summary.json says of the data, an entry a kind."""
        facts: dict[str, Any] = {}
        if self.reads_task:
            facts["task"] = {
                "rows": self.task.rows,
                "overlap": self.task.overlap,
                "cuts": count_cuts(self.task.train, self.examples),
                "all_answered": all_answered(self.task.train),
            }
        if self.reads("corpus"):
            facts["corpus"] = self.corpus.facts
        if self.reads("augmentation"):
            facts["augmentation"] = self.augmented.record
        return facts
