"""Per-class figures, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgewise.measure.per_class import distinct_names, largest_falls, per_class, recall_by_name


def answering(predicted: list[int], classes: int) -> Tensor:
    """Logits whose largest is at each predicted class, the others falling with the distance from it."""
    at = torch.arange(classes, dtype=torch.float32)
    return torch.stack([-(at - p).abs() for p in predicted])


def test_counts_recall_and_balanced_accuracy() -> None:
    # Class 0: 2 of 3 right; class 1: 1 of 1; class 2: no image, answered once; class 3: 0 of 2.
    found = per_class(answering([0, 0, 2, 1, 0, 1], 4), torch.tensor([0, 0, 0, 1, 3, 3]))
    assert (found.images, found.right, found.answered) == ((3, 1, 0, 2), (2, 1, 0, 0), (3, 2, 1, 0))
    assert found.n == 6
    assert found.recall == {0: 2 / 3, 1: 1.0, 3: 0.0}
    assert found.balanced == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.never_right() == (3,)
    assert found.top5 is None and found.only_answer is None and found.not_finite == 0


def test_a_constant_answer_on_a_rare_class() -> None:
    labels = torch.tensor([0] * 546 + [1] * 14)
    found = per_class(answering([0] * 560, 2), labels)
    assert found.only_answer == 0
    assert sum(found.right) / found.n == pytest.approx(0.975)
    assert found.balanced == 0.5


def test_one_answer_is_no_fault_where_the_set_has_one_class() -> None:
    assert per_class(answering([1, 1], 3), torch.tensor([1, 1])).only_answer is None
    assert per_class(answering([2, 2], 3), torch.tensor([1, 1])).only_answer is None
    assert per_class(answering([1, 1], 3), torch.tensor([1, 0])).only_answer == 1


def test_top5_from_twenty_classes_on() -> None:
    # Around 10 the five highest are 8 … 12; ties do not reach a label at distance 3.
    labels = torch.tensor([10, 12, 13, 8])
    assert per_class(answering([10] * 4, 20), labels).top5 == 0.75
    assert per_class(answering([10] * 4, 19), labels).top5 is None


def test_answers_that_are_not_finite_are_wrong() -> None:
    answers = answering([0, 1, 1], 20)
    answers[0, 5] = torch.nan
    answers[1, 1] = torch.inf
    found = per_class(answers, torch.tensor([0, 1, 1]))
    assert (found.not_finite, sum(found.right), sum(found.answered), found.top5) == (2, 1, 1, 1 / 3)


def test_names_that_come_twice_are_told_apart() -> None:
    found = per_class(answering([0, 1, 1], 3), torch.tensor([0, 1, 2]))
    assert distinct_names(["crane", "tench", "crane"]) == ["crane [0]", "tench", "crane [2]"]
    assert recall_by_name(found, ["crane", "tench", "crane"]) == {"crane [0]": 1.0, "tench": 1.0, "crane [2]": 0.0}


def test_largest_falls_come_first() -> None:
    before, after = {"a": 0.9, "b": 0.5, "c": 0.8, "d": 0.1}, {"a": 0.6, "b": 0.6, "c": 0.1, "e": 0.0}
    assert largest_falls(before, after, 5) == [("c", 0.8, 0.1), ("a", 0.9, 0.6)]
    assert largest_falls(before, after, 1) == [("c", 0.8, 0.1)]
