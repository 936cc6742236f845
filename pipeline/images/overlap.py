"""Test images that are there twice, or that training sees as well: what is measured on them is not what it seems."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from edgewise.calib_data import Data, Part

MOST_BYTES = 2**30
"""Of all images together, above which they are not looked at: hashing them would take longer than it is worth."""
_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Equal images, by every byte; numbers of images of the test part."""

    n: int
    """Test images."""
    repeated: tuple[int, ...]
    """Those that came before in the test part."""
    leaked: tuple[int, ...]
    """Those that are among the training or calibration images."""


def find_overlap(data: Data) -> Overlap | None:
    """The test images that are no new ones; None where the set is too large to look."""
    images = sum(len(part) for part in (data.train, data.calib, data.test))
    channels, height, width = data.shape
    if images * channels * height * width > MOST_BYTES:
        return None
    known_digests = {*_digests(data.train), *_digests(data.calib)}
    digests: set[bytes] = set()
    repeats, leaks = [], []
    for index, digest in enumerate(_digests(data.test)):
        if digest in known_digests:
            leaks.append(index)
        if digest in digests:
            repeats.append(index)
        digests.add(digest)
    return Overlap(n=len(data.test), repeated=tuple(repeats), leaked=tuple(leaks))


def _digests(part: Part) -> Iterator[bytes]:
    for index in torch.split(torch.arange(len(part)), _BATCH):
        for image in part.batch(index):
            yield hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()
