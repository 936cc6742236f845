"""Labels in another order than the network's outputs are told from a network that is only bad."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.measure.label_order import label_order
from edgewise.verify.gates import on_labels

RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 10, 600)


def answered(right: float, classes: int = 10) -> np.ndarray:
    """Classes of which a share is the true one and the others are drawn at random."""
    return np.where(RNG.random(len(TRUE)) < right, TRUE, RNG.integers(0, classes, len(TRUE)))


@pytest.mark.parametrize(("shift", "raise_by"), [(1, -1), (-1, 1)])
def test_labels_off_by_one(shift: int, raise_by: int) -> None:
    found = label_order(answered(0.9), TRUE + shift, 12)
    assert found.misfit and found.shift == raise_by and found.best > 0.85
    judged = on_labels(found)
    assert judged.verdict == "fail" and f"raised by {raise_by}" in judged.reason and judged.gate == "labels"


def test_labels_in_another_order() -> None:
    order = np.array([3, 0, 1, 2, 7, 9, 8, 4, 6, 5])
    found = label_order(answered(0.8), order[TRUE], 10)
    assert found.misfit and found.shift is None
    assert "in another order" in on_labels(found).reason


@pytest.mark.parametrize("right", [0.95, 0.5, 0.1, 0.0])
def test_a_network_good_or_bad_on_right_labels(right: float) -> None:
    found = label_order(answered(right), TRUE, 10)
    assert not found.misfit and on_labels(found).verdict == "pass"


def test_two_classes_swapped_are_no_other_order() -> None:
    swapped = np.where(TRUE == 1, 7, np.where(TRUE == 7, 1, TRUE))
    assert not label_order(answered(0.9), swapped, 10).misfit  # a fifth of the images, which top-1 tells


def test_with_few_images_of_many_classes_only_shifts_are_tried() -> None:
    labels = np.arange(500)
    predicted = RNG.permutation(500)
    assert not label_order(predicted, labels, 1_000).misfit
    assert label_order(labels + 1, labels, 1_000).misfit
