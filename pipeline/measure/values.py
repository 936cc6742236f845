"""What was measured, as plain values: accuracy, latency, agreement, each with its interval.

``store.json_values`` turns them into JSON types and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewise.measure.calibration import Calibration
from edgewise.measure.class_falls import ClassFall
from edgewise.measure.conditions import Conditions
from edgewise.measure.soundness import Soundness

Interval = tuple[float, float]
"""Lower and upper end of a 95 % confidence interval."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference in top-1 from the baseline, on the same images. The baseline's own is 0, (0, 0), p 1."""

    delta: float
    """This row's top-1 minus the baseline's, as a fraction: −0.01 is one point lost."""
    ci95: Interval
    """Tango's score interval for paired proportions."""
    p_value: float
    """McNemar's exact test of equal accuracy."""
    gained: int = 0
    """Images that this row alone tells right."""
    lost: int = 0
    """Images that the baseline alone tells right."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 over the whole test set."""

    top1: float
    n: int
    """Number of test images."""
    ci95: Interval
    vs_baseline: Difference
    balanced: float | None = None
    """Mean recall over the classes that have test images; None where classes were not looked at."""
    top5: float | None = None
    """Share of images whose class is among the five highest answers; None below 20 classes."""
    top5_vs_baseline: Difference | None = None
    """The same paired difference in top-5; None below 20 classes."""
    calibration: Calibration | None = None
    """Whether it is as sure as it is right; None where answers are not all numbers."""
    recall: Mapping[str, float] = field(default_factory=dict)
    """Class -> share of its test images that are put into it, for every class that has any."""
    soundness: Soundness | None = None
    falls: tuple[ClassFall, ...] = ()
    """Classes that certainly fell from the baseline, the largest fall first."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one call, measured interleaved with the baseline in one run."""

    on: str
    """The target whose runtime was timed."""
    batch: int
    threads: int
    p50_ms: float
    p90_ms: float
    ratio_to_baseline: float
    """Time divided by the baseline's time in the same run; below 1 is faster."""
    ci95: Interval
    """Of the ratio."""
    baseline_ms: float | None = None
    """The baseline's median in the same measurement as ``p50_ms``."""
    conditions: Conditions | None = None
    """What the machine did meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A written file against the PyTorch model it was written from, image by image."""

    top1: float
    """Fraction of test images that both put into the same class."""
    max_abs: float
    """Largest absolute difference between two logits."""
    n: int
    ties: int = 0
    """Images in another class, between which and PyTorch's own rounding alone decides."""
    differ: int | None = None
    """Images in another class otherwise; None: ties were not told apart."""
    margin: float = 0.0
    """How far apart PyTorch's two logits may lie for a tie."""
    noise: float | None = None
    """Root mean square of the differences between the logits, in units of ``noise_unit``."""
    noise_unit: str = ""
    """``steps`` of the grid that the answers lie on, or ``share`` of their spread."""
    noise_allowed: float | None = None
    """What rounding explains of it."""
    sqnr_db: float | None = None
    """Signal to noise of the file's logits against PyTorch's; None: equal in every bit, or not numbers."""
    not_finite: int = 0
    """Images to which the file's answers are not all finite numbers."""
    layers_apart: int | None = None
    """Layers that compute something else than PyTorch's from the file's own inputs to them; None: not looked at."""
    first_apart: str = ""
    """The first of those layers."""
