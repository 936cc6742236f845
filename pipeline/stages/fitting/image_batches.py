"""The images that fits and verdicts look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from edgewise.calib_data import Part
from edgewise.images.normalise import Normalisation, normalise
from edgewise.measure.batches import images_at_once
from edgewise.stage import Context

BATCH = 64


@dataclass(frozen=True, eq=False)
class Batches(Sequence[Tensor]):
    """Batches of images that are kept as bytes and normalised when they are asked for: a quarter of the memory."""

    images: tuple[Tensor, ...]
    """Each uint8 [B, C, H, W]."""
    spec: Normalisation
    device: str

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Tensor | Batches:
        """A batch, float32 [B, C, H, W] on the device; or some of the batches."""
        if isinstance(index, slice):
            return Batches(self.images[index], self.spec, self.device)
        return normalise(self.images[index], self.spec).to(self.device)

    def __iter__(self) -> Iterator[Tensor]:
        return (normalise(batch, self.spec).to(self.device) for batch in self.images)

    def first(self, count: int) -> Tensor:
        """The first ``count`` images as one batch."""
        batches = -(-count // max(1, len(self.images[0])))
        return torch.cat(list(self[:batches]))[:count]


def batches_of(
    part: Part, index: Tensor, ctx: Context, network: nn.Module | None = None, most: int = BATCH, fewest: int = 1
) -> Batches:
    """The images of a part at ``index`` (int64 [N]), at most ``most`` a batch, fewer where ``network`` needs much memory,
    though never under ``fewest`` for that."""
    size = most if network is None else max(fewest, images_at_once(network, ctx.input_shape, most))
    return Batches(tuple(part.batch(part_index) for part_index in torch.split(index, size)), ctx.spec, ctx.device)


def draw_batches(
    part: Part, count: int, ctx: Context, network: nn.Module | None = None, most: int = BATCH, fewest: int = 1
) -> Batches:
    """Batches of ``count`` images of a part (all where it has fewer), drawn by the seed, normalised, on the device.

    ``network``: what they go through, so that large images come in smaller batches, as ``batches_of`` does.
    """
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(ctx.seed))[:count]
    return batches_of(part, order, ctx, network, most, fewest)
