"""Random changes of training images that keep their labels: drawn for many images, made on those of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from edgewise.settings import check_fields


@check_fields
@dataclass(frozen=True, kw_only=True)
class Augment:
    """Which changes are made."""

    crop: Annotated[int, Interval(ge=0, le=64)] = 4
    """Zero-pad by this many pixels and crop the original size at random (He et al. 2015, section 4.2); 0: off."""
    flip: bool | None = None
    """Mirror half of the images; None: where the data set says that a mirrored image keeps its label."""
    cutout: Annotated[int, Interval(ge=0, le=256)] = 0
    """Side of a square set to zero at a random place (DeVries and Taylor 2017, arXiv 1708.04552); 0: off."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """One change for each of N images."""

    corner: Tensor
    """Of the crop: int64 [2, N], rows and columns from the padded image's own."""
    mirrored: Tensor
    """bool [N]."""
    middle: Tensor
    """Of the square set to zero: float [2, N], fractions of height and width."""

    def of(self, which: Tensor) -> Changes:
        """Those of the images ``which``, int64 [B]."""
        return Changes(corner=self.corner[:, which], mirrored=self.mirrored[which], middle=self.middle[:, which])


def draw_changes(count: int, how: Augment, flip: bool, draw: torch.Generator) -> Changes:
    """Random changes for ``count`` images, the same for the same generator state; ``flip``: what the data set says."""
    corner = torch.randint(0, 2 * how.crop + 1, (2, count), generator=draw)
    mirror = torch.rand(count, generator=draw) < 0.5
    if not (flip if how.flip is None else how.flip):
        mirror = torch.zeros_like(mirror)
    return Changes(corner=corner, mirrored=mirror, middle=torch.rand(2, count, generator=draw))


def change_images(images: Tensor, how: Augment, changes: Changes) -> Tensor:
    """Changed copies of uint8 images [B, C, H, W]."""
    count, channels, height, width = images.shape
    if how.crop:
        with_border = F.pad(images, (how.crop,) * 4)
        top, left = changes.corner
        rows = (top[:, None] + torch.arange(height))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width))[:, None, None, :]
        images = with_border[
            torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns
        ]
    if changes.mirrored.any():
        images = torch.where(changes.mirrored[:, None, None, None], images.flip(3), images)
    if how.cutout:
        images = images * _outside_square(changes.middle, height, width, how.cutout)[:, None]
    return images


def augment_images(images: Tensor, how: Augment, flip: bool, draw: torch.Generator) -> Tensor:
    """Randomly changed copies of uint8 images [B, C, H, W]; the same for the same generator state."""
    return change_images(images, how, draw_changes(len(images), how, flip, draw))


def _outside_square(middle: Tensor, height: int, width: int, side: int) -> Tensor:
    """bool [B, H, W]."""
    row, column = (middle * torch.tensor([[height], [width]])).long()
    down = (torch.arange(height) - row[:, None]).abs() * 2 <= side
    across = (torch.arange(width) - column[:, None]).abs() * 2 <= side
    outside: Tensor = ~(down[:, :, None] & across[:, None, :])
    return outside
