"""A measured budget is hit by a prediction that is corrected, on gauges whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import nn

from edgewise.errors import StageError
from edgewise.stages.prune.measured_budget import Line, aim_at_budget
from edgewise.stages.prune.plan import Counts


class Size(nn.Module):
    """A network that is nothing but its size."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts


@dataclass(frozen=True)
class Fake:
    """One group of 1,000 blocks; a half of the measured time is outside what the prediction sees."""

    slack: float = 0.0
    fixed: float = 0.5
    step: int = 1

    def predict(self, counts: Counts) -> float:
        return 1 - counts[0] / 1000

    def choose(self, share: float) -> Counts:
        if share < 0.1:
            raise StageError("out of reach")
        gone = 1000 * (1 - share)
        return (int(-(-gone // self.step) * self.step),)

    def least(self) -> Counts:
        return (900,)

    def measure(self, model: nn.Module) -> float:
        assert isinstance(model, Size)
        return self.fixed + (1 - self.fixed) * self.predict(model.counts)


def test_the_second_trial_hits_a_linear_truth() -> None:
    found = aim_at_budget(Fake(), 0.75, Size, Line(1.0))
    # By the prediction alone 750 blocks stay, which measure 0.875; through both points 500 do.
    assert [round(measured, 3) for _, measured in found.trials] == [0.875, 0.75]
    assert found.counts == (500,)
    assert found.predicted == pytest.approx(0.75, abs=1e-3)


def test_the_budget_is_kept_from_below() -> None:
    found = aim_at_budget(Fake(step=300), 0.72, Size, Line(1.0))
    assert found.measured <= 0.72 and found.counts == (600,)
    assert aim_at_budget(Fake(step=300, slack=0.2), 0.72, Size, Line(1.0)).counts == (300,)


def test_what_cannot_be_reached_is_refused_with_the_nearest() -> None:
    with pytest.raises(StageError, match=r"wanted 5\.0%, and the nearest of 1 trials has 55\.0% left\. Ask for less"):
        aim_at_budget(Fake(), 0.05, Size, Line(1.0))
    with pytest.raises(StageError, match=r"wanted 50\.0%, and the nearest of \d+ trials has"):
        aim_at_budget(Fake(fixed=0.9), 0.5, Size, Line(1.0))


class Pessimist(Fake):
    """Predicts that 60 % stay whatever goes, as a sum of single layers does that counts the call itself for each."""

    def predict(self, counts: Counts) -> float:
        return 0.6 + 0.4 * (1 - counts[0] / 1000)

    def choose(self, share: float) -> Counts:
        if share < self.predict(self.least()):
            raise StageError("out of reach")
        return (round(1000 * (1 - share) / 0.4),)

    def measure(self, model: nn.Module) -> float:
        assert isinstance(model, Size)
        return 1 - model.counts[0] / 1000


def test_a_prediction_alone_refuses_nothing() -> None:
    found = aim_at_budget(Pessimist(), 0.5, Size, Line(1.0))
    assert [round(measured, 3) for _, measured in found.trials] == [0.1, 0.5]
    assert found.counts == (500,) and found.predicted == pytest.approx(0.5)


class Idle(Fake):
    """The first half of what goes saves nothing, as where a runtime pads odd widths to whole vectors."""

    def measure(self, model: nn.Module) -> float:
        assert isinstance(model, Size)
        return 1 - max(0, model.counts[0] - 500) / 1000


def test_a_first_trial_that_saves_nothing_is_not_the_end() -> None:
    found = aim_at_budget(Idle(), 0.8, Size, Line(1.0))
    assert found.trials[0][1] == 1.0 and found.measured == pytest.approx(0.8, abs=0.03)


class Short(Idle):
    """Sees no way below a half, though the smallest network is within the budget."""

    def choose(self, share: float) -> Counts:
        if share < 0.5:
            raise StageError("out of reach")
        return super().choose(share)


def test_a_prediction_that_sees_no_way_after_trials_refuses_nothing() -> None:
    assert aim_at_budget(Short(), 0.8, Size, Line(1.0)).counts == (900,)


def test_a_line_goes_through_its_points_and_the_origin_before_there_are_two() -> None:
    assert Line(0.8).measured(0.5) == pytest.approx(0.4)
    line = Line(1.0, ((0.5, 0.7),))
    assert line.measured(0.75) == pytest.approx(0.85) and line.predicted(0.85) == pytest.approx(0.75)


def test_points_that_contradict_each_other_are_not_joined() -> None:
    # Less was predicted and more measured: noise. The nearest point and the origin are all that is left.
    assert Line(1.0, ((0.5, 1.1),)).predicted(0.55) == pytest.approx(0.55)
    assert Line(1.0, ((0.5, 1.1),)).measured(0.25) == pytest.approx(0.55)
