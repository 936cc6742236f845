"""Data sets at another image size."""

from __future__ import annotations

import pickle

import torch

from edgewise import calib_data
from edgewise.images import resized

DATA = calib_data.load("digits")


def test_halving_averages_with_the_antialiasing_triangle() -> None:
    # Shrinking by two, the triangle reaches two pixels to each side of the centre: weights 1, 3, 3, 1 of 8.
    row = torch.tensor([0, 8, 16, 24, 32, 40, 48, 56], dtype=torch.uint8)
    image = row.expand(1, 1, 8, 8)
    assert resized.resize_images(image, (8, 4))[0, 0, 0, 1:3].tolist() == [
        (8 + 3 * 16 + 3 * 24 + 32) // 8,
        (24 + 96 + 120 + 48) // 8,
    ]
    assert resized.resize_images(image, (8, 8)) is image


def test_a_constant_image_stays_constant() -> None:
    for size in ((5, 7), (16, 3), (8, 32)):
        scaled = resized.resize_images(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), size)
        assert scaled.shape == (2, 3, *size) and scaled.dtype is torch.uint8 and int(scaled.min()) == 255


def test_data_at_another_size_keeps_labels_and_has_its_own_digest() -> None:
    larger = resized.resize_data(DATA, (12, 10))
    assert larger.shape == (1, 12, 10) and larger.digest not in (
        DATA.digest,
        resized.resize_data(DATA, (10, 12)).digest,
    )
    assert larger.test.batch(torch.tensor([3, 1])).shape == (2, 1, 12, 10)
    assert torch.equal(larger.test.labels, DATA.test.labels) and len(larger.train) == len(DATA.train)
    assert resized.resize_data(DATA, (8, 8)) is DATA
    assert pickle.loads(pickle.dumps(larger.calib)).size == (12, 10)  # noqa: S301 - our own bytes


def test_a_second_size_starts_from_the_images_of_the_set_itself() -> None:
    index = torch.arange(4)
    back = resized.resize_data(resized.resize_data(DATA, (3, 3)), (8, 8))
    assert torch.equal(back.test.batch(index), DATA.test.batch(index))


def test_a_sample_is_spread_over_the_part() -> None:
    taken = resized.sample_resized(resized.resize_data(DATA, (4, 4)).test, (8, 8), 3)
    assert len(taken) == 3
    assert torch.equal(taken.batch(torch.arange(3)), DATA.test.batch(torch.tensor([0, 269, 539])))
    assert torch.equal(taken.labels, DATA.test.labels[[0, 269, 539]])
    assert len(resized.sample_resized(DATA.test, (8, 8), 10_000)) == 540
