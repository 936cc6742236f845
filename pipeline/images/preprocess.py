"""Preprocessing and softmax as part of the network, so that a device feeds a camera's bytes and reads probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgewise.settings import check_fields

if TYPE_CHECKING:
    from torch import Tensor


Fed = Literal["normalised", "channels-last", "bytes"]
"""What a file takes: float32 [N, C, H, W], normalised by the caller; the same as [N, H, W, C], which is Android's convention; or
a camera's bytes, uint8 [N, H, W, C]."""


def is_channels_last(fed: Fed) -> bool:
    """Whether the channels of what a file takes come last."""
    return fed != "normalised"


@check_fields
@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What a file does itself, beside the network."""

    fed: Fed = "normalised"
    """``bytes``: the file divides by 255 and normalises with the model's mean and deviation."""
    softmax: bool = False
    """True: the file answers with probabilities instead of logits."""

    def finished(self, logits: Tensor) -> Tensor:
        """What the file answers where the network answers ``logits`` [N, classes]."""
        return logits.softmax(1) if self.softmax else logits


OUTSIDE = Preprocess()
"""Everything is left to the caller: normalised images in, logits out."""


def blank_image(shape: tuple[int, int, int], fed: Fed) -> Tensor:
    """A blank image [1, …] as a file takes it; ``shape``: channels, height, width."""
    import torch

    channels, height, width = shape
    if is_channels_last(fed):
        return torch.zeros(1, height, width, channels, dtype=torch.uint8 if fed == "bytes" else torch.float32)
    return torch.zeros(1, channels, height, width)
