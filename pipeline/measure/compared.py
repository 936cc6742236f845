"""Two measurements of the same thing, held against each other: a word, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgewise.measure.paired import Z, images_to_decide, score_interval
from edgewise.measure.speed import speed_verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgewise.measure.conditions import Conditions


Word = Literal["better", "same", "worse", "faster", "slower", "smaller", "larger", "new", "missing", "cannot tell"]

WORSE: frozenset[Word] = frozenset({"worse", "slower", "larger", "missing"})


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One quantity of two measurements."""

    quantity: str
    """``top-1``, ``time``, ``size``, or ``file`` for one that only one side has."""
    word: Word
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {"quantity": self.quantity, "word": self.word, "reason": self.reason}


def compare_outcomes(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], max_drop: float) -> Compared:
    """Which images B (``ours``) and A (``theirs``) tell right, of the same n images in the same order.

    ``worse`` where a fall is certain (McNemar's exact test at 5 %, and the score interval) and larger than ``max_drop``;
    ``same`` where a larger fall is excluded; ``better`` where a rise is certain.
    """
    n = len(ours)
    gains, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    low, high = score_interval(gains, losses, n)
    delta = (gains - losses) / n
    text = f"{100 * delta:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}) on the same {n:,} images"
    if high < 0 and -delta > max_drop:
        return Compared(quantity="top-1", word="worse", reason=f"{text}, {100 * max_drop:.2f} allowed")
    if low > 0:
        return Compared(quantity="top-1", word="better", reason=text)
    if low >= -max_drop:
        return Compared(quantity="top-1", word="same", reason=text)
    number = images_to_decide(gains, losses, n, max_drop)
    decide = "no number of images decides" if number is None else f"{number:,} images would decide"
    return Compared(quantity="top-1", word="cannot tell", reason=f"{text}; {decide}")


def compare_shares(ours: tuple[float, int], theirs: tuple[float, int], max_drop: float) -> Compared:
    """B's and A's top-1, each with its number of images, where it is not known which images they told right.

    The interval of two independent shares (Newcombe, Statistics in Medicine 17, 1998, method 10), wider than a paired one.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(
        round(ours[0] * ours[1]), ours[1], round(theirs[0] * theirs[1]), theirs[1], method="newcomb", compare="diff"
    )
    delta = ours[0] - theirs[0]
    text = f"{100 * delta:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}), of {ours[1]:,} and {theirs[1]:,} images"
    if high < 0 and -delta > max_drop:
        return Compared(quantity="top-1", word="worse", reason=f"{text}, {100 * max_drop:.2f} allowed")
    if low > 0:
        return Compared(quantity="top-1", word="better", reason=text)
    if low >= -max_drop:
        return Compared(quantity="top-1", word="same", reason=text)
    number = _unpaired_images(ours[0], theirs[0], max_drop)
    decide = "" if number is None else f"; some {number:,} images each would decide"
    return Compared(quantity="top-1", word="cannot tell", reason=f"{text}{decide}")


def _unpaired_images(ours: float, theirs: float, max_drop: float) -> int | None:
    """By the normal approximation: as many as bring half the interval down to what is between the fall and the limit."""
    room = abs(max_drop + ours - theirs)
    variance = ours * (1 - ours) + theirs * (1 - theirs)
    return None if room == 0 else round(Z**2 * variance / room**2)


def compare_times(ratio: float, interval: tuple[float, float], conditions: Conditions | None = None) -> Compared:
    """B's time over A's, of calls taken in turn."""
    text = f"{ratio:.3f} of the time ({interval[0]:.3f} to {interval[1]:.3f})"
    remarks = conditions.disturbances if conditions else ()
    return Compared(quantity="time", word=speed_verdict(interval, conditions), reason="; ".join((text, *remarks)))


def compare_sizes(ours: int, theirs: int, max_growth: float) -> Compared:
    """B's bytes and A's; ``max_growth``: share by which B may be larger."""
    text = f"{ours:,} bytes, {theirs:,} before"
    if ours > theirs * (1 + max_growth):
        return Compared(quantity="size", word="larger", reason=f"{text}, {max_growth:.1%} more allowed")
    return Compared(quantity="size", word="smaller" if ours < theirs else "same", reason=text)
