"""Hits a budget that can only be measured: choose by a prediction, measure, correct the prediction, choose again."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from edgewise.errors import StageError
from edgewise.stages.prune.plan import Counts

_TRIALS = 8
_CLOSE = 0.03
"""A trial this near below the budget ends the search."""


class Gauge(Protocol):
    """Predicts and measures what a budget limits. All numbers are shares: of the network a step is given where they are
    predicted, of the network before the first step where they are measured."""

    @property
    def slack(self) -> float:
        """How much above the budget, relative to it, is still within it: the noise of the measurement."""

    def predict(self, counts: Counts) -> float:
        """What would be left; 1 for the network the step is given."""

    def choose(self, share: float) -> Counts:
        """Counts with at most ``share`` left by the prediction. Raises StageError where there are none."""

    def least(self) -> Counts:
        """Every group at its smallest allowed width."""

    def measure(self, model: nn.Module) -> float:
        """What ``model`` has."""


@dataclass(frozen=True)
class Line:
    """What is measured as a function of what is predicted, through the points seen."""

    start: float
    """Measured for the network the step is given, whose prediction is 1."""
    seen: tuple[tuple[float, float], ...] = ()

    def measured(self, predicted: float) -> float:
        """The measurement to be expected."""
        slope, (x, y) = self._through(predicted, 0)
        return y + slope * (predicted - x)

    def predicted(self, measured: float) -> float:
        """The prediction that goes with a measurement."""
        slope, (x, y) = self._through(measured, 1)
        return x + (measured - y) / slope

    def _through(self, at: float, axis: int) -> tuple[float, tuple[float, float]]:
        """Slope and one point: through the neighbours of ``at`` along an axis, or the two nearest points."""

        def distance(point: tuple[float, float]) -> tuple[float, float]:
            # Of points as far off, as where a cut saves nothing, the one that is nearest the other side.
            other = point[1 - axis]
            return abs(point[axis] - at), other if point[axis] > at else -other

        points = sorted({(1.0, self.start), *self.seen}, key=distance)
        near = points[0]
        side = [p for p in points[1:] if (p[axis] - at) * (near[axis] - at) < 0] or points[1:]
        for other in side:
            if (other[0] - near[0]) * (other[1] - near[1]) > 0:
                return (other[1] - near[1]) / (other[0] - near[0]), near
        return near[1] / near[0], near


@dataclass(frozen=True)
class Aimed:
    """What was chosen."""

    counts: Counts
    predicted: float
    """What was expected of it before it was measured."""
    measured: float
    trials: tuple[tuple[float, float], ...] = field(default=())
    """(expected, measured) of every trial, in order."""


def _choose_untried(gauge: Gauge, share: float, tried: Container[Counts]) -> Counts | None:
    """By the prediction; where it sees no way or none that is new, the smallest network, which corrects it."""
    try:
        counts = gauge.choose(share)
    except StageError:
        counts = gauge.least()
    if counts in tried:
        counts = gauge.least()
    return None if counts in tried else counts


def aim_at_budget(gauge: Gauge, share: float, cut: Callable[[Counts], nn.Module], line: Line) -> Aimed:
    """The trial that comes nearest to ``share`` without exceeding it by more than the gauge's slack.

    ``cut`` makes the network of some counts. A prediction alone refuses nothing: where it sees no way, the smallest network
    is measured, and corrects it. Raises StageError where no trial comes within the budget.
    """
    trials: dict[Counts, tuple[float, float]] = {}
    for _ in range(_TRIALS):
        counts = _choose_untried(gauge, line.predicted(share), trials)
        if counts is None:
            break
        prediction = gauge.predict(counts)
        trials[counts] = (line.measured(prediction), gauge.measure(cut(counts)))
        line = Line(line.start, (*line.seen, (prediction, trials[counts][1])))
        if 1 - _CLOSE <= trials[counts][1] / share <= 1 + gauge.slack:
            break
    within = [(value, counts) for counts, (_, value) in trials.items() if value <= share * (1 + gauge.slack)]
    if not within:
        least = min(value for _, value in trials.values())
        raise StageError(
            f"wanted {share:.1%}, and the nearest of {len(trials)} trials has {least:.1%} left. Ask for less, or lower "
            "round_to or min_layer, or shorten keep"
        )
    amount, counts = max(within)
    return Aimed(counts, trials[counts][0], amount, tuple(trials.values()))
