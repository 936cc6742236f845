"""Parts in memory and their digest."""

import hashlib

import numpy as np
import torch

from edgewise.calib_data import Part
from edgewise.calib_data._parts import MemoryPart, in_memory, parts_digest, without_calib


def part(*values: int) -> MemoryPart:
    images = np.array(values, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return MemoryPart.of(images, np.array([value % 2 for value in values], dtype=np.int64))


def test_batch_gives_the_images_asked_for() -> None:
    held: Part = part(10, 20, 30)
    got = held.batch(torch.tensor([2, 0, 2]))
    assert got.dtype == torch.uint8
    assert got.shape == (3, 1, 1, 1)
    assert got.flatten().tolist() == [30, 10, 30]
    assert len(held) == 3


def test_digest_is_the_sha256_of_shapes_bytes_and_little_endian_labels() -> None:
    one, zero = bytes([1, *[0] * 7]), bytes(8)
    text = b"train (2, 1, 1, 1)\n" + bytes([1, 2]) + one + zero
    text += b"calib (1, 1, 1, 1)\n" + bytes([3]) + one + b"test (1, 1, 1, 1)\n" + bytes([4]) + zero
    assert parts_digest(part(1, 2), part(3), part(4)) == hashlib.sha256(text).hexdigest()


def test_digest_changes_with_an_image_a_label_the_order_and_the_split() -> None:
    first = parts_digest(part(1, 2), part(3), part(4))
    other_label = MemoryPart(torch.full((1, 1, 1, 1), 4, dtype=torch.uint8), torch.tensor([1]))
    others = [
        parts_digest(part(1, 6), part(3), part(4)),
        parts_digest(part(1, 2), part(3), other_label),
        parts_digest(part(2, 1), part(3), part(4)),
        parts_digest(part(1, 3), part(2), part(4)),
        parts_digest(part(1), part(2, 3), part(4)),
    ]
    assert len({first, *others}) == 6


def test_in_memory_takes_the_shape_from_the_images() -> None:
    data = in_memory("mine", part(1), part(2), part(3), ("even", "odd"), flip=True)
    assert (data.shape, data.classes, data.flip) == ((1, 1, 1), ("even", "odd"), True)


def test_calibration_is_taken_out_of_training() -> None:
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    train, calib = without_calib(images, np.arange(40) % 2, 0, "mine")
    assert (len(train), len(calib)) == (36, 4)
    assert sorted(torch.cat([train.images, calib.images]).flatten().tolist()) == list(range(40))
    assert (calib.labels == calib.images.flatten() % 2).all()
