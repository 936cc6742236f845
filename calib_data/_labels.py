"""What has to be true of labels, whatever file they come from."""

from __future__ import annotations

import numpy as np

from edgewise.calib_data import DataError
from edgewise.calib_data._split import Int64s


def check_range(labels: Int64s, classes: int, source: str) -> None:
    """Raise DataError, naming ``source`` and the first such image, if a label is not in 0 … classes − 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{source}: labels in 0 … {classes - 1} are wanted, image {wrong[0]} has label {labels[wrong[0]]} "
            f"({len(wrong)} of {len(labels)} are out of range); number the classes from 0, or get the file again"
        )


def check_classes(labels: Int64s, classes: int, source: str, first: int = 0) -> None:
    """Raise DataError for labels of fewer than two classes, or if a class from ``first`` on has no image."""
    counts = np.bincount(labels, minlength=classes)
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"{source}: at least two classes are wanted, {np.count_nonzero(counts)} was found among "
            f"{len(labels)} labels; add images of another class"
        )
    empty = [label for label in range(first, classes) if not counts[label]]
    if empty:
        raise DataError(
            f"{source}: an image of each of the {classes} classes is wanted, none was found of class {empty[0]} "
            f"({len(empty)} are empty); add images, or number the classes without a gap"
        )


def check_counts(images: int, images_source: str, labels: int, labels_source: str) -> None:
    """Raise DataError unless there is one label an image, and at least one image."""
    if images != labels:
        raise DataError(
            f"one label an image is wanted, found {images} images in {images_source} and {labels} labels in "
            f"{labels_source}; take both from the same release"
        )
    if not images:
        raise DataError(f"{images_source}: images are wanted, found none; add some")
