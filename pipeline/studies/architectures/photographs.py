"""Crops of two photographs, cut to any image size: natural images that need no download."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgewise.calib_data import Data


class Crops:
    """A part of a data set: square crops of scikit-learn's two sample photographs, drawn by a seed and resized."""

    def __init__(self, count: int, shape: tuple[int, int, int], seed: int) -> None:
        self._images = _cut_crops(count, shape, seed)
        self.labels = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, C, H, W]."""
        return self._images[index]


def photograph_crops(shape: tuple[int, int, int], classes: int, count: int = 8) -> Data:
    """Crops as a data set whose parts share no crop; there is nothing to learn from it, only ranges to observe."""
    train, calib, test = (Crops(count, shape, seed) for seed in (1, 2, 3))
    names = tuple(map(str, range(classes)))
    return Data(name="photographs", train=train, calib=calib, test=test, classes=names, shape=shape, digest="sklearn")


def _cut_crops(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """uint8 [count, C, H, W]; one channel: the luma. Crops take 30 to 100 % of the photograph's shorter side."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    channels, height, width = shape
    generator = np.random.default_rng(seed)
    photos = [Image.fromarray(array) for array in load_sample_images().images]
    mode = "L" if channels == 1 else "RGB"
    crops = []
    for number in range(count):
        photo = photos[number % len(photos)].convert(mode)
        side = int(min(photo.size) * generator.uniform(0.3, 1.0))
        left, top = (int(generator.integers(0, length - side + 1)) for length in photo.size)
        crop = photo.resize((width, height), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        crops.append(torch.from_numpy(np.array(crop)).reshape(height, width, -1).permute(2, 0, 1))
    return torch.stack(crops)
