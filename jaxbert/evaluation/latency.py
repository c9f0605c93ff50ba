"""How long one text takes on one thread: a process of its own, pinned before jax starts.

What is timed is the forward pass from word piece ids to logits (or with --embed, of the first text
alone, to its embedding), in float32: one text (of spans, a question and the first window of its
context), alone in a row of exactly its length, so that there is no padding. Tokenising is left out,
being the same for every model. The models take turns, so that whatever else the machine does meets
all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jaxbert.errors import ERROR_PREFIX, UserError, UserErrors, exit_on_user_error
from jaxbert.stopping import was_stopped

if TYPE_CHECKING:
    import jax

WARM_UP = 10


class Apart:
    """A module that runs as a process of its own, and answers in JSON on its last line.

    As a context it ends the process, whatever that is doing.

    Args:
      module: run as ``python -m``.
      words: of its command line.
      variables: of its environment, beside the caller's.
    """

    def __init__(self, module: str, words: Sequence[str], **variables: str) -> None:
        # The devices that the caller's flags pretend to have are not this process's.
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=environment | variables,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:
            pass  # closes its pipes, and waits for it

    def tell(self, line: str) -> None:
        """Gives it a line to read; what has ended meanwhile says why when it is asked to answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Waits for what it says.

        Raises:
          UserError: what the process said if it failed.
          KeyboardInterrupt: it was told to stop.
        """
        out, err = self._process.communicate()
        if was_stopped(self._process.returncode):
            raise KeyboardInterrupt
        said = [line for line in err.splitlines() if line.startswith(ERROR_PREFIX)]
        if self._process.returncode == 2 and said:
            raise UserErrors([UserError(line.removeprefix(ERROR_PREFIX)) for line in said])
        if self._process.returncode == -signal.SIGKILL:
            fix = "give the machine more memory, or stop what else runs on it"
            raise UserError("the process that times models was killed", "", fix)
        if self._process.returncode:
            command = " ".join(map(str, self._process.args))  # type: ignore[arg-type]
            raise RuntimeError(f"{command} ended with {self._process.returncode}:\n{err}")
        return json.loads(out.splitlines()[-1])


class Timing(Apart):
    """A fresh process on one CPU thread that times models.

    It reads and compiles them while its caller does something else, and times them when it is
    asked to `measure`.

    Args:
      folders: model folders.
      text: what is classified.
      pair: the second text of a pair task.
      max_length: L, where longer texts are cut.
      embed: the text alone is embedded instead; no head is read.
      rounds: timed calls of each model.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        text: str,
        pair: str | None,
        *,
        max_length: int,
        embed: bool = False,
        rounds: int = 100,
    ) -> None:
        words = [f"--max_length={max_length}", f"--rounds={rounds}", *["--embed"] * embed]
        super().__init__(__name__, [*words, "--", *map(str, folders)])
        # A word of a command line has at most 128 KiB, and a text may be longer.
        self.tell(json.dumps({"text": text, "pair": pair}))

    def measure(self) -> dict[str, Any]:
        """Times the models in turns, while the caller waits.

        Returns:
          ``tokens``, the length of the text in the first model's word pieces, and
          ``milliseconds``, each folder's median, in order.

        Raises:
          UserError: what the process said if it failed.
        """
        self.tell("go")
        return self.answer()


def pin_to_one_cpu() -> None:
    """Leaves this process, and what XLA starts in it, one thread. Call before jax starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):  # Linux; XLA sizes its thread pools by it
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    else:
        one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one_thread}".strip()


def prepare(
    folders: Sequence[Path], text: str, pair: str | None, *, max_length: int, embed: bool
) -> tuple[list[Callable[[], object]], int]:
    """Compiles models for a text.

    Returns:
      Of each folder a call that gives its model's array, and the length of the text in the first
      model's word pieces.
    """
    import jax
    import numpy as np

    from jaxbert.data.encoding import encode_rows
    from jaxbert.data.packing import PackedBatches
    from jaxbert.data.rows import Rows
    from jaxbert.data.tokenizer import load_tokenizer
    from jaxbert.evaluation.embeddings import ENCODER, embedder
    from jaxbert.evaluation.predict import predictor
    from jaxbert.interop.huggingface import read_model

    def row(head: str) -> Rows:
        pairs = None if pair is None else [pair]
        if embed:
            return Rows([text], None, None)
        if head == "tagging":
            words = tuple(text.split(" "))
            return Rows([text], None, None, [words], [np.zeros(len(words), np.int32)])
        if head == "spans":
            return Rows([text], pairs, None, answers=[()])
        return Rows([text], pairs, np.zeros(1, np.int32))

    calls: list[Callable[[], object]] = []
    lengths = []
    for folder in folders:
        model = read_model(folder)
        rows = row(model.config.head)
        examples = encode_rows(load_tokenizer(folder), rows, max_length=max_length)
        # Of a long context, the first window: no later one is longer.
        lengths.append(int(examples.lengths[0]))
        batches = PackedBatches(
            examples,
            batch_size=1,
            row_length=lengths[-1],
            seed=0,
            packing=False,
            shuffle=False,
            epochs=1,
        )
        params = {group: model.params[group] for group in ENCODER} if embed else model.params
        inputs = jax.device_put((params, batches[0]))
        config = model.config.replace(dtype="float32")
        run = functools.partial((embedder if embed else predictor)(config), *inputs)
        calls.append(functools.partial(_wait_for, run))
        calls[-1]()
    return calls, lengths[0]


def _wait_for(run: Callable[[], jax.Array]) -> None:
    run().block_until_ready()


def in_turns(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    warm_up: int = WARM_UP,
    seconds: float = math.inf,
) -> list[list[float]]:
    """Of each call so many times in milliseconds, after some that are not counted.

    Where that takes more than ``seconds``, three that count are enough.
    """
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    for turn in range(warm_up + rounds):
        if turn >= warm_up + 3 and time.perf_counter() - began > seconds:
            break
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                taken.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    """The command, in two lines of input: ``text`` and ``pair`` as JSON, and when to begin."""
    parser = argparse.ArgumentParser(prog="jaxbert", usage="%(prog)s FOLDER...")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--embed", action="store_true")
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    given = json.loads(sys.stdin.readline())
    pin_to_one_cpu()
    with exit_on_user_error():
        calls, tokens = prepare(
            args.folders,
            given["text"],
            given["pair"],
            max_length=args.max_length,
            embed=args.embed,
        )
    if not sys.stdin.readline():  # who started it is gone
        return
    medians = [statistics.median(times) for times in in_turns(calls, args.rounds)]
    print(json.dumps({"tokens": tokens, "milliseconds": medians}))


if __name__ == "__main__":
    main()
