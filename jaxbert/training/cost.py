"""How many operations a step makes, and how many its devices could make."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from jax.extend import core

# bfloat16 FLOPs a second of one device, dense, by the beginning of its kind: the longest counts.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
}


def peak_rate(kind: str) -> float | None:
    """The bfloat16 FLOPs a second that the maker of a device gives, without sparsity.

    Of TPUs, "System architecture" of the pages on v4, v5e, v5p and v6e at
    cloud.google.com/tpu/docs; of GPUs, NVIDIA's data sheets of A10, A100, H100, H200, L4, L40 and
    L40S, halved where they give the figure with sparsity.

    Args:
      kind: ``device_kind`` of a ``jax.Device``.

    Returns:
      None for a device that is not known, such as a CPU.
    """
    for known in sorted(PEAKS, key=len, reverse=True):
        # The next letter would make it another device: A10 and A10G, L4 and L40.
        if kind.startswith(known) and not kind[len(known) :][:1].isalnum():
            return PEAKS[known]
    return None


def fast_dtype(device: Any, instruction_sets: Collection[str]) -> str:
    """The dtype of operands that a device multiplies faster, ``bfloat16`` or ``float32``.

    CPUs without instructions for products of bfloat16 make them out of others, more slowly
    (``docs/performance.md``); CUDA devices have them from compute capability 8.0 on.

    Args:
      device: a ``jax.Device``.
      instruction_sets: of this machine's processor, by Linux's names.
    """
    if device.platform == "cpu":
        fast = not {"avx512_bf16", "amx_bf16"}.isdisjoint(instruction_sets)
    elif "cuda" in device.client.platform_version:
        fast = float(device.compute_capability) >= 8.0
    else:
        fast = True
    return "bfloat16" if fast else "float32"


def step_flops(step: Any, *given: Any) -> int:
    """FLOPs of the products of a jitted function, two a multiply-add, on all devices together.

    Padding counts, what is not a product does not, and what is computed for nothing does not. The
    function is traced, not compiled; a call with the same shapes does not trace it again.

    Args:
      step: the jitted function.
      given: its arguments, or their shapes.
    """
    return products(step.trace(*given).jaxpr.jaxpr)


def products(jaxpr: core.Jaxpr) -> int:
    """FLOPs of every product that a traced function makes, two a multiply-add.

    A scan counts as often as it turns; of branches, the dearest. Nothing counts that the function
    itself makes and does not read.
    """
    total = 0
    read = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if not equation.effects and read.isdisjoint(equation.outvars):
            continue
        read |= {v for v in equation.invars if isinstance(v, core.Var)}
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
            continue
        inner = [products(part) for part in _parts(equation)]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _parts(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The functions that an operation calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
