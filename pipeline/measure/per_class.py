"""What top-1 hides: how a network's answers are spread over the classes.

On a set with a rare class a constant answer has a high top-1 and is worth nothing; balanced accuracy (the mean of the
classes' recalls, Brodersen et al. 2010, equation 1) and the classes it answers at all say so. From ``TOP5_FROM``
classes on, top-5 is told too, as is usual for ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgewise.measure.values import Accuracy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

TOP5_FROM = 20
"""Classes from which on top-5 says something that top-1 does not."""


@dataclass(frozen=True, kw_only=True)
class PerClass:
    """Counts of one network's or file's answers over a test set, one entry a class, in the order of its outputs."""

    images: tuple[int, ...]
    """Test images of each class; 0 where the set has none."""
    right: tuple[int, ...]
    """How many of those were answered with their class."""
    answered: tuple[int, ...]
    """How many images of any class were answered with it."""
    in_top5: int | None
    """Images whose class is among the five highest answers; None below ``TOP5_FROM`` classes."""
    not_finite: int
    """Images with an answer that is not a finite number; they count as wrong."""

    @property
    def n(self) -> int:
        """Number of test images."""
        return sum(self.images)

    @property
    def recall(self) -> dict[int, float]:
        """Class -> share of its images that were answered with it; only classes with images."""
        return {index: self.right[index] / count for index, count in enumerate(self.images) if count}

    @property
    def balanced(self) -> float:
        """Mean recall over the classes that have images."""
        recalls = self.recall.values()
        return sum(recalls) / len(recalls)

    @property
    def top5(self) -> float | None:
        """Share of images whose class is among the five highest answers; None below ``TOP5_FROM`` classes."""
        return None if self.in_top5 is None else self.in_top5 / self.n

    @property
    def only_answer(self) -> int | None:
        """The one class that all images were answered with, where the set has images of others too; else None."""
        classes = [index for index, count in enumerate(self.answered) if count]
        constant = len(classes) == 1 and sum(count > 0 for count in self.images) > 1
        return classes[0] if constant else None

    def never_right(self) -> tuple[int, ...]:
        """The classes that have images and of which none was recognised."""
        return tuple(index for index, recall in self.recall.items() if recall == 0)


def per_class(answers: Tensor, labels: Tensor) -> PerClass:
    """Counts from logits or probabilities [N, classes] and the true classes, int64 [N], N at least 1.

    An image with an answer that is not a finite number has no answer: it is wrong, whatever its largest number is.
    """
    classes, finite = answers.shape[1], answers.isfinite().all(1)
    answered_classes = answers.argmax(1)
    correct = (answered_classes == labels) & finite
    top5 = in_five(answers, labels)
    return PerClass(
        images=_class_counts(labels, classes),
        right=_class_counts(labels[correct], classes),
        answered=_class_counts(answered_classes[finite], classes),
        in_top5=None if top5 is None else int(top5.sum()),
        not_finite=int((~finite).sum()),
    )


def in_five(answers: Tensor, labels: Tensor) -> NDArray[np.bool_] | None:
    """Which images [N] have their class among the five highest answers, in numbers; None below ``TOP5_FROM`` classes."""
    if answers.shape[1] < TOP5_FROM:
        return None
    is_among_five = answers.nan_to_num().topk(5).indices.eq(labels[:, None]).any(1) & answers.isfinite().all(1)
    is_right: NDArray[np.bool_] = is_among_five.numpy()
    return is_right


def with_classes(accuracy: Accuracy, answers: Tensor, labels: Tensor, classes: Sequence[str]) -> Accuracy:
    """``accuracy`` with the figures by class of the answers [N, classes] that it was measured on."""
    figures = per_class(answers, labels)
    return replace(accuracy, balanced=figures.balanced, top5=figures.top5, recall=recall_by_name(figures, classes))


def _class_counts(labels: Tensor, classes: int) -> tuple[int, ...]:
    return tuple(labels.bincount(minlength=classes).tolist())


def recall_by_name(figures: PerClass, classes: Sequence[str]) -> dict[str, float]:
    """Class name -> recall, in the order of the classes; a name that stands for two classes gets its number appended."""
    names = distinct_names(classes)
    return {names[index]: recall for index, recall in figures.recall.items()}


def distinct_names(classes: Sequence[str]) -> list[str]:
    """The class names, those that come twice told apart by the class's number."""
    several = {name for name in classes if list(classes).count(name) > 1} if len(set(classes)) < len(classes) else set()
    return [f"{name} [{index}]" if name in several else name for index, name in enumerate(classes)]


def largest_falls(before: Mapping[str, float], after: Mapping[str, float], most: int) -> list[tuple[str, float, float]]:
    """The classes whose recall fell most, the worst first, at most ``most``: name, recall before, recall after."""
    falls = [(name, before[name], recall) for name, recall in after.items() if name in before and recall < before[name]]
    return sorted(falls, key=lambda entry: (entry[2] - entry[1], entry[0]))[:most]
