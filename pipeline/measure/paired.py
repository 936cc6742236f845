"""Two networks' outcomes on the same images: the interval of their difference, and how many images would decide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

CERTAIN = 0.05
"""Chance below which a fall is no accident."""
Z = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution: intervals are of 95 %."""
MOST_IMAGES = 10**9
"""Numbers of images beyond which nothing is said to decide."""


def score_interval(gained: float, lost: float, n: float, z: float = Z) -> tuple[float, float]:
    """Interval of (gained − lost) / n, the difference of two proportions on the same ``n`` images.

    ``gained``: images that only the first network gets right; ``lost``: only the second. The asymptotic score interval
    of Tango (Statistics in Medicine 17, 1998, section 3), which Fagerland, Lydersen and Laake recommend for paired
    proportions (Statistics in Medicine 33, 2014): all differences that the score test does not reject. Counts may be
    fractions, of an experiment that is only thought of.
    """
    share = (gained - lost) / n
    low = _find_crossing(lambda delta: _tango_score(delta, gained, lost, n) - z, -1.0, share)
    high = _find_crossing(lambda delta: _tango_score(delta, gained, lost, n) + z, share, 1.0)
    return low, high


def _tango_score(delta: float, gained: float, lost: float, n: float) -> float:
    """Tango's statistic for the hypothesis that the difference is ``delta``; it falls as ``delta`` grows."""
    b = -gained - lost + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    rate = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * rate + delta * (1 - delta))
    off = gained - lost - n * delta
    if variance <= 0:
        return math.copysign(math.inf, off) if off else 0.0
    return off / math.sqrt(variance)


def _find_crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero within [low, high]; an end where it does not."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def fall_verdict(
    delta: float, ci95: tuple[float, float], p_value: float, allowed: float
) -> Literal["pass", "fail", "not-checked"]:
    """Non-inferiority: whether a paired difference ``delta`` with its interval is proven to be no fall beyond ``allowed``.

    ``pass`` where the interval excludes a larger fall; ``fail`` where it excludes a smaller one, or where a fall is certain
    and measured to be larger: from a network that lost nothing, in one case of forty at most.
    """
    low, high = ci95
    if low >= -allowed:
        return "pass"
    return "fail" if high < -allowed or (-delta > allowed and p_value < CERTAIN) else "not-checked"


def images_to_decide(gained: int, lost: int, n: int, max_drop: float) -> int | None:
    """How many images, with as many gained and lost among them as among ``n``, would settle whether the fall lies within
    ``max_drop``: the interval then lies on one side of it. None: no number, the fall is just the limit."""
    up, down = gained / n, lost / n

    def decided(images: float) -> bool:
        low, high = score_interval(up * images, down * images, images)
        return low >= -max_drop or high < -max_drop

    return smallest_number(decided)


def proportion_bounds(count: int, n: int, chance: float = 0.05) -> tuple[float, float]:
    """Below and above which a share of which ``count`` of ``n`` were seen lies but with ``chance`` each: Clopper and
    Pearson's exact bounds (Biometrika 26, 1934), one-sided."""
    from scipy.special import betaincinv

    low = betaincinv(count, n - count + 1, chance) if count else 0.0
    high = betaincinv(count + 1, n - count, 1 - chance) if count < n else 1.0
    return float(low), float(high)


def images_to_bound(count: int, n: int, allowed: float) -> int | None:
    """How many images, with the same share among them, would settle on which side of ``allowed`` the share lies."""

    def decided(images: float) -> bool:
        low, high = proportion_bounds(round(images * count / n), round(images))
        return high <= allowed or low > allowed

    return smallest_number(decided)


def smallest_number(holds: Callable[[float], bool]) -> int | None:
    """The smallest number of images, to about one in a thousand, from which ``holds`` is true; None beyond MOST_IMAGES."""
    high = 1
    while not holds(high):
        high *= 2
        if high > MOST_IMAGES:
            return None
    low = high // 2
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
