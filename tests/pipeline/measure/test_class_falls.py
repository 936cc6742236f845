"""Classes that fell, by probabilities worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.measure.class_falls import class_falls


def outcomes(per_class: dict[int, tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ours, baseline, labels): of each class so many told by both, gained and lost."""
    ours, base, labels = [], [], []
    for label, (both, gained, lost) in per_class.items():
        ours += [True] * (both + gained) + [False] * lost
        base += [True] * both + [False] * gained + [True] * lost
        labels += [label] * (both + gained + lost)
    return np.array(ours), np.array(base), np.array(labels)


def test_a_class_that_lost_certainly_is_named() -> None:
    # Class 2 lost 8 and gained none: 2^-8, times two classes (Holm's first factor).
    (found,) = class_falls(*outcomes({1: (50, 1, 1), 2: (40, 0, 8)}))
    assert (found.label, found.n, found.gained, found.lost) == (2, 48, 0, 8)
    assert found.p_value == pytest.approx(2 / 2**8)
    assert found.fall == pytest.approx(8 / 48)


def test_the_more_classes_the_more_it_takes() -> None:
    quiet = dict.fromkeys(range(3, 15), (50, 0, 0))
    assert class_falls(*outcomes({2: (40, 0, 8)} | quiet)) == ()  # 13 / 256 > 0.05
    assert len(class_falls(*outcomes({2: (40, 0, 9)} | quiet))) == 1  # 13 / 512


def test_gains_and_chance_are_no_fall() -> None:
    assert class_falls(*outcomes({0: (10, 20, 0), 1: (30, 4, 6)})) == ()
    same = np.ones(5, dtype=bool)
    assert class_falls(same, same, np.zeros(5, dtype=int)) == ()
    assert class_falls(same[:0], same[:0], np.zeros(0, dtype=int)) == ()


def test_the_largest_fall_comes_first() -> None:
    found = class_falls(*outcomes({0: (200, 0, 20), 1: (20, 0, 20)}))
    assert [fall.label for fall in found] == [1, 0]


@pytest.mark.slow
def test_where_nothing_fell_hardly_a_class_is_named() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    named = 0
    for _ in range(200):
        base = rng.random(1_000) < 0.9
        flips = rng.random(1_000) < 0.08
        named += bool(
            class_falls(base ^ flips & (rng.random(1_000) < 0.5), base ^ flips & (rng.random(1_000) < 0.5), labels)
        )
    assert named <= 16  # at most one in twenty is stated; 16 of 200 is the 97.5th percentile of that
