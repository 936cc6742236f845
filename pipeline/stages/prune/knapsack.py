"""Which blocks go, so that time is saved where it costs least accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgewise.errors import StageError
from edgewise.stages.prune.latency_table import Table
from edgewise.stages.prune.plan import Counts, Curve

_LEAST = 1e-12
"""A cost of nothing, where something is divided by it."""


def lightest_counts(
    table: Table, choices: Sequence[Sequence[int]], curves: Sequence[Curve], target_ms: float
) -> Counts:
    """The cheapest counts found with at most ``target_ms`` in ``table``; ``choices[g]`` are the counts of group g.

    Greedy: again and again the move, of whatever length, that saves most milliseconds for what it costs, where what is
    saved beyond the target counts for nothing. Long moves step over widths at which the kernels gain nothing. In the
    end every group is widened again as far as that takes no time. Raises StageError where the target is out of reach.
    """
    counts, now = [0] * len(choices), table.ms([0] * len(choices))
    while now > target_ms:
        best = max(_possible_moves(table, choices, curves, counts, now - target_ms), default=None)
        if best is None or best[0] <= 0:
            raise StageError(
                f"wanted {target_ms / table.ms([0] * len(counts)):.1%} of the layers' time; with every layer at the smallest "
                f"allowed width that pays, {now / table.ms([0] * len(counts)):.1%} are left. Ask for less, or lower round_to "
                "or min_layer, or shorten keep"
            )
        _, group, count = best
        counts[group] = count
        now = table.ms(counts)
    return _take_back_moves(table, choices, curves, counts, target_ms)


def _possible_moves(
    table: Table, choices: Sequence[Sequence[int]], curves: Sequence[Curve], counts: list[int], target: float
) -> list[tuple[float, int, int]]:
    """(milliseconds saved for what the move costs, group, blocks gone after it)."""
    return [
        (min(gain, target) / max(curves[group][count] - curves[group][counts[group]], _LEAST), group, count)
        for group, possible in enumerate(choices)
        for count in possible
        if count > counts[group] and (gain := table.saved(counts, group, count)) > 0
    ]


def _take_back_moves(
    table: Table, choices: Sequence[Sequence[int]], curves: Sequence[Curve], counts: list[int], target_ms: float
) -> Counts:
    """Take moves back, the costliest first, as long as the target is kept."""
    while True:
        room = target_ms - table.ms(counts)
        back = [
            (curves[group][counts[group]] - curves[group][count], -group, -count)
            for group, possible in enumerate(choices)
            for count in (0, *possible)
            if count < counts[group] and -table.saved(counts, group, count) <= room
        ]
        gain, group, count = max(back, default=(0.0, 0, 0))
        if gain <= 0:
            return tuple(counts)
        counts[-group] = -count


def by_importance(scores: Sequence[Tensor]) -> list[list[float]]:
    """Curves that add up the importance of what is gone, the least important first."""
    cumulative = [torch.cat([torch.zeros(1), score.sort().values.cumsum(0)]) for score in scores]
    return [curve.tolist() for curve in cumulative]
