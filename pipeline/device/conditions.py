"""What else a processor did while a file was timed: whether the times can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.device.result import Block

State = Literal["steady", "starved", "throttled", "unknown"]

LEAST_SHARE = 0.95
"""Of the elapsed time, in which a process that is alone on its processor computes."""
MOST_SLOWER = 1.05
"""The reference loop's processor time at the end over that at its fastest: more, and the clock has fallen."""
_NOISY = 0.05


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The verdict on a group's blocks."""

    state: State
    cpu_share: float | None
    note: str


def judge_conditions(blocks: Sequence[Block], threads: int) -> Conditions:
    """Starved: something else had the processor. Throttled: its clock fell. Unknown: neither can be told."""
    share = cpu_share(blocks, threads)
    if share is not None and share < LEAST_SHARE:
        note = (
            f"the process had its processor for {share:.0%} of the time: something else ran on it, or a quota holds it"
        )
        return Conditions(state="starved", cpu_share=share, note=note)
    slower, spread = _drift(np.array([block.reference_ms for block in blocks]))
    if slower > MOST_SLOWER and spread <= _NOISY:
        note = f"fixed work took {slower:.2f} times as long at the end as at its fastest{_cause(blocks)}"
        return Conditions(state="throttled", cpu_share=share, note=note)
    if share is None or spread > _NOISY:
        reason = "the processor's time is not told here" if share is None else f"fixed work varied by {spread:.0%}"
        return Conditions(state="unknown", cpu_share=share, note=f"whether the clock held cannot be told: {reason}")
    return Conditions(
        state="steady", cpu_share=share, note=f"processor share {share:.0%}, fixed work within {slower - 1:.1%}"
    )


def cpu_share(blocks: Sequence[Block], threads: int) -> float | None:
    """Processor time over elapsed time: of everything on one thread; on several, whose waits count as none, of the
    reference loop alone."""
    if threads == 1:
        pairs = [(block.cpu_ms, block.wall_ms) for block in blocks]
    else:
        pairs = [(block.reference_cpu_ms, block.reference_wall_ms) for block in blocks]
    wall = sum(pair[1] for pair in pairs)
    times = [pair[0] for pair in pairs if pair[0] is not None]
    return None if not wall or len(times) < len(pairs) else min(1.0, sum(times) / wall)


def _drift(times: NDArray[np.float64]) -> tuple[float, float]:
    """The last third's median over the fastest third's, and the spread (interquartile, of the median) within the last."""
    third = max(1, len(times) // 3)
    thirds = [times[start : start + third] for start in range(0, third * 3, third) if start < len(times)]
    medians = [float(np.median(part)) for part in thirds]
    low, high = np.percentile(thirds[-1], [25, 75])
    return medians[-1] / max(min(medians), 1e-9), float(high - low) / max(medians[-1], 1e-9)


def _cause(blocks: Sequence[Block]) -> str:
    clocks = [block.clock_khz for block in blocks if block.clock_khz]
    heat = [block.temperature_c for block in blocks if block.temperature_c is not None]
    parts = [f"clock {clocks[0] // 1000:,} to {clocks[-1] // 1000:,} MHz"] if clocks else []
    parts += [f"{heat[0]:.0f} to {max(heat):.0f} °C"] if heat else []
    return f" ({', '.join(parts)})" if parts else ""
