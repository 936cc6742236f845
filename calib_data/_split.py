"""Seeded, stratified splits: which images are held out of a set that does not say so itself.

Only the raw 64-bit stream of PCG64 is used, which numpy keeps the same on every platform and in every version (NEP 19);
its shuffles and choices may change between versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.calib_data import DataError

Int64s = NDArray[np.int64]

TEST, CALIB = 0, 1
"""The streams of random numbers, one a purpose, so that the two splits of one set are independent."""

_MOST_CALIB = 1000
_FEW_CALIB = 64


def calib_count(images: int) -> int:
    """How many of so many training images are held out for calibration: a tenth, at least 1, at most 1,000."""
    return max(1, min(_MOST_CALIB, images // 10))


def judged_calib_count(images: int) -> int:
    """How many of so many images that nothing is trained on calibrate: a tenth, but 64 where that is at most a third."""
    return max(1, min(_MOST_CALIB, max(images // 10, min(_FEW_CALIB, images // 3))))


def draw_indices(images: int, count: int, seed: int, stream: int) -> tuple[Int64s, Int64s]:
    """Indices of ``count`` of so many images, drawn whatever their classes and shuffled, and of the rest in order.

    For images of which none has to be left of every class. Raises DataError for a seed below 0.
    """
    _check_seed(seed)
    order = _shuffle_indices(images, seed, stream)
    return order[:count], np.sort(order[count:])


def can_spare(labels: Int64s, count: int) -> bool:
    """Whether ``hold_out`` can take so many images and leave one of every class."""
    return count <= len(labels) - len(np.unique(labels))


def hold_out(labels: Int64s, count: int, seed: int, stream: int, source: str) -> tuple[Int64s, Int64s]:
    """Indices of ``count`` images held out in proportion to their classes, and of the rest.

    labels: [N]; stream: ``TEST`` or ``CALIB``; source: the file or folder to name in an error. The held-out indices are
    shuffled, so that any beginning of them is a fair sample; the rest keep their order. At least one image of every
    class stays in the rest. Raises DataError where that cannot be, and for a seed below 0.
    """
    _check_seed(seed)
    present, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if count > len(labels) - len(present):
        raise DataError(
            f"{source}: {count} images are to be held out and one of each class kept, wanted at least "
            f"{count + len(present)} images, found {len(labels)} of {len(present)} classes; add images"
        )
    order = _shuffle_indices(len(labels), seed, stream)
    is_taken = np.zeros(len(labels), dtype=bool)
    for position, quota in enumerate(_quotas(sizes.astype(np.int64), count)):
        is_taken[order[group[order] == position][:quota]] = True
    return order[is_taken[order]], np.flatnonzero(~is_taken).astype(np.int64)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise DataError(f"a seed of 0 or more is wanted, {seed} was found; give another")


def _shuffle_indices(count: int, seed: int, stream: int) -> Int64s:
    keys = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _quotas(sizes: Int64s, count: int) -> Int64s:
    """Largest-remainder shares of ``count``, each below its class's size; ties go to the lower class."""
    total = int(sizes.sum())
    quotas = np.minimum(sizes * count // total, sizes - 1)
    order = np.argsort(-(sizes * count % total), kind="stable")
    while (remaining := count - int(quotas.sum())) > 0:
        open_classes = order[quotas[order] < sizes[order] - 1]
        quotas[open_classes[:remaining]] += 1
    return quotas
