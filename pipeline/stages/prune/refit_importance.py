"""What a reader of some channels cannot win back by being fitted anew without them.

A layer y = W·x that loses the inputs J and whose other weights are then the best least-squares ones is off by
tr(W_J' [(S⁻¹)_JJ]⁻¹ W_J), with S = Cov(x, x): the loss of a block in optimal brain surgery (Hassibi, Stork 1992; for the
channels of a layer OSSCAR, Meng et al. 2024, arXiv 2403.12983, equations 4 and 6). What other channels tell as well costs
nothing, however large it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgewise.stage import Context
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import computes_as_declared, explicit_padding, gather_moments, run_until_seen
from edgewise.stages.fitting.least_squares import Moments
from edgewise.stages.prune.coupling import Group

_POSITIONS = 20_000
"""Output positions of a layer, from all images."""
_LARGEST_SYSTEM = 6000
"""Inputs of a layer times the size of its kernel; larger ones are left to another measure."""
_DAMPING = 1e-4
"""Of the mean variance: few images know little of the directions in which channels hardly differ."""


@torch.no_grad()
def measure_losses(model: nn.Module, groups: Sequence[Group], ctx: Context, images: int) -> dict[str, Tensor]:
    """Dense convolution or linear layer that reads channels of the groups -> ``channel_losses`` on calibration images."""
    names = {member.name for group in groups for member in group.consumers}
    batches = draw_batches(ctx.data.calib, images, ctx, model)
    ran = run_until_seen(model, names, batches[0][:2])
    fitted = [name for name, values in ran.items() if _is_fitted(model.get_submodule(name), *values)]
    moments = gather_moments(model, model, fitted, batches, -(-_POSITIONS // len(batches)), ctx.seed)
    return {name: channel_losses(model.get_submodule(name), moments[name]) for name in fitted}


def channel_losses(layer: nn.Module, moments: Moments) -> Tensor:
    """Share of the variance of the layer's outputs that is lost for good with each input channel, float32 [Cin], ≥ 0."""
    weight = layer.get_parameter("weight").detach().double()
    taps = weight[0, 0].numel()
    rows = weight.flatten(1).T.reshape(-1, taps, len(weight)).to(moments.cov_xx)  # [Cin, K, Cout]
    size = moments.cov_xx.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    system = moments.cov_xx + _DAMPING * size * torch.eye(len(moments.cov_xx)).to(moments.cov_xx)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    channels = len(rows)
    own = inverse.view(channels, taps, channels, taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [Cin, K, K]
    lost = (rows * torch.linalg.solve(own, rows)).sum((1, 2))
    energy = moments.var_y.sum().clamp_min(torch.finfo(torch.float64).tiny)
    shares: Tensor = (lost / energy).clamp_min(0).float().cpu()
    return shares


def _is_fitted(layer: nn.Module, given: Tensor, answered: Tensor) -> bool:
    if not isinstance(layer, (nn.Conv2d, nn.Linear)) or layer.weight[0].numel() > _LARGEST_SYSTEM:
        return False
    plain = isinstance(layer, nn.Linear) or (
        layer.groups == 1 and layer.padding_mode == "zeros" and explicit_padding(layer) is not None
    )
    return plain and computes_as_declared(layer, given, answered)
