"""Whether a network is as sure as it is right: the expected calibration error, and what it rose by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


BINS = 15
"""Equal parts of the confidences from 0 to 1."""
_RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Over the whole test set; all are fractions."""

    error: float
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3), 15 bins."""
    rise: float = 0.0
    """This row's minus the baseline's."""
    ci95: tuple[float, float] = (0.0, 0.0)
    """Of the rise: a percentile bootstrap over the images, which both answered (Efron and Tibshirani 1993)."""


def calibration_of(
    answers: NDArray[np.floating], baseline: NDArray[np.floating], labels: NDArray[np.int64]
) -> Calibration | None:
    """Of ``answers`` beside the ``baseline``'s, both logits or probabilities [n, classes], to images of ``labels`` [n].

    None where an answer is not a finite number: no confidence is one then.
    """
    import numpy as np

    ours, theirs = _gaps(answers, labels), _gaps(baseline, labels)
    if ours is None:
        return None
    error = _error(*ours)
    if theirs is None or answers is baseline:
        return Calibration(error=error)
    rng, n = np.random.default_rng(0), len(labels)
    rises = np.empty(_RESAMPLES)
    for trial in range(_RESAMPLES):
        sample = rng.integers(0, n, n)
        rises[trial] = _error(ours[0][sample], ours[1][sample]) - _error(theirs[0][sample], theirs[1][sample])
    low, high = (float(end) for end in np.quantile(rises, (0.025, 0.975)))
    return Calibration(error=error, rise=error - _error(*theirs), ci95=(low, high))


def _gaps(
    answers: NDArray[np.floating], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """How much surer than right each image's answer is, [n], and the bin of its confidence, [n]."""
    import numpy as np

    if not len(answers) or not np.isfinite(answers).all():
        return None
    shares = _probabilities(np.asarray(answers, dtype=np.float64))
    confidence = shares.max(axis=1)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    return confidence - (answers.argmax(axis=1) == labels), bins


def _probabilities(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax of logits; answers that are probabilities already, as a file with a softmax gives, stay as they are."""
    import numpy as np

    if (answers >= 0).all() and np.abs(answers.sum(axis=1) - 1).max() < 0.01:
        return answers
    powers = np.exp(answers - answers.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _error(gaps: NDArray[np.float64], bins: NDArray[np.int64]) -> float:
    import numpy as np

    return float(np.abs(np.bincount(bins, weights=gaps, minlength=BINS)).sum() / len(gaps))
