"""The images that fits and verdicts look at."""

from __future__ import annotations

import torch
from torch import Tensor

from edgewise.calib_data import Part
from edgewise.images.normalise import normalise
from edgewise.stage import Context

BATCH = 64


def draw_batches(part: Part, count: int, ctx: Context) -> list[Tensor]:
    """Batches of ``count`` images of a part (all where it has fewer), drawn by the seed, normalised, on the device."""
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(ctx.seed))[:count]
    return [normalise(part.batch(chosen), ctx.spec).to(ctx.device) for chosen in torch.split(order, BATCH)]
