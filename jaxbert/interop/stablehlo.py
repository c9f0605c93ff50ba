"""StableHLO: a model with its weights as one program for the CPU, CUDA and TPU.

What reads it needs jax alone, and neither jaxbert nor the model's files:

    jax.export.deserialize(bytearray(open(PATH, "rb").read())).call(ids, mask, types)

Inputs and outputs are those of `jaxbert.interop.onnx`, with int32 inputs and, of ``spans``, one
output [batch, length, 2]; both dimensions are free, the length up to the positions that the model
has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxbert.batch import Batch
from jaxbert.errors import UserError
from jaxbert.models.bert import POOLED, BertConfig, encode, head_logits
from jaxbert.models.encoder import Collect
from jaxbert.stopping import was_stopped

PLATFORMS = ("cpu", "cuda", "tpu")
_ASK = """
import sys
import jax.export, numpy
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
inputs = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], program.call(*(inputs[name] for name in ("ids", "mask", "types"))))
"""


def write_stablehlo(path: Path, config: BertConfig, params: Mapping[str, Any]) -> None:
    """Writes a model as a serialised program; products are of full float32 wherever it runs.

    Args:
      path: the file.
      config: the model.
      params: its groups; a classifier, if there is one, is its head.
    """
    weights = jax.tree.map(jnp.asarray, dict(params))

    def run(ids: jax.Array, mask: jax.Array, types: jax.Array) -> jax.Array:
        count, length = ids.shape
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), ids.shape)
        starts = jnp.zeros((count, 1), jnp.int32)
        batch = Batch(ids, mask, types, positions, starts, None, None)
        # Layer by layer: whether a scan pays depends on sizes that are not known here.
        last = Collect(hidden=(config.num_layers,))
        hidden = encode(config, weights, batch, collect=last).hidden[config.num_layers]
        if "classifier" not in params:
            return hidden
        pooled = config.head in POOLED
        logits = head_logits(config, weights, hidden[:, :1] if pooled else hidden)
        return logits[:, 0] if pooled else logits

    # Beyond its last row a table of positions would give that row again.
    most = [] if config.position == "rotary" else [f"length <= {config.max_position_embeddings}"]
    shape = jax.export.symbolic_shape("batch, length", constraints=most)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.int32)] * 3
    with jax.default_matmul_precision("highest"):
        made = jax.export.export(jax.jit(run), platforms=PLATFORMS)(*inputs)
    path.write_bytes(made.serialize())


class Program:
    """A written program, asked in a new process that imports jax alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """Asks it: ids, mask and token types, int [B, T], to its output.

        Raises:
          UserError: it does not run.
          KeyboardInterrupt: the process was told to stop.
        """
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder, "given.npz"), Path(folder, "found.npy")
            names = ("ids", "mask", "types")
            arrays = {n: x.astype(np.int32) for n, x in zip(names, inputs, strict=True)}
            np.savez(given, **arrays)  # type: ignore[arg-type]
            done = subprocess.run(
                [sys.executable, "-c", _ASK, str(self._path), str(given), str(found)],
                cwd=folder,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                capture_output=True,
                text=True,
                check=False,
            )
            if was_stopped(done.returncode):
                raise KeyboardInterrupt
            if done.returncode:
                last = (done.stderr.splitlines() or [""])[-1]
                raise UserError(f"the program does not run: {last}", str(self._path), "export anew")
            return np.load(found)
