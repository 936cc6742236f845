"""The layers of a pruned network fitted anew, so that on what they are now given they answer as they did.

A cut leaves the weights that remain as they were, and every layer misses what the removed channels told it. Part of that
the others know as well, and the layer can be taught to read it from them: the least-squares step of channel pruning (He,
Zhang, Sun 2017, arXiv 1707.06168, section 3.1, the second part of equation 2). Layer by layer, in order of execution,

    V, b = argmin E‖y − V·x − b‖² + λ‖V − W‖²,

with x the patches that the pruned network, fitted so far, gives the layer (so that it makes up for the errors before it,
section 3.2 there), y what the unpruned network answers in the channels that are left, and W the weights as they were cut.
Where the layer's answers are added to a branch that is there before them, a shortcut, y also holds what that branch lacks
by now (section 3.3 there), divided by the scale of the batch norm between. The second term, small, holds what the data
say nothing of. The normal equations (S + λ)·(V − W)' = C − S·W' need the moments S = Cov(x, x) and C = Cov(x, y) alone.

A batch norm behind such a layer keeps the unpruned network's statistics, to which the outputs are fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgewise.network.norm_pairs import affine_of, find_norms
from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import put_bias
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import Accumulator, computes_as_declared, explicit_padding, run_until_seen
from edgewise.stages.fitting.least_squares import Moments, relative_error, solve_damped
from edgewise.stages.fitting.shortcut_sums import Meeting, Sum, capture_meeting, find_sums

_DAMPING = 1e-6
_ROUNDING = 1e-13
"""Of a float64 sum over so many positions, relative; a covariance is the difference of two."""
_POSITIONS = 20_000
"""Output positions of a layer, drawn from all images, that a fit looks at."""
_SMALL_SCALE = 0.05
"""Of a batch norm's channel, relative to the median: a smaller one passes on too little to make up for anything."""
_LARGEST_SYSTEM = 6000
"""Inputs of a layer times the size of its kernel; a larger one stays as it was cut."""
_EXACT = 1e-3
"""A layer whose outputs are off by no more lost nothing."""


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


def reconstruct_layers(
    pruned: nn.Module, whole: nn.Module, left: Mapping[str, Sequence[int]], images: int, ctx: Context
) -> dict[str, tuple[float, float]]:
    """Fit the convolutions and linear layers of ``pruned`` in place to what those of ``whole`` answer.

    Both networks in eval mode on ``ctx.device``, with batch norms as they were before the cut; ``left`` tells which of a
    layer's outputs remain. Fitted on so many training images and judged on a quarter as many calibration images: a layer
    that the fit does not bring closer stays as it was cut, as do grouped convolutions. Returns for each layer that was off
    the relative errors of its answers behind its batch norm: as it was cut (on what the layers before it, already fitted,
    give it), and as it is left.
    """
    fitting = draw_batches(ctx.data.train, images, ctx, whole)
    judging = draw_batches(ctx.data.calib, -(-images // 4), ctx, whole)
    probe = judging[0][:2]
    norms = find_norms(whole, probe).pairs
    ran = run_until_seen(whole, left, probe)
    layers = [
        name for name, values in ran.items() if find_obstacle(pruned.get_submodule(name), whole, name, values) is None
    ]
    ends = {name: norms.get(name, name) for name in layers}
    ours, theirs = find_sums(pruned, ends, probe), find_sums(whole, ends, probe)
    sums = {name: (ours[name], theirs[name]) for name in ours.keys() & theirs.keys()}
    errors_by_layer: dict[str, tuple[float, float]] = {}
    for name in ctx.track(layers, "reconstruction", len(layers)):
        place = _Place(pruned, whole, name, norms.get(name), sums.get(name), left[name])
        fitting_moments, judging_moments = (place.moments(batches, ctx.seed) for batches in (fitting, judging))
        if bool(judging_moments.var_y.sum() <= _ROUNDING * judging_moments.mean_y.square().sum()):
            continue  # answers that do not vary have no relative error
        before = place.cut()
        after = fit_layer(before, fitting_moments)
        errors = place.error(before, judging_moments), place.error(after, judging_moments)
        if errors[0] > _EXACT:
            errors_by_layer[name] = errors[0], min(errors)
        if errors[1] < errors[0]:
            place.write(after)
    return errors_by_layer


def fit_layer(start: Dense, moments: Moments) -> Dense:
    """The least-squares weights near ``start``, with the bias that makes the means equal."""
    old = start.weight.T
    size = (moments.cov_xx.diagonal() + moments.mean_x.square()).sum()
    system = moments.cov_xx + _ROUNDING * size * torch.eye(len(old)).to(moments.cov_xx)
    new = old + solve_damped(system, moments.cov_xy - moments.cov_xx @ old, _DAMPING)
    return Dense(new.T, moments.mean_y - moments.mean_x @ new)


def layers_left_alone(whole: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, str]:
    """Layer -> why it stays as it was cut, of those named layers of ``whole`` that are never fitted."""
    ran = run_until_seen(whole, names, images)
    reasons = {name: find_obstacle(whole.get_submodule(name), whole, name, values) for name, values in ran.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def find_obstacle(layer: nn.Module, whole: nn.Module, name: str, passed: tuple[Tensor, Tensor]) -> str | None:
    """Why a layer as it was cut cannot be fitted; ``passed``: what it was given and answered in the whole network."""
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        return f"it is a {type(layer).__name__}; convolutions and linear layers are fitted"
    original = whole.get_submodule(name)
    assert isinstance(original, (nn.Conv2d, nn.Linear))
    if not computes_as_declared(original, *passed):
        return f"it is a {type(layer).__name__}, whose forward does more than its base's"
    if layer.weight[0].numel() > _LARGEST_SYSTEM:
        return f"it reads {layer.weight[0].numel():,} numbers at once; up to {_LARGEST_SYSTEM:,} are fitted"
    if isinstance(layer, nn.Linear):
        return None
    if layer.groups != 1:
        return f"it is a grouped convolution (groups={layer.groups})"
    plain = layer.padding_mode == "zeros" and explicit_padding(layer) is not None
    return None if plain else "its padding is not of zeros, the same on both sides"


class _Place:
    """A layer in the pruned network, and where it stands; the sum behind it in that network, and in the whole one."""

    def __init__(
        self, pruned: nn.Module, whole: nn.Module, name: str, norm: str | None, where: tuple[Sum, Sum] | None,
        left: Sequence[int],
    ) -> None:  # fmt: skip
        self._pruned, self._whole, self._name = pruned, whole, name
        self._ours = None if where is None else where[0]
        self._theirs = None if where is None else where[1]
        layer = pruned.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        self._layer = layer
        self._kept = torch.tensor(left, device=layer.weight.device)
        self._norm = None if norm is None else pruned.get_submodule(norm)
        self._scale = _norm_scale(None if norm is None else whole.get_submodule(norm), self._kept)
        audible = self._scale.abs() > _SMALL_SCALE * self._scale.abs().median()
        self._made_up = torch.where(audible, 1 / self._scale, 0.0)
        """What the layer has to answer for one that its shortcut lacks, per channel."""

    def moments(self, batches: Sequence[Tensor], seed: int) -> Moments:
        """Of what the layer is given, and of what it is to answer."""
        sums = Accumulator(self._layer, -(-_POSITIONS // len(batches)), torch.Generator().manual_seed(seed))
        for images in batches:
            ours = capture_meeting(self._pruned, self._name, self._ours, images)
            sums.add(ours.given, self._wanted(ours, capture_meeting(self._whole, self._name, self._theirs, images)))
        moments = sums.moments()
        return moments.uncentred() if self._layer.bias is None and self._norm is None else moments

    def _wanted(self, ours: Meeting, theirs: Meeting) -> Tensor:
        axis = 1 if isinstance(self._layer, nn.Conv2d) else -1
        target = theirs.answered.index_select(axis, self._kept)
        if ours.other is None or theirs.other is None:
            return target
        lacking = theirs.other.index_select(axis, self._kept) - ours.other
        return target + lacking * self._made_up.view(-1, *[1] * (target.ndim - 2 if axis == 1 else 0))

    def error(self, weights: Dense, moments: Moments) -> float:
        """Relative error of what the layer answers, behind its batch norm."""
        rescaled = Dense(weights.weight * self._scale[:, None], weights.bias * self._scale)
        return relative_error(rescaled, moments.scaled(self._scale))

    def cut(self) -> Dense:
        """The weights as they are."""
        weight = self._layer.weight.detach().double().flatten(1)
        bias = weight.new_zeros(len(weight)) if self._layer.bias is None else self._layer.bias.detach().double()
        return Dense(weight, bias)

    @torch.no_grad()
    def write(self, fit: Dense) -> None:
        """Put the fit into the layer; a bias without a place there moves into the batch norm's mean."""
        self._layer.weight.copy_(fit.weight.view_as(self._layer.weight))
        put_bias(self._layer, self._norm, fit.bias)


def _norm_scale(norm: nn.Module | None, channels: Tensor) -> Tensor:
    """What the batch norm multiplies each of the channels by, float64; 1 where there is none."""
    if norm is None:
        return torch.ones(len(channels), dtype=torch.float64, device=channels.device)
    return affine_of(norm)[0].detach()[channels]
