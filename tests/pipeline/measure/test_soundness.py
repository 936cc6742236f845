"""Answers that are none."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.measure.soundness import correct_images, soundness_of
from edgewise.report.rows import Verdict
from edgewise.verify.gates import on_soundness

LABELS = np.array([0, 1, 2, 1])
GOOD = np.eye(3, dtype=np.float32)[LABELS]


def test_good_answers_are_counted() -> None:
    found = soundness_of(GOOD, LABELS)
    assert (found.n, found.not_finite, found.classes_answered, found.classes_present) == (4, 0, 3, 3)
    assert on_soundness(found).verdict == "pass"
    assert correct_images(GOOD, LABELS).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_is_wrong_and_fails(value: float) -> None:
    answers = GOOD.copy()
    answers[3] = [0, value, 0]
    found = on_soundness(soundness_of(answers, LABELS))
    assert found.verdict == "fail" and "1 of 4 test images are no finite numbers" in found.reason
    assert correct_images(answers, LABELS).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("answers", "labels", "verdict"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 1], "fail"),
        ([2, 2, 2, 2], [0, 1, 0, 1], "fail"),
        ([0, 0, 1, 0], [0, 0, 0, 1], "pass"),
        ([0, 0, 0, 0], [0, 0, 0, 0], "pass"),
    ],
)
def test_always_the_same_class(answers: list[int], labels: list[int], verdict: Verdict) -> None:
    found = on_soundness(soundness_of(np.eye(3, dtype=np.float32)[answers], np.array(labels)))
    assert found.verdict == verdict
    assert ("one class only" in found.reason) == (verdict == "fail")


def test_only_nan() -> None:
    found = soundness_of(np.full((4, 3), np.nan, dtype=np.float32), LABELS)
    assert (found.not_finite, found.classes_answered) == (4, 0)
    assert on_soundness(found).verdict == "fail"


def test_what_was_not_looked_at_fails_nothing() -> None:
    assert on_soundness(None).verdict == "pass"
