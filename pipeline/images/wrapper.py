"""Preprocessing and softmax around a network, as it is captured for a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch import Tensor, nn
from edgewise.images.preprocess import OUTSIDE, Preprocess, blank_image, is_channels_last


class Wrapped(nn.Module):
    """A network with its preprocessing before it and, where asked for, a softmax behind it.

    Subtracting 255·mean and multiplying by 1/(255·std) is what dividing by 255, subtracting the mean and dividing by the
    deviation come to, in two operators instead of three.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, network: nn.Module, baking: Wrapper) -> None:
        super().__init__()
        self.network = network
        self.preprocess = baking.preprocess
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (baking.mean, baking.std)
        )
        self.register_buffer("mean", (255 * mean).float())
        self.register_buffer("factor", (1 / (255 * std)).float())

    def forward(self, images: Tensor) -> Tensor:
        """Images as ``preprocess.fed`` has them -> float32 [N, classes]."""
        if self.preprocess.fed == "bytes":
            # Cast first: XNNPACK moves floats about, bytes it leaves to slow generic code (ResNet-20: 0.27 ms, not 0.37).
            # A copy, not a view: strides of a view would enter the conditions under which the capture holds.
            images = (torch.permute_copy(images.float(), (0, 3, 1, 2)) - self.mean) * self.factor
        elif is_channels_last(self.preprocess.fed):
            images = torch.permute_copy(images, (0, 3, 1, 2))
        return self.preprocess.finished(self.network(images))


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """What is put around a network before it is captured for a file."""

    preprocess: Preprocess
    mean: tuple[float, ...]
    """Per channel, in units of 0 to 1."""
    std: tuple[float, ...]

    def around(self, network: nn.Module) -> nn.Module:
        """``network`` itself where nothing is put around it."""
        from edgewise.images.wrapper import Wrapped

        return network if self.preprocess == OUTSIDE else Wrapped(network, self)

    def example(self, shape: tuple[int, int, int]) -> Tensor:
        """A blank image [1, …] as the file takes it; ``shape``: channels, height, width."""
        return blank_image(shape, self.preprocess.fed)

    @property
    def sides(self) -> tuple[int, int]:
        """The input's dimensions that are height and width."""
        return (1, 2) if is_channels_last(self.preprocess.fed) else (2, 3)


NOTHING = Wrapper(preprocess=OUTSIDE, mean=(0.0,), std=(1.0,))
