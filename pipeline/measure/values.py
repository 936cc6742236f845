"""What was measured, as plain values: accuracy, latency, agreement, each with its interval.

``store.json_values`` turns them into JSON types and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Interval = tuple[float, float]
"""Lower and upper end of a 95 % confidence interval."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference in top-1 from the baseline, on the same images. The baseline's own is 0, (0, 0), p 1."""

    delta: float
    """This row's top-1 minus the baseline's, as a fraction: −0.01 is one point lost."""
    ci95: Interval
    p_value: float


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
    recall: Mapping[str, float] = field(default_factory=dict)
    """Class -> share of its test images that are put into it, for every class that has any."""


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


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A written file against the PyTorch model it was written from, image by image."""

    top1: float
    """Fraction of test images that both put into the same class."""
    max_abs: float
    """Largest absolute difference between two logits."""
    n: int
