"""Batch norms that fit a network again after its structure changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgewise.stage import Context
from edgewise.stages.fitting.image_batches import draw_batches

_BATCH = 128
FEWEST = 16
"""Images at once that statistics are taken of, however large: fewer would miss how images differ."""


def batch_norms(model: nn.Module) -> list[str]:
    """The names of the batch norms that keep running statistics, in order."""
    kind = nn.modules.batchnorm._BatchNorm
    return [name for name, m in model.named_modules() if isinstance(m, kind) and m.running_mean is not None]


def reestimate_norms(model: nn.Module, names: Iterable[str], batches: Iterable[Tensor]) -> None:
    """Set the named batch norms' statistics to the mean over ``batches`` (normalised images), in place.

    Each batch norm passes on what it normalised with its own batch, as in training. One that does not run in evaluation
    (in a side classifier) keeps what it had.
    """
    norms = [model.get_submodule(name) for name in names]
    before = {norm: copy.deepcopy(norm.state_dict()) for norm in norms}
    momenta = {}
    for norm in norms:
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        momenta[norm] = norm.momentum
        norm.reset_running_stats()
        norm.momentum = None  # None: the running statistics are the plain mean over the batches
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for images in batches:
            model(images)
    model.eval()
    for norm, momentum in momenta.items():
        norm.momentum = momentum
        if norm.num_batches_tracked == 0:
            norm.load_state_dict(before[norm])


def fit_norms(model: nn.Module, images: int, ctx: Context) -> int:
    """Estimate every batch norm of ``model`` anew on ``images`` training images, in place; how many were used.

    Where a set has none to train on, calibration images serve.
    """
    names = batch_norms(model)
    part = ctx.data.train if len(ctx.data.train) else ctx.data.calib
    if not names or min(images, len(part)) < 2:
        return 0
    placed = replace(ctx, device=str(next(model.parameters()).device))
    drawn = draw_batches(part, images, placed, model, most=_BATCH, fewest=FEWEST)
    # One image alone has no spread that a batch norm could be set to.
    reestimate_norms(model, names, (batch for batch in drawn if len(batch) > 1))
    return sum(len(batch) for batch in drawn.images if len(batch) > 1)


@torch.no_grad()
def put_bias(layer: nn.Conv2d | nn.Linear, norm: nn.Module | None, bias: Tensor) -> None:
    """Write the layer's bias [C]; without a place there it moves into the mean of the batch norm that reads the layer."""
    if layer.bias is not None:
        layer.bias.copy_(bias)
    elif norm is not None:
        mean = norm.running_mean
        assert isinstance(mean, Tensor)
        mean.sub_(bias)
