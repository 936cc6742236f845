"""Whether answers are answers at all: numbers, and not always the same class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """What can be told of answers before any is right or wrong."""

    n: int
    not_finite: int
    """Images for which an answer is not a finite number."""
    classes_answered: int
    """Different classes among the answers."""
    classes_present: int
    """Different classes among the images."""


def soundness_of(answers: NDArray[np.float32], labels: NDArray[np.int64]) -> Soundness:
    """Of answers [n, classes] to images of the classes ``labels`` [n]."""
    import numpy as np

    finite = np.isfinite(answers).all(axis=1)
    return Soundness(
        n=len(answers),
        not_finite=int((~finite).sum()),
        classes_answered=len(np.unique(answers[finite].argmax(axis=1))) if finite.any() else 0,
        classes_present=len(np.unique(labels)),
    )


def correct_images(answers: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images [n] are put into their own class; one whose answers are not all numbers is not."""
    import numpy as np

    is_right: NDArray[np.bool_] = (answers.argmax(axis=1) == labels) & np.isfinite(answers).all(axis=1)
    return is_right
