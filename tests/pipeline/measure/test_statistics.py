"""Intervals and tests against values worked out by hand from the published formulae."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.measure.paired import score_interval
from edgewise.measure.statistics import (
    images_to_prove,
    judge_top1,
    paired_difference,
    provable_fall,
    ratio_interval,
)  # fmt: skip

Z = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(ours, baseline) with the given numbers of images both, only ours, only the baseline and neither got right."""
    counts = [both, gained, lost, neither]
    ours = np.repeat([True, True, False, False], counts)
    return ours, np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(("right", "n"), [(81, 100), (0, 20), (20, 20), (9_123, 10_000)])
def test_accuracy_has_wilson_interval(right: int, n: int) -> None:
    correct = np.arange(n) < right
    found = judge_top1(correct, correct)
    p = right / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert (found.top1, found.n) == (p, n)
    assert found.ci95 == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_wilson_by_its_textbook_value() -> None:
    correct = np.arange(10) < 8
    assert judge_top1(correct, correct).ci95 == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 9, 100), (10, 2, 540), (1, 0, 50)])
def test_difference_has_the_score_interval_and_its_counts(gained: int, lost: int, n: int) -> None:
    found = paired_difference(*paired(n - gained - lost - 5, gained, lost, 5))
    assert found.delta == pytest.approx((gained - lost) / n)
    assert (found.gained, found.lost) == (gained, lost)
    assert found.ci95 == pytest.approx(score_interval(gained, lost, n))


def test_exact_mcnemar_counts_the_binomial_tails() -> None:
    # 12 discordant pairs, 3 against 9: twice the chance of 3 or fewer heads in 12 throws.
    expected = 2 * sum(math.comb(12, k) for k in range(4)) / 2**12
    assert paired_difference(*paired(80, 3, 9, 8)).p_value == pytest.approx(expected)
    assert paired_difference(*paired(80, 9, 3, 8)).p_value == pytest.approx(expected)


def test_p_value_never_exceeds_one() -> None:
    assert paired_difference(*paired(10, 4, 4, 2)).p_value == pytest.approx(1.0)


def test_gains_and_losses_have_opposite_signs() -> None:
    better, worse = paired_difference(*paired(80, 9, 3, 8)), paired_difference(*paired(80, 3, 9, 8))
    assert better.delta == pytest.approx(-worse.delta)
    assert better.ci95 == pytest.approx((-worse.ci95[1], -worse.ci95[0]))


def test_the_baseline_against_itself_is_exactly_zero() -> None:
    correct = np.array([True, False, True])
    found = paired_difference(correct, correct)
    assert (found.delta, found.ci95, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_equal_answers_of_another_model_leave_doubt_that_shrinks_with_n() -> None:
    widths = []
    for n in (20, 2_000):
        found = paired_difference(np.ones(n, dtype=bool), np.ones(n, dtype=bool))
        half = Z**2 / (n + Z**2)
        assert (found.delta, found.p_value) == (0.0, 1.0)
        assert found.ci95 == pytest.approx((-half, half))
        widths.append(half)
    assert widths[0] > widths[1]


def test_interval_stays_within_possible_differences() -> None:
    low, high = paired_difference(*paired(0, 0, 3, 0)).ci95
    assert -1.0 <= low <= high <= 1.0


def test_planted_ratio_is_found_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(1.0, 2.0, 60)
    ratio, (low, high) = ratio_interval(base * rng.normal(0.5, 0.02, 60), base)
    assert ratio == pytest.approx(0.5, abs=0.01)
    assert low <= ratio <= high
    assert 0 < high - low < 0.03


def test_ratio_is_paired_so_that_a_drifting_machine_cancels() -> None:
    drift = np.linspace(1.0, 10.0, 30)
    ratio, interval = ratio_interval(2 * drift, drift)
    assert (ratio, interval) == (2.0, (2.0, 2.0))


def test_ratio_survives_a_few_stalls() -> None:
    theirs = np.full(30, 4.0)
    ours = np.full(30, 3.0)
    ours[:3] = 300.0
    ratio, (low, high) = ratio_interval(ours, theirs)
    assert (ratio, low, high) == (0.75, 0.75, 0.75)


def test_identical_times_have_ratio_one() -> None:
    times = np.random.default_rng(0).uniform(1, 2, 20)
    assert ratio_interval(times, times) == (1.0, (1.0, 1.0))


def test_ratio_interval_is_reproducible() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.uniform(1, 2, 30), rng.uniform(1, 2, 30)
    assert ratio_interval(ours, theirs) == ratio_interval(ours, theirs)


@pytest.mark.parametrize(("n", "moved"), [(400, 6), (400, 0), (2000, 30), (10_000, 150)])
def test_what_a_test_set_can_prove_is_the_paired_interval_s_own_lower_end(n: int, moved: int) -> None:
    found = paired_difference(*paired(n - 2 * moved, moved, moved, 0))
    assert found.delta == 0
    assert provable_fall(n, 2 * moved / n) == pytest.approx(-found.ci95[0], rel=1e-6)


def test_images_to_prove_a_limit_are_just_enough() -> None:
    needed = images_to_prove(0.01, 0.03)
    assert needed is not None and provable_fall(needed, 0.03) <= 0.01
    assert provable_fall(round(needed * 0.9), 0.03) > 0.01
    assert images_to_prove(0.0, 0.03) is None
