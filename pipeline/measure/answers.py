"""Through a network to its logits, for every image of a set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgewise.calib_data import Part
from edgewise.images.feed import feed_images
from edgewise.images.normalise import Normalisation
from edgewise.images.preprocess import Fed
from edgewise.measure.batches import images_at_once, in_fastest_order
from edgewise.stage import Track, track_silently

Network = Callable[[Tensor], Tensor]

_WORTH_TRYING = 64
"""Images from which it pays to find out which order in memory is faster."""


@torch.inference_mode()
def compute_logits(
    network: Network,
    part: Part,
    spec: Normalisation,
    *,
    batch: int | None = None,
    track: Track = track_silently,
    label: str = "evaluating",
    fed: Fed = "normalised",
) -> Tensor:
    """float32 [N, classes] for every image of a part, in its order. ``network`` takes what ``fed`` says.

    ``batch``: images at once; None: as many as their activations allow. A module runs in the faster order in memory.
    """
    chunks = torch.split(torch.arange(len(part)), batch or _at_once(network, part))
    ready = (
        network if len(part) < _WORTH_TRYING else in_fastest_order(network, _answer_chunk(part, chunks[0], spec, fed))
    )
    progress = track(chunks, label, len(chunks), count=len(part))
    return torch.cat([ready(feed_images(part.batch(chunk), spec, fed)).float().cpu() for chunk in progress])


def _at_once(network: Network, part: Part) -> int:
    channels, height, width = part.batch(torch.tensor([0])).shape[1:]
    return images_at_once(network, (channels, height, width))


def _answer_chunk(part: Part, chunk: Tensor, spec: Normalisation, fed: Fed) -> Tensor:
    return feed_images(part.batch(chunk[:8]), spec, fed)
