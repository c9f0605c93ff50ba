"""How long one text takes on one thread: a process of its own, pinned before jax starts.

    echo '{"text": "A fine film."}' | python -m jaxbert.evaluation.latency FOLDER...

What is timed is the forward pass from word piece ids to logits (or with --embed, of the first text
alone, to its embedding), in float32: one text (of spans, a
question and the first window of its context), alone in a row of exactly its length, so that there
is no padding. Tokenising is left out, being the same for
every model. The models take turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbert.errors import ERROR_PREFIX, UserError, UserErrors, exit_on_user_error

WARM_UP = 10


def measure_apart(
    folders: Sequence[Path],
    text: str,
    pair: str | None,
    *,
    max_length: int,
    embed: bool = False,
    rounds: int = 100,
) -> dict[str, Any]:
    """What `measure` returns, from a fresh process on one CPU thread.

    Args:
      folders: model folders.
      text: what is classified.
      pair: the second text of a pair task.
      max_length: L, where longer texts are cut.
      embed: the text alone is embedded instead; no head is read.
      rounds: timed calls of each model.

    Raises:
      UserError: what the process said if it failed.
    """
    words = [f"--max_length={max_length}", f"--rounds={rounds}", *["--embed"] * embed]
    # A word of a command line has at most 128 KiB, and a text may be longer.
    texts = json.dumps({"text": text, "pair": pair})
    return run_apart(__name__, [*words, "--", *map(str, folders)], texts)


def run_apart(module: str, words: Sequence[str], given: str = "", **variables: str) -> Any:
    """What a module prints as JSON, on its last line, from a fresh process.

    Args:
      module: run as ``python -m``.
      words: of its command line.
      given: what it reads from stdin.
      variables: of its environment, beside the caller's.

    Raises:
      UserError: what the process said if it failed.
    """
    command = [sys.executable, "-m", module, *words]
    # The devices that the caller's flags pretend to have are not this process's.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= variables
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, env=environment, check=False
    )
    said = [line for line in done.stderr.splitlines() if line.startswith(ERROR_PREFIX)]
    if done.returncode == 2 and said:
        raise UserErrors([UserError(line.removeprefix(ERROR_PREFIX)) for line in said])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def pin_to_one_cpu() -> None:
    """Leaves this process, and what XLA starts in it, one thread. Call before jax starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):  # Linux; XLA sizes its thread pools by it
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    else:
        one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one_thread}".strip()


def measure(
    folders: Sequence[Path],
    text: str,
    pair: str | None,
    *,
    max_length: int,
    embed: bool,
    rounds: int,
) -> dict[str, Any]:
    """Times models in turns.

    Returns:
      ``tokens``, the length of the text in the first model's word pieces, and
      ``milliseconds``, each folder's median, in order.
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

    calls, lengths = [], []
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
        calls.append(((embedder if embed else predictor)(config), inputs))
    times: list[list[float]] = [[] for _ in folders]
    for turn in range(WARM_UP + rounds):
        for (run, inputs), taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(*inputs))
            if turn >= WARM_UP:
                taken.append(1e3 * (time.perf_counter() - start))
    return {"tokens": lengths[0], "milliseconds": [statistics.median(taken) for taken in times]}


def main() -> None:
    """The command: reads ``text`` and ``pair`` as JSON, prints what `measure` returns as JSON."""
    parser = argparse.ArgumentParser(prog="jaxbert", usage="%(prog)s FOLDER... < TEXTS")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--embed", action="store_true")
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    texts = json.load(sys.stdin)
    pin_to_one_cpu()
    with exit_on_user_error():
        found = measure(
            args.folders,
            texts["text"],
            texts.get("pair"),
            max_length=args.max_length,
            embed=args.embed,
            rounds=args.rounds,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
