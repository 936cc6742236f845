"""Images that are noise, for studies of speed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from edgewise import models
from edgewise.calib_data import Data
from edgewise.stage import Context


@dataclass(frozen=True)
class Noise:
    """Random images with random labels, the same for the same seed."""

    shape: tuple[int, int, int]
    classes: int = 10
    size: int = 1024
    seed: int = 0

    def __len__(self) -> int:
        return self.size

    @cached_property
    def labels(self) -> Tensor:
        """int64 [N]"""
        return torch.arange(self.size) % self.classes

    @cached_property
    def _images(self) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randint(256, (self.size, *self.shape), dtype=torch.uint8, generator=draw)

    def batch(self, index: Tensor) -> Tensor:
        """uint8 [B, C, H, W]"""
        return self._images[index]


def noise_context(model: str, device: str, folder: Path) -> Context:
    """What a stage is told, with images of the size of ``model``."""
    spec = models.get(model)
    train, calib, test = (Noise(spec.input_shape, seed=seed) for seed in range(3))
    classes = tuple(map(str, range(train.classes)))
    data = Data(
        name="noise", train=train, calib=calib, test=test, classes=classes, shape=spec.input_shape, digest="noise", flip=True
    )  # fmt: skip
    return Context(spec=spec, data=data, scratch=folder, device=device)
