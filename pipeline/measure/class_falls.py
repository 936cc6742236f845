"""Classes that a network tells less well than the baseline does, though the whole may look the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


LEVEL = 0.05
"""Chance of naming any class where none has fallen."""


@dataclass(frozen=True, kw_only=True)
class ClassFall:
    """A class of which certainly fewer images are told right than by the baseline."""

    label: int
    n: int
    """Test images of the class."""
    gained: int
    """Of them, told right by this network alone."""
    lost: int
    """Told right by the baseline alone."""
    p_value: float
    """McNemar's exact test, one-sided, times what Holm's correction over all classes asks."""

    @property
    def fall(self) -> float:
        """Share of the class's images lost: 0.1 = ten points."""
        return (self.lost - self.gained) / self.n


def class_falls(
    correct: NDArray[np.bool_], baseline: NDArray[np.bool_], labels: NDArray[np.int64]
) -> tuple[ClassFall, ...]:
    """The classes that fell, the largest fall first; all arrays are [n], of the same images.

    One exact McNemar test a class, of the one side that is a loss (McNemar 1947), corrected over the classes by Holm
    (Scandinavian Journal of Statistics 6, 1979): the chance of naming any class wrongly is at most ``LEVEL``.
    """
    import numpy as np
    from statsmodels.stats.multitest import multipletests

    classes = np.unique(labels)
    if not len(classes):
        return ()
    gains, losses = (
        np.array([int(np.sum(which & (labels == label))) for label in classes])
        for which in (correct & ~baseline, baseline & ~correct)
    )
    p_values = multipletests(_fall_chances(gains, losses), alpha=LEVEL, method="holm")[1]
    falls = [
        ClassFall(
            label=int(label), n=int(np.sum(labels == label)), gained=int(up), lost=int(down), p_value=float(p_value)
        )
        for label, up, down, p_value in zip(classes, gains, losses, p_values, strict=True)
        if p_value < LEVEL
    ]
    return tuple(sorted(falls, key=lambda entry: -entry.fall))


def _fall_chances(gained: NDArray[np.int64], lost: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chance of so few gains or fewer among the changed images, were gain and loss equally likely."""
    from scipy.stats import binom

    chances: NDArray[np.float64] = binom.cdf(gained, gained + lost, 0.5)
    return chances
