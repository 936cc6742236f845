"""How many images go through a network at once, and in which order in memory, so that neither memory nor time is wasted.

A batch whose activations outgrow the caches and the allocator's reuse is slower for each image, not faster: the kernel
hands out and clears the same pages again for every layer. EfficientNet-Lite0 at 224 × 224 takes a quarter of the time an
image in batches of 4 that it takes in batches of 64, on one core.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.measure.cost.totals import count_costs

BYTES_AT_ONCE = 64 * 2**20
"""Of activations that are alive at once, in one batch."""
SMALL_IMAGE = 2**14
"""Bytes of an image as float32 up to which any usual batch fits: 32 × 32 in colour has 12,288."""
LIKELY = 16
"""Peak of a network's activations as a multiple of its image, where it cannot be looked into (EfficientNet-B0's: 16)."""
MOST = 256
"""Images at once that are never exceeded."""

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def images_at_once(network: object, shape: Shape, most: int = MOST, budget: int = BYTES_AT_ONCE) -> int:
    """How many images [channels, height, width] to give ``network`` in one batch, at most ``most``.

    A module's by the peak of its activations; anything else, such as a file's runtime, by what a network's are likely to
    come to, ``LIKELY`` times the image. Images of at most ``SMALL_IMAGE`` bytes go ``most`` at once.
    """
    own = 4 * shape[0] * shape[1] * shape[2]
    if own <= SMALL_IMAGE:
        return most
    return max(1, min(most, budget // (_activation_bytes(network, shape) or LIKELY * own)))


def _activation_bytes(network: object, shape: Shape) -> int:
    """Peak of the activations for one image; 0 where ``network`` is no module, or none that can be looked into."""
    if not isinstance(network, nn.Module):
        return 0
    try:
        return count_costs(network, shape).peak_activation_bytes
    except RequestError:
        return 0  # whoever runs the network next says what is wrong with it


@dataclass(frozen=True)
class Ready:
    """A network as it answers fastest, and the order in memory in which it wants its images."""

    network: Callable[[Tensor], Tensor]
    order: torch.memory_format

    def __call__(self, images: Tensor) -> Any:
        """What the network answers to ``images`` [N, C, H, W]."""
        return self.network(images.contiguous(memory_format=self.order))


_SLOWER = 0.9
"""Share of the time below which the other order is taken: the two differ by rounding, and the usual one is repeatable."""


def in_fastest_order(network: Callable[[Tensor], Tensor], images: Tensor) -> Ready:
    """``network`` with its weights in the order in which it answers ``images`` [N, C, H, W] faster; it is left as it was.

    Tried are channels-first, in which it comes, and channels-last; small images, other callables and networks that cannot
    take channels-last images, or answer them otherwise than rounding explains, stay as they are.
    """
    usual = Ready(network, torch.contiguous_format)
    if not isinstance(network, nn.Module) or 4 * images[0].numel() <= SMALL_IMAGE or images.dim() != 4:
        return usual
    try:
        trial: Any = copy.deepcopy(network)
        other = Ready(trial.to(memory_format=torch.channels_last), torch.channels_last)
        if not torch.allclose(other(images), usual(images), rtol=1e-2, atol=1e-3):
            return usual
        return other if _time_batch(other, images) < _SLOWER * _time_batch(usual, images) else usual
    except Exception:  # the user's code may raise anything
        return usual


def _time_batch(network: Ready, images: Tensor) -> float:
    """The shortest of two calls, of the processor's time: others may be at work beside."""
    times = []
    for _ in range(2):
        start = time.process_time()
        network(images)
        times.append(time.process_time() - start)
    return min(times)
