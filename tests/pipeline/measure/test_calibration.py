"""The expected calibration error against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.measure.calibration import calibration_of


def test_the_error_is_how_far_confidence_and_accuracy_lie_apart_in_each_bin() -> None:
    # Two images at 0.9, one of them right: 0.4 apart; two at 0.6, both right: 0.4 apart. All four: 0.4.
    answers = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    found = calibration_of(answers, answers, np.array([0, 1, 0, 0]))
    assert found is not None
    assert found.error == pytest.approx(0.4)
    assert (found.rise, found.ci95) == (0.0, (0.0, 0.0))


def test_logits_and_their_softmax_have_one_error() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (300, 7)), rng.integers(0, 7, 300)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    one, other = calibration_of(logits, logits, labels), calibration_of(shares, shares, labels)
    assert one is not None and other is not None
    assert one.error == pytest.approx(other.error)


def drawn(n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers whose softmax is the chance of each class, and labels drawn by it; the logits then ``scale`` times as large."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (n, 5))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in shares])
    return scale * logits, labels


def test_what_is_as_sure_as_it_is_right_has_hardly_any_error_and_what_is_too_sure_has_one() -> None:
    calm, labels = drawn(4_000, 1.0)
    sure, _ = drawn(4_000, 4.0)
    found = calibration_of(sure, calm, labels)
    base = calibration_of(calm, calm, labels)
    assert found is not None and base is not None
    assert base.error < 0.03 < 0.2 < found.error
    assert found.rise == pytest.approx(found.error - base.error)
    assert found.ci95[0] < found.rise < found.ci95[1] and found.ci95[0] > 0.15


def test_the_same_answers_twice_rose_by_nothing() -> None:
    calm, labels = drawn(500, 1.0)
    found = calibration_of(calm.copy(), calm, labels)
    assert found is not None and (found.rise, found.ci95) == (0.0, (0.0, 0.0))


def test_answers_that_are_no_numbers_have_no_confidence() -> None:
    calm, labels = drawn(50, 1.0)
    broken = calm.copy()
    broken[3, 2] = np.nan
    assert calibration_of(broken, calm, labels) is None
    found = calibration_of(calm, broken, labels)
    assert found is not None and found.rise == 0.0, "nothing to rise from"
