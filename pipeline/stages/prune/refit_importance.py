"""What a reader of some channels cannot win back by being fitted anew without them.

A layer y = W·x that loses the inputs J and whose other weights are then the best least-squares ones is off by
tr(W_J' [(S⁻¹)_JJ]⁻¹ W_J), with S = Cov(x, x): the loss of a block in optimal brain surgery (Hassibi, Stork 1992; for the
channels of a layer OSSCAR, Meng et al. 2024, arXiv 2403.12983, equations 4 and 6). What other channels tell as well costs
nothing, however large it is, but only as long as they are there: so the channels go one after the other, the cheapest of
those that are left first, and S⁻¹ and W follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgewise.stage import Context
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import gather_moments, run_until_seen
from edgewise.stages.fitting.least_squares import Moments
from edgewise.stages.fitting.reconstruct import find_obstacle
from edgewise.stages.prune.coupling import Group

_POSITIONS = 20_000
"""Output positions of a layer, from all images."""
_AT_ONCE = 128
"""Above so many channels, this fraction of those that are left goes at once."""
_DAMPING = 1e-4
"""Of the mean variance: few images know little of the directions in which channels hardly differ."""


@torch.no_grad()
def measure_losses(model: nn.Module, groups: Sequence[Group], ctx: Context, images: int) -> dict[str, Tensor]:
    """Dense convolution or linear layer that reads channels of the groups -> ``channel_losses`` on calibration images."""
    names = {member.name for group in groups for member in group.consumers}
    batches = draw_batches(ctx.data.calib, images, ctx, model)
    ran = run_until_seen(model, names, batches[0][:2])
    fitted = [n for n, values in ran.items() if find_obstacle(model.get_submodule(n), model, n, values) is None]
    moments = gather_moments(model, model, fitted, batches, -(-_POSITIONS // len(batches)), ctx.seed)
    return {name: channel_losses(model.get_submodule(name), moments[name]) for name in fitted}


def channel_losses(layer: nn.Module, moments: Moments) -> Tensor:
    """What the loss of each input channel adds, in the order in which they go, float32 [Cin], ≥ 0: the share of the variance of
    the layer's outputs that its least-squares weights on the channels that are left then miss."""
    weight = layer.get_parameter("weight").detach().double()
    taps = weight[0, 0].numel()
    rows = weight.flatten(1).T.reshape(-1, taps, len(weight)).to(moments.cov_xx)  # [Cin, K, Cout]
    size = moments.cov_xx.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    system = moments.cov_xx + _DAMPING * size * torch.eye(len(moments.cov_xx)).to(moments.cov_xx)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    losses, left = rows.new_zeros(len(rows)), torch.arange(len(rows))
    latest = 0.0
    while len(left):
        costs = _block_losses(rows, inverse, taps)
        gone = costs.argsort()[: max(1, len(left) // _AT_ONCE)]
        latest = max(latest, float(costs[gone[-1]]))
        losses[left[gone]] = latest
        rows, inverse, left = _without_channels(rows, inverse, left, gone, taps)
    shares: Tensor = (losses / moments.var_y.sum().clamp_min(torch.finfo(torch.float64).tiny)).float().cpu()
    return shares


def _block_losses(rows: Tensor, inverse: Tensor, taps: int) -> Tensor:
    """tr(W_c' [(S⁻¹)_cc]⁻¹ W_c) of each channel c, [C]."""
    channels = len(rows)
    own = inverse.view(channels, taps, channels, taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [C, K, K]
    losses: Tensor = (rows * torch.linalg.solve(own, rows)).sum((1, 2)).clamp_min(0)
    return losses


def _without_channels(
    rows: Tensor, inverse: Tensor, left: Tensor, gone: Tensor, taps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights refitted without the channels at the places ``gone``, the inverse covariance of the others, and which they are."""
    stays = torch.ones(len(left), dtype=torch.bool)
    stays[gone] = False
    inside = stays.repeat_interleave(taps)
    weights = rows.flatten(0, 1)
    cross = torch.linalg.solve(inverse[~inside][:, ~inside], inverse[~inside][:, inside]).T
    refitted = weights[inside] - cross @ weights[~inside]
    reduced = inverse[inside][:, inside] - cross @ inverse[~inside][:, inside]
    return refitted.view(-1, taps, rows.shape[2]), reduced, left[stays]
