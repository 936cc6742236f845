"""Labels that mean other classes than the network's outputs do: counted from one, or in another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BETTER = 0.3
"""Share of the images by which another order of the labels must fit better to be believed: far above what choosing the
best order of an untrained network's answers gains."""
_ENOUGH = 10
"""Images a class from which all orders are tried, and not only shifts by one."""


@dataclass(frozen=True, kw_only=True)
class LabelOrder:
    """Top-1 with the labels as they are, and as they would fit best."""

    top1: float
    best: float
    shift: int | None = None
    """By how much the labels must be raised to fit best; None: by no single number."""

    @property
    def misfit(self) -> bool:
        """Whether the labels are in another order than the answers."""
        return self.best >= self.top1 + BETTER


def label_order(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> LabelOrder:
    """How well labels [n] fit the classes that a network put the images into, [n], in this and in any other order.

    The best order of all is the assignment that the confusion matrix prefers (Kuhn 1955).
    """
    top1 = float(np.mean(predicted == labels))
    shifts = {shift: float(np.mean(predicted == labels + shift)) for shift in (-1, 1)}
    shift = max(shifts, key=lambda by: shifts[by])
    if shifts[shift] >= top1 + BETTER or len(labels) < _ENOUGH * classes:
        return LabelOrder(top1=top1, best=max(top1, shifts[shift]), shift=shift if shifts[shift] > top1 else None)
    from scipy.optimize import linear_sum_assignment

    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, predicted), 1)
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    return LabelOrder(top1=top1, best=float(confusion[rows, columns].sum() / len(labels)))
