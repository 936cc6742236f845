"""Through a network to its logits, for every image of a set."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgewise.calib_data import Part
from edgewise.images.normalise import Normalisation, feed
from edgewise.images.preprocess import Fed
from edgewise.stage import Track, silent

Network = Callable[[Tensor], Tensor]


@torch.inference_mode()
def compute_logits(
    network: Network,
    part: Part,
    spec: Normalisation,
    *,
    batch: int = 256,
    track: Track = silent,
    label: str = "evaluating",
    fed: Fed = "normalised",
) -> Tensor:
    """float32 [N, classes] for every image of a part, in its order. ``network`` takes what ``fed`` says."""
    chunks = track(torch.split(torch.arange(len(part)), batch), label, math.ceil(len(part) / batch))
    return torch.cat([network(feed(part.batch(chunk), spec, fed)).float().cpu() for chunk in chunks])
