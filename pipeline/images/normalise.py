"""From a camera's bytes to what a network is fed, and through a network to its logits."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edgewise.errors import RequestError


class Normalisation(Protocol):
    """What images are normalised with: a model's spec, or a file's card."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in units of 0 to 1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in units of 0 to 1."""


def normalise(images: Tensor, spec: Normalisation) -> Tensor:
    """uint8 [B, C, H, W] -> float32: divided by 255, then the spec's mean and deviation per channel."""
    channels = images.shape[1]
    images = _row_by_row(images)
    return (images.float() / 255 - _per_channel(spec.mean, channels)) / _per_channel(spec.std, channels)


def _row_by_row(images: Tensor) -> Tensor:
    """The images [B, C, H, W] in memory as their shape says, channel by channel and row by row: of one channel, other
    strides hold the same bytes, but have torch take its layers' outputs in another order, which ``view`` cannot read."""
    _, channels, height, width = images.shape
    usual = (channels * height * width, height * width, width, 1)
    return images if images.stride() == usual else images.clone(memory_format=torch.contiguous_format)


def channel_order(channels: int) -> str:
    """What an image's channels are, as it is told beside a file: readers here give RGB, never BGR."""
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    return torch.tensor(per_channel(values, channels)).view(1, -1, 1, 1)


def per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A spec's values for images of so many channels. Raises RequestError where they do not fit."""
    if len(values) == channels:
        return tuple(values)
    if len(set(values)) == 1 or (values and channels == 1):
        return (sum(values) / len(values),) * channels
    raise RequestError(f"the model normalises {len(values)} channels, the data has {channels}")
