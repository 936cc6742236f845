"""Stratified splits, against shares worked out by hand."""

import numpy as np
import pytest

from edgewise.calib_data import DataError
from edgewise.calib_data._split import CALIB, TEST, calib_count, hold_out


def labels_of(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)


@pytest.mark.parametrize(("images", "expected"), [(3, 1), (99, 9), (9_999, 999), (50_000, 1000)])
def test_calib_count(images: int, expected: int) -> None:
    assert calib_count(images) == expected


def test_shares_are_those_of_the_largest_remainders() -> None:
    # 10 of 50 from 25, 17 and 8: 5.0, 3.4 and 1.6, so 5, 3 and 1, and the tenth to the third class.
    labels = labels_of(25, 17, 8)
    taken, rest = hold_out(labels, 10, 0, TEST, "a set")
    assert np.bincount(labels[taken]).tolist() == [5, 3, 2]
    assert sorted([*taken.tolist(), *rest.tolist()]) == list(range(50))
    assert rest.tolist() == sorted(rest.tolist())


def test_one_image_of_each_class_stays() -> None:
    # The share of the single image would be 0.8, the largest remainder; it stays nevertheless.
    labels = labels_of(9, 1)
    taken, rest = hold_out(labels, 8, 3, TEST, "a set")
    assert np.bincount(labels[taken], minlength=2).tolist() == [8, 0]
    assert np.bincount(labels[rest]).tolist() == [1, 1]


def test_split_is_the_same_everywhere() -> None:
    taken, _ = hold_out(labels_of(6, 6), 4, 7, CALIB, "a set")
    keys = np.random.PCG64(np.random.SeedSequence([7, 1])).random_raw(12)
    # By hand from the keys: the two smallest of each class, in the order of their keys.
    chosen = [*np.argsort(keys[:6])[:2], *(6 + np.argsort(keys[6:])[:2])]
    assert taken.tolist() == sorted(chosen, key=lambda index: keys[index])


def test_seed_and_purpose_change_the_split() -> None:
    labels = labels_of(50, 50)
    splits = [hold_out(labels, 20, seed, stream, "a set")[0].tolist() for seed in (0, 1) for stream in (TEST, CALIB)]
    assert len({tuple(split) for split in splits}) == 4
    assert hold_out(labels, 20, 0, TEST, "a set")[0].tolist() == splits[0]


def test_held_out_images_are_in_no_order_of_classes() -> None:
    labels = labels_of(500, 500)
    taken, _ = hold_out(labels, 200, 0, CALIB, "a set")
    assert 30 <= labels[taken[:100]].sum() <= 70


def test_too_few_images() -> None:
    with pytest.raises(DataError, match=r"mine: 2 images are to be held out.*at least 4 images, found 3 of 2"):
        hold_out(labels_of(2, 1), 2, 0, TEST, "mine")


def test_negative_seed() -> None:
    with pytest.raises(DataError, match="0 or more is wanted, -1 was found"):
        hold_out(labels_of(5, 5), 2, -1, TEST, "mine")
