"""Numbers as people read them: three digits, a unit, a true minus sign."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"


def significant(value: float) -> str:
    """Three significant digits, never an exponent: 0.412, 4.32, 48.1, 1234."""
    if value == 0:
        return "0"
    # The rounded value decides: 0.9997 has two decimals, as 1.00 has.
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:.{digits}f}".replace("-", MINUS)


def scaled(value: float) -> tuple[str, str]:
    """Three significant digits and the SI prefix: 272474 -> ("272", "k"); whole numbers below 1000 stay whole."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return (f"{value:.0f}" if prefix == "" else significant(value)), prefix
        value /= 1000
    return significant(value), "T"


def count(value: int) -> str:
    """Parameters or MACs: 272474 -> 272k."""
    return "".join(scaled(value))


def signed_count(value: int) -> str:
    """The same with a true minus sign: -1400 -> −1.40k."""
    return f"{MINUS}{count(-value)}" if value < 0 else count(value)


def size(value: int | None) -> str:
    """Bytes in decimal units: 85230 -> 85.2 kB; a dash where there are none."""
    if value is None:
        return "–"
    digits, prefix = scaled(value)
    return f"{digits} {prefix}B"


def percent(fraction: float) -> str:
    """A fraction in percent with two decimals, no sign: 0.9173 -> 91.73."""
    return f"{fraction * 100:.2f}"


def points(delta: float) -> str:
    """A difference of fractions in percentage points, signed: −0.28, +0.10, 0.00."""
    text = f"{delta * 100:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", MINUS)


def half_width(interval: Sequence[float]) -> str:
    """Half the width of an interval of fractions, in percentage points: 0.54."""
    return f"{(interval[1] - interval[0]) * 50:.2f}"


def ratio(value: float) -> str:
    """A ratio with two decimals: 0.62×."""
    return f"{value:.2f}×"
