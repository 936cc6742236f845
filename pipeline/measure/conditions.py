"""What the machine did while something was timed on it, as far as the timing itself can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


STARVED = 0.9
"""Share of a processor below which others are said to have taken it."""
MOVED = 0.05
"""Change of a time over the measurement, as a share, from which it is said to have moved."""
CERTAIN = 0.001
"""Chance that times without a trend show one."""
STRAY = 2.0
"""Times the median from which a call is an outlier, ..."""
MANY_STRAY = 0.05
"""... and the share of such calls that is worth a word."""
DISTURBED = 1.1
"""By how much a disturbance is allowed to have moved a ratio: a competitor on the same core moves medians by 8 %."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How steady a measurement was. Shares, 0.05 = 5 %; a positive change is one to slower."""

    cpu_share: float
    """Processor time over wall time, the median block's: below one, the processor was given to others meanwhile."""
    clock_change: float
    """Of a fixed loop's time, from the first third of the blocks to the slowest later: what the clock alone did."""
    drift: float
    """Of the call's time in units of that loop, from the first third of the blocks to the last; 0 without a trend."""
    outliers: float
    """Share of calls that took more than twice the median."""

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What makes the times less than certain, in words; empty where nothing does."""
        reasons = []
        if self.cpu_share < STARVED:
            reasons.append(f"others used the processor: the calls had {self.cpu_share:.0%} of it")
        if self.clock_change > MOVED:
            reasons.append(f"the clock fell: a fixed loop took {self.clock_change:.0%} longer than at first")
        if abs(self.drift) > MOVED:
            reasons.append(f"its time drifted by {self.drift:+.0%} while it was measured")
        return tuple(reasons)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The disturbances, and what a median is not moved by."""
        stray = (f"{self.outliers:.0%} of the calls took over {STRAY:g} times the median",)
        return self.disturbances + (stray if self.outliers > MANY_STRAY else ())

    @property
    def leeway(self) -> float:
        """What a ratio's interval is to be widened by, as a factor of both its ends."""
        return DISTURBED if self.disturbances else 1.0


def observe_conditions(
    times: NDArray[np.float64], reference: NDArray[np.float64], cpu_share: NDArray[np.float64]
) -> Conditions:
    """The conditions under which ``times`` [blocks, calls] were taken.

    ``reference``: a fixed loop's time in each block, [blocks]; ``cpu_share``: processor time over wall time, [blocks].
    """
    import numpy as np

    medians = np.median(times, axis=1)
    return Conditions(
        cpu_share=float(np.median(cpu_share)),
        clock_change=_slowest_later(reference),
        drift=_trend(medians / reference),
        outliers=float((times > STRAY * np.median(times)).mean()),
    )


def _slowest_later(reference: NDArray[np.float64]) -> float:
    """By how much any later third of the blocks is slower than the first, in the median; never below zero."""
    import numpy as np

    if len(reference) < 6:
        return 0.0
    first, *later = (float(np.median(part)) for part in np.array_split(reference, 3))
    return max(0.0, max(later) / first - 1)


def _trend(values: NDArray[np.float64]) -> float:
    """Change from the first third to the last, where the order of the blocks certainly matters (Spearman); else zero."""
    import numpy as np
    from scipy.stats import spearmanr

    if len(values) < 6 or np.ptp(values) == 0:
        return 0.0
    if float(spearmanr(np.arange(len(values)), values).pvalue) > CERTAIN:
        return 0.0
    parts = np.array_split(values, 3)
    return float(np.median(parts[-1]) / np.median(parts[0]) - 1)
