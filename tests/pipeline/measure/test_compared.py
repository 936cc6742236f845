"""Words of a comparison, at the limit and on both sides of it."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.measure.compared import WORSE, compare_outcomes, compare_shares, compare_sizes, compare_times
from edgewise.measure.conditions import Conditions


def outcomes(n: int, gained: int, lost: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, A): as many right by B alone, by A alone, and by both."""
    kinds = np.repeat([0, 1, 2], [gained, lost, n - gained - lost])
    return kinds != 1, kinds != 0


@pytest.mark.parametrize(
    ("gained", "lost", "word"),
    [
        (0, 0, "same"),
        (5, 60, "worse"),  # 2.75 points of 2,000, certain
        (10, 26, "same"),  # 0.8 points: certainly a fall, and certainly no larger than 1.5
        (20, 45, "cannot tell"),  # 1.25 points, up to 2.1
        (60, 5, "better"),
    ],
)
def test_top1_on_the_same_images(gained: int, lost: int, word: str) -> None:
    found = compare_outcomes(*outcomes(2_000, gained, lost), max_drop=0.015)
    assert found.word == word and "on the same 2,000 images" in found.reason
    assert ("would decide" in found.reason) == (word == "cannot tell")
    assert (found.word in WORSE) == (word == "worse")


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        ((0.90, 10_000), (0.93, 10_000), "worse"),
        ((0.93, 10_000), (0.90, 10_000), "better"),
        ((0.93, 100_000), (0.931, 100_000), "same"),
        ((0.93, 500), (0.94, 500), "cannot tell"),
    ],
)
def test_top1_on_images_that_are_not_known(ours: tuple[float, int], theirs: tuple[float, int], word: str) -> None:
    found = compare_shares(ours, theirs, 0.01)
    assert found.word == word
    assert ("would decide" in found.reason) == (word == "cannot tell")


def test_a_paired_comparison_sees_what_two_shares_cannot() -> None:
    ours, theirs = outcomes(2_000, 5, 30)
    assert compare_outcomes(ours, theirs, 0.01).word == "worse"
    shares = (float(ours.mean()) - 0.1, 2_000), (float(theirs.mean()) - 0.1, 2_000)
    assert compare_shares(*shares, 0.01).word == "cannot tell"


@pytest.mark.parametrize(
    ("interval", "share", "word"),
    [
        ((1.03, 1.08), 1.0, "slower"),
        ((1.01, 1.08), 1.0, "cannot tell"),
        ((0.90, 0.97), 1.0, "faster"),
        ((0.90, 0.99), 1.0, "cannot tell"),
        ((1.03, 1.08), 0.5, "cannot tell"),
        ((1.2, 1.3), 0.5, "slower"),
    ],
)
def test_time(interval: tuple[float, float], share: float, word: str) -> None:
    conditions = Conditions(cpu_share=share, clock_change=0.0, drift=0.0, outliers=0.0)
    found = compare_times(sum(interval) / 2, interval, conditions)
    assert found.word == word and ("others used the processor" in found.reason) == (share < 1)


@pytest.mark.parametrize(("ours", "word"), [(90, "smaller"), (100, "same"), (101, "same"), (102, "larger")])
def test_size(ours: int, word: str) -> None:
    assert compare_sizes(ours, 100, 0.01).word == word
