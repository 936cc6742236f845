"""From a camera's bytes to what a network is fed, and through a network to its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from calib_data import Part
from pipeline.errors import RequestError
from pipeline.recipe import Track, silent


class Normalisation(Protocol):
    """What images are normalised with: a model's spec, or a file's card."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in units of 0 to 1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in units of 0 to 1."""


Network = Callable[[Tensor], Tensor]


def normalise(images: Tensor, spec: Normalisation) -> Tensor:
    """uint8 [B, C, H, W] -> float32: divided by 255, then the spec's mean and deviation per channel."""
    channels = images.shape[1]
    return (images.float() / 255 - _per_channel(spec.mean, channels)) / _per_channel(spec.std, channels)


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    if len(values) == channels:
        return torch.tensor(values).view(1, -1, 1, 1)
    if len(set(values)) == 1 or channels == 1:
        return torch.full((1, channels, 1, 1), sum(values) / len(values))
    raise RequestError(f"the model normalises {len(values)} channels, the data has {channels}")


@torch.inference_mode()
def logits(
    network: Network,
    part: Part,
    spec: Normalisation,
    *,
    batch: int = 256,
    track: Track = silent,
    label: str = "evaluating",
) -> Tensor:
    """float32 [N, classes] for every image of a part, in its order. ``network`` takes normalised images."""
    chunks = torch.split(torch.arange(len(part)), batch)
    return torch.cat([network(normalise(part.batch(c), spec)).float().cpu() for c in track(chunks, label, len(chunks))])
