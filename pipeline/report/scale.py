"""Axes: from values to places between 0 and 1, with ticks where people count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgewise.report import numbers

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One axis."""

    low: float
    high: float
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    """Values that the axis names, each with its text."""

    def place(self, value: float) -> float:
        """Where ``value`` lies, 0 at ``low`` and 1 at ``high``; a value outside is held at the edge."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return min(1.0, max(0.0, (at - low) / (high - low)))


def linear_scale(values: Iterable[float], *, zero: bool = False, count: int = 5, margin: float = 0.06) -> Scale:
    """An axis that holds ``values``, and zero if asked for, with about ``count`` ticks at round numbers."""
    extent = [*values, *([0.0] if zero else [])] or [0.0]
    low, high = min(extent), max(extent)
    room = (high - low or abs(high) or 1.0) * margin
    start, end = low - room, high + room
    if zero and low < high:  # an axis that begins or ends at zero has no room beyond it
        start, end = (low if low == 0 else start), (high if high == 0 else end)
    low, high = start, end
    step = _round_step((high - low) / count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if str(step).lstrip("0.").startswith("25") else 0))
    ticks = [
        (index * step, f"{index * step:,.{digits}f}".replace("-", numbers.MINUS)) for index in range(first, last + 1)
    ]
    return Scale(low=low, high=high, ticks=tuple(ticks))


def _round_step(least: float) -> float:
    """The smallest round step that is not smaller than ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))


def logarithmic_scale(values: Iterable[float], text: Callable[[float], str]) -> Scale:
    """A logarithmic axis that holds ``values`` (positive), with ticks at 1, 2 and 5 of every decade it spans."""
    extent = list(values) or [1.0]
    low, high = min(extent) / 1.3, max(extent) * 1.3
    digits = (1, 2, 5) if high / low < 200 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    return Scale(low=low, high=high, log=True, ticks=tuple((t, text(t)) for t in ticks if low <= t <= high))
