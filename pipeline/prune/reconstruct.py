"""The layers of a pruned network fitted anew, so that on what they are now given they answer as they did.

A cut leaves the weights that remain as they were, and every layer misses what the removed channels told it. Part of that
the others know as well, and the layer can be taught to read it from them: the least-squares step of channel pruning (He,
Zhang, Sun 2017, arXiv 1707.06168, section 3.1, the second part of equation 2). Layer by layer, in order of execution,

    V, b = argmin E‖y − V·x − b‖² + λ‖V − W‖²,

with x the patches that the pruned network, fitted so far, gives the layer (so that it makes up for the errors before it,
section 3.2 there), y what the unpruned network answers in the channels that are left, and W the weights as they were cut.
The second term, small, holds what the data say nothing of. The normal equations (S + λ)·(V − W)' = C − S·W' need the
moments S = Cov(x, x) and C = Cov(x, y) alone.

A batch norm behind such a layer keeps the unpruned network's statistics, to which the outputs are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.fold import find_norms
from pipeline.gather import explicit_padding, gather, met
from pipeline.moments import Moments, error, solve
from pipeline.recipe import Context
from pipeline.samples import drawn

_DAMPING = 1e-6
_ROUNDING = 1e-13
"""Of a float64 sum over so many positions, relative; a covariance is the difference of two."""
_POSITIONS = 20_000
"""Output positions of a layer, drawn from all images, that a fit looks at."""
_LARGEST_SYSTEM = 6000
"""Inputs of a layer times the size of its kernel; a larger one stays as it was cut."""
_EXACT = 1e-3
"""A layer whose outputs are off by no more lost nothing."""

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Dense:
    """A layer's weights, as a fit sees them."""

    weight: Tensor
    """float64 [Cout, Cin·K]."""
    bias: Tensor
    """float64 [Cout]."""

    def kernel(self) -> Tensor:
        """The weights."""
        return self.weight


def reconstruct(
    pruned: nn.Module, whole: nn.Module, left: Mapping[str, Sequence[int]], images: int, ctx: Context
) -> dict[str, tuple[float, float]]:
    """Fit the convolutions and linear layers of ``pruned`` in place to what those of ``whole`` answer.

    Both networks in eval mode on ``ctx.device``, with batch norms as they were before the cut; ``left`` tells which of a
    layer's outputs remain. Fitted on so many training images and judged on a quarter as many calibration images: a layer
    that the fit does not bring closer stays as it was cut, as do grouped convolutions. Returns the relative errors of the outputs of each layer that was off,
    as it was cut (on what the layers before it, already fitted, give it) and as it is left.
    """
    fitting, judging = drawn(ctx.data.train, images, ctx), drawn(ctx.data.calib, -(-images // 4), ctx)
    norms = find_norms(whole, judging[0][:2]).pairs
    found: dict[str, tuple[float, float]] = {}
    layers = [name for name in met(whole, left, judging[0][:2]) if _can_be_fitted(pruned.get_submodule(name))]
    for name in ctx.track(layers, "reconstruction", len(layers)):
        kept = torch.tensor(left[name], device=fitting[0].device)
        seen, judged = (
            gather(pruned, whole, [name], batches, -(-_POSITIONS // len(batches)), ctx.seed)[name].of_outputs(kept)
            for batches in (fitting, judging)
        )
        if bool(judged.var_y.sum() <= _ROUNDING * judged.mean_y.square().sum()):
            continue  # answers that do not vary have no relative error
        layer = pruned.get_submodule(name)
        norm = pruned.get_submodule(norms[name]) if name in norms else None
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if layer.bias is None and norm is None:
            seen, judged = seen.uncentred(), judged.uncentred()
        before = _cut(layer)
        after = fitted(before, seen)
        errors = error(before, judged), error(after, judged)
        if errors[0] > _EXACT:
            found[name] = errors[0], min(errors)
        if errors[1] < errors[0]:
            _write(layer, norm, after)
    return found


def fitted(start: Dense, moments: Moments) -> Dense:
    """The least-squares weights near ``start``, with the bias that makes the means equal."""
    old = start.weight.T
    size = (moments.cov_xx.diagonal() + moments.mean_x.square()).sum()
    system = moments.cov_xx + _ROUNDING * size * torch.eye(len(old)).to(moments.cov_xx)
    new = old + solve(system, moments.cov_xy - moments.cov_xx @ old, _DAMPING)
    return Dense(new.T, moments.mean_y - moments.mean_x @ new)


def _can_be_fitted(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and explicit_padding(layer) is not None
        return plain and layer.weight[0].numel() <= _LARGEST_SYSTEM
    return isinstance(layer, nn.Linear) and layer.in_features <= _LARGEST_SYSTEM


def _cut(layer: Layer) -> Dense:
    weight = layer.weight.detach().double().flatten(1)
    return Dense(weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double())


@torch.no_grad()
def _write(layer: Layer, norm: nn.Module | None, found: Dense) -> None:
    """Put the fit into the layer; a bias without a place there moves into the batch norm's mean."""
    layer.weight.copy_(found.weight.view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(found.bias)
    elif norm is not None:
        mean = norm.running_mean
        assert isinstance(mean, Tensor)
        mean.sub_(found.bias)
