"""What a network or a written file is fed, as it wants it; a network in training is fed normalised images alone."""

from __future__ import annotations

from torch import Tensor

from edgewise.images.normalise import Normalisation, normalise
from edgewise.images.preprocess import Fed, is_channels_last


def feed_images(images: Tensor, spec: Normalisation, fed: Fed) -> Tensor:
    """uint8 [B, C, H, W] -> what a network or a file is fed: bytes [B, H, W, C], or normalised as ``normalise`` does, the
    channels where ``fed`` has them."""
    ready = images if fed == "bytes" else normalise(images, spec)
    return ready.permute(0, 2, 3, 1).contiguous() if is_channels_last(fed) else ready
