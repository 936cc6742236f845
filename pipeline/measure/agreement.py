"""Whether a file answers as the network it was written from: one comparison for runs, re-checks, studies and devices.

On NumPy alone, so that it can be used where there is no PyTorch. Two evaluations of one integer network differ by
roundings at ties: each is a step of its layer's grid, and they add up to a few steps of the answers. So an image in
another class is no fault by itself: it is a *tie* where PyTorch's own two logits lie closer together than such roundings
reach, and *differs* otherwise. And whether the answers as a whole lie no further apart than roundings explain is told
by their root mean square, which one wrong scale moves although it may change hardly a class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgewise.measure.values import Agreement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgewise.targets import Precision


NOISE_STEPS = 2.0
"""Root mean square of the differences, in steps, that roundings in all layers add up to: above what right files show."""
TIE_STEPS = 3 * math.sqrt(2) * NOISE_STEPS
"""Steps of the answers' grid by which PyTorch's two logits may lie apart for their order to be a matter of rounding: three
standard deviations of the difference of two logits that each carry that noise, 8.5; on a grid, eight whole steps."""
EXACT = 2.0**-12
"""Share of the answers' spread that the same build on the same processor may move its own by: threads add in another order."""
GRID_POINTS = 256
"""Values that a tensor of 8 bits takes at most."""
TIE_SHARES: Mapping[Precision, float] = {
    "float32": 1e-4, "float16": 0.01, "int8": 0.02, "int8-weights": 0.01, "palette": 0.01,
}  # fmt: skip
"""The same as a share of the spread of PyTorch's logits, for answers that lie on no grid."""
NOISE_SHARES: Mapping[Precision, float] = {
    "float32": 1e-3, "float16": 0.02, "int8": 0.1, "int8-weights": 0.3, "palette": 0.3,
}  # fmt: skip
"""Root mean square of the differences as a share of the logits' own spread about their mean."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How far rounding alone moves answers."""

    margin: float
    """In logits: two that lie no further apart may change places."""
    unit: float
    """Of the noise, in logits."""
    unit_name: str
    noise: float
    """Root mean square that is explained, in units."""


def rounding_of(reference: NDArray[np.floating], precision: Precision) -> Rounding:
    """What rounding explains in a file of ``precision``, for PyTorch's own logits ``reference`` [n, classes]."""
    step = grid_step(reference) if precision == "int8" else None
    if step is not None:
        return Rounding(margin=TIE_STEPS * step, unit=step, unit_name="steps", noise=NOISE_STEPS)
    spread = float(np.ptp(reference)) if reference.size else 0.0
    deviation = float(np.std(reference)) if reference.size else 0.0
    return Rounding(
        margin=TIE_SHARES[precision] * spread,
        unit=max(deviation, 1e-12),
        unit_name="share",
        noise=NOISE_SHARES[precision],
    )


def grid_step(values: NDArray[np.floating]) -> float | None:
    """The step of the grid of at most 256 points that all of ``values`` lie on; None where they lie on none."""
    points = np.unique(np.asarray(values, dtype=np.float64))
    gaps = np.diff(points)
    gaps = gaps[gaps > 1e-6 * max(float(np.abs(points).max(initial=0.0)), 1e-12)]
    if not len(gaps) or len(gaps) >= GRID_POINTS:
        return None
    step = float(gaps.min())
    counts = (points - points[0]) / step
    if counts[-1] > GRID_POINTS or np.abs(counts - np.round(counts)).max() > 0.05:
        return None
    return float((points[-1] - points[0]) / round(float(counts[-1])))


def compare_answers(
    answers: NDArray[np.floating],
    reference: NDArray[np.floating],
    precision: Precision,
    *,
    softmax: bool = False,
) -> Agreement:
    """A file's answers against its PyTorch network's logits, both [n, classes], image by image.

    ``softmax``: the file answers with probabilities; they are then compared as probabilities, and ties are told by the
    network's logits all the same.
    """
    own, expected = np.asarray(answers, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if own.shape != expected.shape:
        raise ValueError(f"wanted answers of the shape {expected.shape}, found {own.shape}")
    finite = np.isfinite(own).all(axis=1) & np.isfinite(expected).all(axis=1)
    tolerance = rounding_of(expected[np.isfinite(expected).all(axis=1)], precision)
    ties, differing = _changed_classes(own, expected, tolerance.margin)
    like = _softmax(expected) if softmax else expected
    off = (own - like)[finite]
    square = float(np.mean(off**2)) if off.size else 0.0
    return Agreement(
        top1=1.0 - (int(ties.sum()) + int(differing.sum())) / len(expected),
        max_abs=float(np.abs(off).max(initial=0.0)),
        n=len(expected),
        ties=int(ties.sum()),
        differ=int(differing.sum()),
        margin=tolerance.margin,
        noise=None if softmax else math.sqrt(square) / tolerance.unit,
        noise_unit="" if softmax else tolerance.unit_name,
        noise_allowed=None if softmax else tolerance.noise,
        sqnr_db=_decibels(float(np.mean(like[finite] ** 2)) if off.size else 0.0, square),
        not_finite=int((~finite).sum()),
    )


def differing_images(
    answers: NDArray[np.floating], reference: NDArray[np.floating], margin: float
) -> NDArray[np.int64]:
    """Numbers of the images that are in another class by more than a tie, both [n, classes]."""
    return np.flatnonzero(_changed_classes(np.asarray(answers), np.asarray(reference), margin)[1])


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far a file's answers to the same images lie from those that it gave before."""

    worst: float
    """Largest difference of one answer."""
    mean: float
    allowed_worst: float
    allowed_mean: float
    changed: int
    """Images that are in another class now."""
    n: int

    @property
    def within(self) -> bool:
        """Whether both lie within what is allowed; of answers that are no numbers neither does."""
        return self.worst <= self.allowed_worst and self.mean <= self.allowed_mean


def moved_answers(
    answers: NDArray[np.floating], before: NDArray[np.floating], elsewhere: tuple[float, float] | None = None
) -> Moved:
    """A file's answers against its earlier ones, both [n, classes].

    ``elsewhere``: what one answer, and their mean, may have moved by on another processor or in another build; None: they
    come from the same build on the same processor, all but exactly.
    """
    own, expected = np.asarray(answers, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if own.shape != expected.shape:
        raise ValueError(f"wanted answers of the shape {expected.shape}, found {own.shape}")
    off = np.abs(own - expected)
    worst, mean = elsewhere or (EXACT * float(np.ptp(expected)),) * 2
    return Moved(
        worst=float(off.max()),
        mean=float(off.mean()),
        allowed_worst=worst,
        allowed_mean=mean,
        changed=int((own.argmax(axis=1) != expected.argmax(axis=1)).sum()),
        n=len(expected),
    )


def _changed_classes(
    answers: NDArray[np.floating], expected: NDArray[np.floating], margin: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images [n] are in another class by a tie, and which otherwise. What is no number is never a tie."""
    rows = np.arange(len(expected))
    theirs, ours = expected.argmax(axis=1), answers.argmax(axis=1)
    finite = np.isfinite(answers).all(axis=1) & np.isfinite(expected).all(axis=1)
    close = finite & (expected[rows, theirs] - expected[rows, ours] <= margin)
    other = (theirs != ours) | ~finite
    return other & close, other & ~close


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
