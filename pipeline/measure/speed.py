"""Whether one call is faster than another, in a word, from times taken in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgewise.measure.conditions import Conditions


Speed = Literal["faster", "slower", "cannot tell"]

SMALLEST = 1.02
"""Ratio from which two times are called different: one file loaded twice differs by up to about so much, by where its
numbers happen to lie in memory (Mytkowicz et al. 2009), and many rounds make that a certain difference."""


def speed_verdict(interval: tuple[float, float], conditions: Conditions | None = None) -> Speed:
    """``faster`` or ``slower`` where all of the ratio's 95 % interval lies beyond SMALLEST, else ``cannot tell``.

    ``conditions``: a disturbance moves the line to where it could not have moved an equal time.
    """
    low, high = interval
    line = SMALLEST * (conditions.leeway if conditions else 1.0)
    if high < 1 / line:
        return "faster"
    return "slower" if low > line else "cannot tell"
