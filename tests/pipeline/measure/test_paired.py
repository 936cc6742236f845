"""Tango's interval against published figures and against its own definition, and the images that would decide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgewise.measure.paired import (
    Z,
    images_to_bound,
    images_to_decide,
    proportion_bounds,
    score_interval,
    smallest_number,
)


def test_the_interval_of_the_published_example() -> None:
    # Airway hyper-responsiveness of 21 children before and after a transplantation: 1 changed one way, 7 the other;
    # Fagerland, Lydersen and Laake give (-0.517, -0.026).
    assert score_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("n", [20, 540, 10_000])
def test_without_a_difference_doubt_shrinks_with_n(n: int) -> None:
    # No discordant pair: z² = n d / (1 - d) on either side.
    half = Z**2 / (n + Z**2)
    assert score_interval(0, 0, n) == pytest.approx((-half, half), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 9, 100), (9, 3, 100), (0, 4, 50), (120, 80, 1_000)])
def test_its_ends_are_where_the_score_test_just_rejects(gained: int, lost: int, n: int) -> None:
    for end, sign in zip(score_interval(gained, lost, n), (1, -1), strict=True):
        # The restricted estimate of the rate of losses, found by its own likelihood and not by the closed formula.
        rates = max(0.0, -end) + np.linspace(1e-9, (1 - abs(end)) / 2 - 1e-9, 100_001)
        likelihood = gained * np.log(rates + end) + (n - gained - lost) * np.log(1 - 2 * rates - end)
        likelihood += lost * np.log(rates) if lost else 0.0
        rate = float(rates[likelihood.argmax()])
        score = (gained - lost - n * end) / math.sqrt(n * (2 * rate + end - end**2))
        assert score == pytest.approx(sign * Z, abs=5e-3)


def test_gains_and_losses_mirror_each_other_and_stay_possible() -> None:
    low, high = score_interval(9, 3, 100)
    assert score_interval(3, 9, 100) == pytest.approx((-high, -low))
    assert score_interval(0, 3, 3)[0] == -1.0 and -1 <= score_interval(0, 3, 3)[1] <= 1


def test_images_that_would_decide() -> None:
    # Nothing lost: z² / (n + z²) <= 0.01 from n = 99 z² = 380.3 on; the search is exact to about one in a hundred.
    assert images_to_decide(0, 0, 50, 0.01) == pytest.approx(381, abs=4)
    assert images_to_decide(0, 10, 1_000, 0.01) is None
    number = images_to_decide(3, 9, 540, 0.02)
    assert number is not None
    rates = 3 / 540, 9 / 540
    assert score_interval(rates[0] * number, rates[1] * number, number)[0] >= -0.02
    fewer = number * 0.97
    assert score_interval(rates[0] * fewer, rates[1] * fewer, fewer)[0] < -0.02


def test_images_that_would_prove_too_large_a_fall() -> None:
    number = images_to_decide(0, 4, 100, 0.01)
    assert number is not None and number > 100
    assert score_interval(0, 0.04 * number, number)[1] < -0.01


def test_exact_bounds_of_a_share() -> None:
    # Nothing seen in n: 1 - 0.05^(1/n); one in n and its mirror: solutions of the binomial tail.
    assert proportion_bounds(0, 299)[1] == pytest.approx(1 - 0.05 ** (1 / 299))
    low, high = proportion_bounds(3, 100)
    assert sum(math.comb(100, k) * high**k * (1 - high) ** (100 - k) for k in range(4)) == pytest.approx(0.05)
    assert sum(math.comb(100, k) * low**k * (1 - low) ** (100 - k) for k in range(3)) == pytest.approx(0.95)


def test_images_that_bound_a_share() -> None:
    assert images_to_bound(0, 100, 0.01) == pytest.approx(299, abs=3)
    assert images_to_bound(1, 100, 0.01) is None
    more = images_to_bound(4, 200, 0.01)
    assert more is not None and proportion_bounds(round(more * 0.02), more)[0] > 0.01


@pytest.mark.parametrize("threshold", [1, 2, 3, 100, 12_345])
def test_the_smallest_number(threshold: int) -> None:
    found = smallest_number(lambda n: n >= threshold)
    assert found is not None and threshold <= found <= threshold * 1.01 + 1
    assert smallest_number(lambda n: False) is None
