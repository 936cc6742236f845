"""A data set at another image size than its own."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgewise.calib_data import Data, Part


@dataclass(frozen=True)
class Resized:
    """A part whose images are resized as they are read."""

    source: Part
    size: tuple[int, int]
    """Height, width."""
    chosen: Tensor | None = None
    """Which of the source's images (int64 [N]) these are; None: all."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return self.source.labels if self.chosen is None else self.source.labels[self.chosen]

    def __len__(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    def batch(self, index: Tensor) -> Tensor:
        """The images at ``index`` (int64 [B]) as uint8 [B, C, H, W]."""
        return resize_images(self.source.batch(index if self.chosen is None else self.chosen[index]), self.size)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B, C, H, W] -> uint8 at ``size`` (height, width): bilinear, antialiased where it shrinks, corners apart."""
    if tuple(images.shape[2:]) == size:
        return images
    resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def resize_data(data: Data, size: tuple[int, int]) -> Data:
    """``data`` with every image at ``size`` (height, width), resized from the set's own; itself where it has that size."""
    if data.shape[1:] == size:
        return data
    return dataclasses.replace(
        data,
        train=Resized(_own_part(data.train), size),
        calib=Resized(_own_part(data.calib), size),
        test=Resized(_own_part(data.test), size),
        shape=(data.shape[0], *size),
        digest=hashlib.sha256(f"{data.digest} at {size} bilinear, antialiased".encode()).hexdigest(),
    )


def sample_resized(part: Part, size: tuple[int, int], most: int) -> Resized:
    """At most ``most`` images of ``part``, evenly spaced over it, at ``size`` (height, width)."""
    return Resized(_own_part(part), size, sample_evenly(len(part), most))


def sample_evenly(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` numbers from 0, evenly spaced: int64 [min(count, most)]."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def _own_part(part: Part) -> Part:
    return part.source if isinstance(part, Resized) else part
