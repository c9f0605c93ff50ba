"""A trace of a few steps of a phase, and a table of where their time goes."""

from __future__ import annotations

import collections
import dataclasses
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

WARM_UP = 2  # steps before: the first is compiled, the second runs with its buffers in place
STEPS = 5
_LONGEST = 8  # single operations that the table names

# What an operation is, by the first of these that it or what is fused into it has.
_KINDS = {
    "products": {"dot", "convolution", "ragged-dot"},
    "exchange between devices": {
        *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
        *("all-reduce-start", "all-reduce-done", "all-gather-start", "all-gather-done"),
        *("collective-permute-start", "collective-permute-done", "async-start", "async-done"),
    },
    "look-ups": {"gather", "scatter", "dynamic-slice", "dynamic-update-slice", "sort"},
    "reductions": {"reduce", "reduce-window"},
    "random numbers": {"rng", "rng-bit-generator"},
    "element by element": {
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "exponential", "tanh"),
        *("erf", "log", "power", "rsqrt", "sqrt", "negate", "abs", "select", "compare", "and"),
        *("or", "xor", "not", "shift-left", "shift-right-logical", "is-finite", "floor", "sign"),
        *("exponential-minus-one", "log-plus-one", "logistic", "clamp", "cosine", "sine"),
    },
}
# A library's, by its name: cuBLAS calls its kernels nvjet, cuDNN those of attention sdpa.
_PRODUCT = re.compile(r"gemm|matmul|cublas|onednn|dnn|nvjet|cutlass|sdpa", re.I)
_MOVE = re.compile(r"memcpy|memset", re.I)
_MOVES = "copies, casts and transpositions"
_OTHER = "not known"
_CONTAINERS = {"while", "conditional", "call"}  # what is in them is in the trace itself


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of a compiled step, or a fusion of several.

    Attributes:
      kind: a row of the table; empty for one that only holds others.
      source: the call that it comes from, as JAX names it.
    """

    kind: str
    source: str


class Profile:
    """Traces some steps of a phase into a folder; a context manager around its loop.

    What is computed does not change: only the host waits for the devices, before the first and
    behind the last of these steps.

    Args:
      folder: for the trace, which TensorBoard and Perfetto open.

    Attributes:
      steps: that have been traced.
      seconds: that they took.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._seen, self._active = folder, 0, False
        self.steps, self.seconds = 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:  # told to stop within these steps
            jax.profiler.stop_trace()
            self._active, self.steps = False, 0

    def before(self, state: Any, left: int) -> None:
        """Stands before a step.

        Args:
          state: what it starts from.
          left: steps of the phase that are still to be made, this one included.
        """
        due = self._seen == WARM_UP or (left == 1 and 0 < self._seen < WARM_UP)
        self._seen += 1
        if not due or self._active or self.steps:
            return
        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # hundreds of thousands of calls
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._active, self._began = True, time.monotonic()

    def after(self, state: Any, last: bool) -> None:
        """Stands behind a step.

        Args:
          state: what it has made.
          last: whether something else follows that the trace shall not have.
        """
        if not self._active:
            return
        self.steps += 1
        if last or self.steps == STEPS:
            jax.block_until_ready(state)
            self.seconds = time.monotonic() - self._began
            self._active = False
            jax.profiler.stop_trace()

    def table(self) -> list[str]:
        """Lines: what kinds of operations take the time of a step, and the longest of them."""
        if not self.steps:
            return ["no step was traced: a phase is traced from its second or third step on"]
        path = max(self._folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        return describe(operation_times(path), self.steps, self.seconds, path.parent)


@dataclasses.dataclass(frozen=True)
class Times:
    """What a trace has of the step.

    Attributes:
      nanoseconds: by operation, those of what it holds left out, added up over threads or devices.
      operations: what they are.
      lanes: threads or devices that had a part in it.
    """

    nanoseconds: Mapping[str, float]
    operations: Mapping[str, Operation]
    lanes: int


def describe(times: Times, steps: int, seconds: float, folder: Path) -> list[str]:
    """The table of some traced steps that took so many seconds."""
    kinds = collections.defaultdict[str, float](float)
    for name, spent in times.nanoseconds.items():
        kinds[times.operations[name].kind] += spent
    total = sum(kinds.values())
    lines = [
        f"{steps} steps under the profiler, {1e3 * seconds / steps:,.1f} ms each -> {folder}",
        f"  {'operations':<34}{'ms a step':>10}{'share':>8}",
    ]
    for kind, spent in sorted(kinds.items(), key=lambda pair: -pair[1]):
        lines.append(f"  {kind:<34}{spent / steps / 1e6:>10,.2f}{spent / max(total, 1):>8.1%}")
    busy = total / 1e9 / max(seconds, 1e-9)
    lines.append(
        f"  on average {busy:.1f} of {times.lanes} threads or devices at work; the longest:"
    )
    for name in sorted(times.nanoseconds, key=lambda name: -times.nanoseconds[name])[:_LONGEST]:
        spent, operation = times.nanoseconds[name] / steps / 1e6, times.operations[name]
        lines.append(f"  {name[:33]:<34}{spent:>10,.2f}  {operation.kind}: {operation.source}")
    return lines


def operation_times(path: Path, module: str = "jit_step") -> Times:
    """Reads a trace of JAX's profiler.

    Args:
      path: an ``xplane.pb``.
      module: the compiled function whose operations count.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of the types that jaxlib 0.12 makes here; as an error that is an abort.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        lines = [
            list(_events(line, module))
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes
            for line in plane.lines
        ]
    ran = {stats.get("program_id") for events in lines for *_, stats in events}
    known = _operations(path.read_bytes(), module, ran)
    kernels = {re.sub(r"\W", "_", name): name for name in known}
    spent, lanes = collections.defaultdict[str, float](float), 0
    for events in lines:
        found = []
        for event, begin, duration, stats in events:
            name = _name(event, stats, kernels)
            if "hlo_op" in stats or name in known:
                found.append((begin, begin + duration, name))
        for name, own in _own_times(found):
            if (known.get(name) or _of_library(name)).kind:
                spent[name] += own
        lanes += bool(found)
    operations = {name: known.get(name) or _of_library(name) for name in spent}
    return Times(spent, operations, lanes)


def _events(line: Any, module: str) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    """The name, begin and duration in ns, and statistics of a line's events that may be a module's.

    Those of a host and of a GPU name their operation; a TPU has a line of its own for them.
    """
    for event in line.events:
        stats = dict(event.stats)
        ours = stats.get("hlo_module", module).partition("(")[0] == module
        if ours and ("hlo_op" in stats or line.name == "XLA Ops"):
            yield event.name, event.start_ns, event.duration_ns, stats


def _name(event: str, stats: Mapping[str, Any], kernels: Mapping[str, str]) -> str:
    """The operation that an event is of, or the kernel of a library.

    Args:
      event: its name; on a TPU that is the whole line of the program.
      stats: its statistics. What CUDA replays as a graph has the graph for an operation.
      kernels: operations by the names that their kernels have.
    """
    if stats.get("cuda_graph_node_id"):
        return kernels.get(event, event)
    return stats.get("hlo_op") or event.partition(" = ")[0].lstrip("%")


def _of_library(kernel: str) -> Operation:
    """What no program names: a kernel of a library or of the runtime."""
    kinds = {_PRODUCT: "products", _MOVE: _MOVES}
    return Operation(next((k for name, k in kinds.items() if name.search(kernel)), _OTHER), "")


def _own_times(events: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """Yields each event's name and its time without that of the events within it."""
    within: list[tuple[float, str, list[float]]] = []  # the end, the name, the time of its own
    for begin, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while within and within[-1][0] <= begin:
            _, done, own = within.pop()
            yield done, own[0]
        if within:
            within[-1][2][0] -= min(end, within[-1][0]) - begin
        within.append((end, name, [end - begin]))
    for _, done, own in within:
        yield done, own[0]


def _operations(trace: bytes, module: str, ran: set[Any]) -> dict[str, Operation]:
    """What each operation of a compiled function is, by the program that the trace holds.

    The fields are those of XSpace (tsl/profiler/protobuf/xplane.proto) and HloProto
    (xla/service/hlo.proto).

    Args:
      trace: of some steps.
      module: the function's name.
      ran: numbers of the programs that ran. A trace holds all that are in memory: those of earlier
        phases have the same name, and other operations by the same names. Where none of these is
        in the trace, all count.
    """
    programs: dict[int, dict[str, Operation]] = {}
    for plane in _all(memoryview(trace), 1):
        if b"/host:metadata" not in (bytes(name) for name in _all(plane, 2)):
            continue
        for entry in _all(plane, 4):
            (metadata,) = _all(entry, 2)
            for stat in _all(metadata, 5):
                for program in _all(stat, 6):
                    (hlo,) = _all(program, 1)
                    if _text(hlo, 1) == module:
                        programs[next(_all(hlo, 5), 0)] = _of_module(hlo)
    found: dict[str, Operation] = {}
    for number in programs.keys() & ran or programs:
        found |= programs[number]
    return found


def _of_module(hlo: memoryview) -> dict[str, Operation]:
    computations = {next(_all(c, 5)): list(_all(c, 2)) for c in _all(hlo, 3)}
    inside: dict[int, set[str]] = {}

    def names(instruction: memoryview) -> set[str]:
        """What it is, and what is in the computations that it calls."""
        mine = {_text(instruction, 2), _text(instruction, 28)}
        for number in _numbers(instruction, 38):
            if number not in inside:
                inside[number] = set()
                inside[number] = set().union(*map(names, computations[number]))
            mine |= inside[number]
        return mine

    found = {}
    for instructions in computations.values():
        for instruction in instructions:
            source = next((_text(each, 2) for each in _all(instruction, 7)), "")
            if _text(instruction, 2) in _CONTAINERS:
                kind = ""
            else:
                kind = _kind(names(instruction))
            found[_text(instruction, 1)] = Operation(kind, source.partition("/")[2])
    return found


def _kind(names: set[str]) -> str:
    if any(_PRODUCT.search(name) for name in names):
        return "products"
    return next((kind for kind, some in _KINDS.items() if names & some), _MOVES)


def _all(message: memoryview, field: int) -> Iterator[Any]:
    """The values of a field of a protocol buffer: integers, or bytes of what has a length."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value: int | memoryview
        if (wire := key & 7) == 0:
            value, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        if key >> 3 == field:
            yield value


def _numbers(message: memoryview, field: int) -> Iterator[int]:
    """Those of a repeated field, packed or not."""
    for value in _all(message, field):
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            yield number


def _text(message: memoryview, field: int) -> str:
    return next((bytes(value).decode(errors="replace") for value in _all(message, field)), "")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
