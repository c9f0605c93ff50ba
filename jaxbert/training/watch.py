"""What the steps of a phase say, and when it is too bad to go on."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxbert.errors import UserError
from jaxbert.objectives.losses import Term

_RECENT = 100  # losses that a spike is held against
_FEW = 10  # before which there is none


class Watch:
    """Metrics of steps, left on the devices until they are asked for.

    A step whose loss or gradient is not finite has changed nothing but its own number
    (``make_step``): it is counted, and left out of the means.

    Args:
      phase: its name.
      most: such steps that the phase may have; at most half of all at any time.
      spike: says which losses are spikes, as a multiple of the median of the last 100; 0 = none.
      examples: from a step to a text that names its examples.

    Attributes:
      bad: such steps so far.
    """

    def __init__(self, phase: str, most: int, spike: float, examples: Callable[[int], str]) -> None:
        self.bad = 0
        self._phase, self._most, self._spike, self._examples = phase, most, spike, examples
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=_RECENT)

    def pending(self) -> list[Any]:
        """The steps that no mean has taken yet, as JSON for ``go_on``."""
        return [
            (step, {name: [float(t.total), float(t.count)] for name, t in metrics.items()})
            for step, metrics in jax.device_get(self._pending)
        ]

    def go_on(self, bad: int, pending: Sequence[Any]) -> None:
        """Goes on from where another process stopped."""
        self.bad = bad
        self._pending = [
            (step, {name: Term(*pair) for name, pair in metrics.items()})
            for step, metrics in pending
        ]

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Takes the (total, count) pairs of a step, by name."""
        self._pending.append((step, metrics))

    def means(self, say: Callable[[int, str, dict[str, float]], None]) -> dict[str, float]:
        """The mean of each metric over the steps since the last call, fetched at once.

        Args:
          say: called with a step, a text and the journal's values of what is out of the ordinary.

        Returns:
          Name -> mean, the loss first; nothing if no step was good, and no mean that is not finite.

        Raises:
          UserError: too many steps were bad.
        """
        fetched = jax.device_get(self._pending)
        self._pending = []
        good = []
        for step, metrics in fetched:
            values = {n: float(t.total) / max(float(t.count), 1.0) for n, t in metrics.items()}
            if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
                good.append(metrics)
                if ratio := self._spike_of(values["loss"]):
                    say(step, f"loss {values['loss']:.4g}, a spike", {"spike": ratio})
                continue
            self.bad += 1
            names = [name for name, value in values.items() if not math.isfinite(value)]
            if self.bad > min(self._most, step / 2):
                raise self._too_bad(step, names)
            say(step, f"{', '.join(names)} not finite, step skipped ({self.bad} so far)", {})
        if not good:
            return {}
        names = ["loss", *(name for name in good[0] if name != "loss")]
        totals = {n: sum(float(metrics[n].total) for metrics in good) for n in names}
        counts = {n: sum(float(metrics[n].count) for metrics in good) for n in names}
        means = {name: totals[name] / max(counts[name], 1.0) for name in names}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}

    def _spike_of(self, loss: float) -> float:
        """How many times the median the loss is, if that is a spike, else 0."""
        ratio = 0.0
        if self._spike and len(self._recent) >= _FEW:
            ratio = loss / max(statistics.median(self._recent), 1e-30)
        self._recent.append(loss)
        return ratio if ratio > self._spike else 0.0

    def _too_bad(self, step: int, names: list[str]) -> UserError:
        many = f" (bad step {self.bad} of this phase)" * (self.bad > 1)
        fix = "look at these examples, or lower the learning rate and give another --workdir"
        if self.bad > self._most:
            fix += f"; or allow more than max_bad_steps = {self._most}"
        return UserError(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not finite{many}",
            f"phase {self._phase}, step {step}, {self._examples(step)}",
            fix,
        )
