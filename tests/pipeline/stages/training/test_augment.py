"""Random changes of images: repeatable, only those that keep the label, and one by one as for the whole set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgewise.errors import RequestError
from edgewise.stages.training.augment import Augment, Changes, augment_images, change_images, draw_changes


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augment_repeats_itself() -> None:
    images = torch.randint(1, 256, (16, 3, 8, 6), dtype=torch.uint8, generator=draw())
    how = Augment(crop=2, flip=True, cutout=3)
    one, again, other = (augment_images(images, how, False, draw(seed)) for seed in (1, 1, 2))
    assert one.shape == images.shape and one.dtype == torch.uint8
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one, images)


def mirrored(result: Tensor, images: Tensor) -> int:
    assert all(torch.equal(r, i) or torch.equal(r, i.flip(2)) for r, i in zip(result, images, strict=True))
    return sum(not torch.equal(r, i) for r, i in zip(result, images, strict=True))


def test_images_are_mirrored_only_where_allowed() -> None:
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=draw())
    counts = {
        (flip, of_data): mirrored(augment_images(images, Augment(crop=0, flip=flip), of_data, draw(1)), images)
        for flip in (None, True, False)
        for of_data in (True, False)
    }
    assert {key for key, count in counts.items() if 5 < count < 35} == {(None, True), (True, True), (True, False)}
    assert counts[None, False] == counts[False, True] == counts[False, False] == 0


def test_bad_augmentation_is_refused() -> None:
    with pytest.raises(RequestError, match=r"Augment\.crop"):
        Augment(crop=-1)


def test_a_crop_by_hand() -> None:
    """Row 2 of the image padded by 1 is its row 1; column 0 is padding."""
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    wanted = torch.tensor([[0, 4, 5], [0, 7, 8], [0, 0, 0]], dtype=torch.uint8)
    done = Changes(corner=torch.tensor([[2], [0]]), mirrored=torch.tensor([False]), middle=torch.zeros(2, 1))
    assert torch.equal(change_images(image, Augment(crop=1), done)[0, 0], wanted)
    flipped = Changes(corner=done.corner, mirrored=torch.tensor([True]), middle=done.middle)
    assert torch.equal(change_images(image, Augment(crop=1), flipped)[0, 0], wanted.flip(1))


def test_a_square_by_hand() -> None:
    """Side 2 about row 2, column 1 of 4: every pixel at most one away is set to zero."""
    image = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    done = Changes(
        corner=torch.zeros(2, 1, dtype=torch.int64), mirrored=torch.tensor([False]), middle=torch.tensor([[0.5], [0.3]])
    )
    wanted = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=torch.uint8)
    assert torch.equal(change_images(image, Augment(crop=0, cutout=2), done)[0, 0], wanted)


def test_a_batch_is_changed_as_the_whole_set_is() -> None:
    images = torch.randint(1, 256, (16, 3, 8, 6), dtype=torch.uint8, generator=draw())
    how = Augment(crop=2, flip=True, cutout=3)
    changes = draw_changes(16, how, False, draw(1))
    which = torch.tensor([5, 0, 11])
    assert torch.equal(change_images(images[which], how, changes.of(which)), change_images(images, how, changes)[which])
