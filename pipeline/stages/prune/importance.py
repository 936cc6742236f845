"""How much each block of coupled channels matters.

A score is a tensor [blocks] per group, larger for what should stay. The measures of weights (l1, l2, fpgm) are averaged
over a group's layers and divided by the group's mean, so that groups compare; lamp ranks within the group by its own
rule; those of data (taylor, activation, refit) estimate a loss and compare as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.models._layers import PadShortcut
from edgewise.stages.prune.channels import BATCH_NORMS, WEIGHTED, channel_view
from edgewise.stages.prune.coupling import Group, Member
from edgewise.stages.prune.settings import Importance

if TYPE_CHECKING:
    from edgewise.stage import Context


IMPORTANCES: tuple[str, ...] = get_args(Importance)

_BATCH = 64


def score_blocks(
    kind: Importance, model: nn.Module, groups: Sequence[Group], ctx: Context, images: int
) -> list[Tensor]:
    """The importance of every block, float32 [blocks] on the CPU for each group.

    ``model`` is the network the groups were traced in; ``images`` of the calibration part are looked at by the measures
    that need data. A group without the layers a measure reads (batch norms) gets infinity: it is never pruned.
    """
    if kind == "random":
        generator = torch.Generator().manual_seed(ctx.seed)
        return [torch.rand(group.blocks, generator=generator) for group in groups]
    if kind == "taylor":
        return _taylor(model, groups, ctx, images)
    if kind == "activation":
        return _activation_importance(model, groups, ctx, images)
    if kind == "refit":
        return _refit_importance(model, groups, ctx, images)
    return [_BY_WEIGHT[kind](group) for group in groups]


@torch.no_grad()
def _norm_importance(group: Group, power: int) -> Tensor:
    """Group magnitude (Fang et al. 2023, arXiv 2301.12900): sum of |w|^p over a block, mean over the layers."""
    layers = [
        _sum_blocks(member, _member_weights(member).abs().pow(power).sum(1)) for member in _readable_members(group)
    ]
    return torch.stack(layers).mean(0).float().cpu()


def _relative_to_mean(importance: Tensor) -> Tensor:
    return importance / importance.mean().clamp_min(torch.finfo(torch.float32).tiny)


def _lamp(group: Group) -> Tensor:
    """Layer-adaptive magnitude (Lee et al. 2021, arXiv 2010.07611, equation 4): over the sum of all not smaller."""
    squares, order = _norm_importance(group, 2).sort()
    remaining = squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).scatter_(0, order, squares / remaining.clamp_min(torch.finfo(torch.float32).tiny))


@torch.no_grad()
def _fpgm(group: Group) -> Tensor:
    """Distance to all others (He et al. 2019, arXiv 1811.00250): the filter nearest the geometric median goes first."""
    distances = []
    for member in _readable_members(group):
        if member.side == "out" and isinstance(member.module, WEIGHTED):
            filters = _member_weights(member)[member.channels.to(_member_device(member))].flatten(1)
            distances.append(torch.cdist(filters, filters).sum(1))
    return torch.stack(distances).mean(0).float().cpu() if distances else torch.full((group.blocks,), torch.inf)


@torch.no_grad()
def _bn_scale(group: Group) -> Tensor:
    """Scale of the batch norms (Liu et al. 2017, arXiv 1708.06519)."""
    scales = [
        _sum_blocks(m, _member_weights(m).abs().sum(1))
        for m in _readable_members(group)
        if isinstance(m.module, BATCH_NORMS)
    ]
    return torch.stack(scales).mean(0).float().cpu() if scales else torch.full((group.blocks,), torch.inf)


_BY_WEIGHT: Mapping[str, Callable[[Group], Tensor]] = {
    "l1": lambda group: _relative_to_mean(_norm_importance(group, 1)),
    "l2": lambda group: _relative_to_mean(_norm_importance(group, 2)),
    "fpgm": lambda group: _relative_to_mean(_fpgm(group)),
    "lamp": _lamp,
    "bn_scale": _bn_scale,
}


def _taylor(model: nn.Module, groups: Sequence[Group], ctx: Context, images: int) -> list[Tensor]:
    """Squared first-order change of the loss when a block is gated off, per image, then averaged.

    Molchanov et al. 2019 (arXiv 1906.10771, equation 8); the gate of a block multiplies what every reader takes of it.
    """
    readers = _readers(groups)
    totals = [torch.zeros(group.blocks) for group in groups]
    count = 0
    for batch, labels in _batches(model, ctx, images):
        with _gates(readers) as gates, torch.enable_grad():
            loss = F.cross_entropy(model(batch), labels, reduction="sum")
            slopes = torch.autograd.grad(loss, list(gates.values())) if gates else ()
        slope_of = dict(zip(gates, slopes, strict=True))
        for total, group in zip(totals, groups, strict=True):
            readers_run = [member for member in group.consumers if member.module in slope_of]  # not side classifiers
            parts = [_slope(member, slope_of[member.module], len(batch)) for member in readers_run]
            # Where no reader runs as a layer (its weights are used by a function) nothing is known: never pruned.
            total += torch.stack(parts).sum(0).square().sum(0) if parts else torch.inf
        count += len(batch)
    return [total / count for total in totals]


def _slope(member: Member, slope: Tensor, images: int) -> Tensor:
    """Slopes [rows, channels] summed over each block: [N, blocks]. Patches of an image are rows of its own."""
    return slope.cpu().reshape(images, -1, slope.shape[1]).sum(1)[:, member.channels].sum(2)


@contextmanager
def _gates(readers: Mapping[nn.Module, int]) -> Iterator[dict[nn.Module, Tensor]]:
    """Multiply the input of every reader by ones [rows, channels] that record their gradient."""
    gates: dict[nn.Module, Tensor] = {}

    def gate(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0]
        if module not in gates:
            gates[module] = torch.ones(len(x), readers[module], device=x.device, dtype=x.dtype, requires_grad=True)
        return x * _spread_gate(gates[module], module, x)

    hooks = [module.register_forward_pre_hook(gate) for module in readers]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def _spread_gate(gate: Tensor, module: nn.Module, x: Tensor) -> Tensor:
    """A gate [N, C] in the shape that multiplies ``x``: channels last for linear layers, second elsewhere."""
    between = (1,) * (x.dim() - 2)
    return gate.view(len(gate), *between, -1) if isinstance(module, nn.Linear) else gate.view(*gate.shape, *between)


@torch.no_grad()
def _activation_importance(model: nn.Module, groups: Sequence[Group], ctx: Context, images: int) -> list[Tensor]:
    """Share of a block in what its readers compute: mean square of its channels times their squared weights.

    Summed over the readers; the shares of one reader's inputs add up to 1.
    """
    shares = _activation_shares(model, groups, ctx, images)
    return [_sum_shares([shares.get(m.module) for m in group.consumers], group) for group in groups]


def _sum_shares(shares: Sequence[Tensor | None], group: Group) -> Tensor:
    """Of each block, over the readers whose shares of single channels are known; infinite where there is none."""
    parts = [_sum_blocks(m, s) for m, s in zip(group.consumers, shares, strict=True) if s is not None]
    return torch.stack(parts).sum(0) if parts else torch.full((group.blocks,), torch.inf)


@torch.no_grad()
def _activation_shares(model: nn.Module, groups: Sequence[Group], ctx: Context, images: int) -> dict[nn.Module, Tensor]:
    """Reader that is given anything -> the share of each of its input channels in what it computes."""
    readers = _readers(groups)
    power = {module: torch.zeros(channels) for module, channels in readers.items()}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2) if isinstance(module, nn.Linear) else inputs[0].transpose(0, 1).flatten(1).t()
        power[module] += x.square().sum(0).cpu()

    hooks = [module.register_forward_pre_hook(observe) for module in readers]
    try:
        for batch, _ in _batches(model, ctx, images):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {module: _share(power[module] * _gain(module)) for module in readers if bool(power[module].any())}


def _refit_importance(model: nn.Module, groups: Sequence[Group], ctx: Context, images: int) -> list[Tensor]:
    """Share of what its readers compute that they cannot win back by being fitted anew.

    A shortcut is not fitted and loses its share whole, as does every reader of a group that none of them is fitted in;
    a depthwise reader passes on what it is given, and what the next one loses counts.
    """
    from edgewise.stages.prune.refit_importance import measure_losses

    losses = measure_losses(model, groups, ctx, images)
    shares = _activation_shares(model, groups, ctx, images)
    scores = []
    for group in groups:
        fitted = any(m.name in losses for m in group.consumers)
        parts = [
            losses[m.name]
            if m.name in losses
            else shares.get(m.module)
            if isinstance(m.module, PadShortcut) or not fitted
            else None
            for m in group.consumers
        ]
        scores.append(_sum_shares(parts, group))
    return scores


def _share(energy: Tensor) -> Tensor:
    return energy / energy.sum().clamp_min(torch.finfo(torch.float32).tiny)


def _gain(module: nn.Module) -> Tensor:
    """Squared weights with which each input channel is read, float32 [channels]."""
    if isinstance(module, PadShortcut):
        return torch.bincount(torch.tensor([c for c in module.source if c >= 0]), minlength=module.in_channels).float()
    return channel_view(module, "in", module.get_parameter("weight").detach()).square().sum(1).float().cpu()


def _readers(groups: Sequence[Group]) -> dict[nn.Module, int]:
    """Every layer that reads a channel of the groups -> number of its input channels."""
    return {member.module: _input_count(member.module) for group in groups for member in group.consumers}


def _input_count(module: nn.Module) -> int:
    count = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    assert isinstance(count, int)
    return count


def _batches(model: nn.Module, ctx: Context, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised calibration images [N, C, H, W] with their labels, the same ones every time."""
    from edgewise.images.normalise import normalise
    from edgewise.measure.batches import images_at_once

    part, device = ctx.data.calib, next(model.parameters()).device
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(ctx.seed))[:images]
    parts = torch.split(order, images_at_once(model, ctx.input_shape, _BATCH))
    for index in ctx.track(parts, "looking at calibration images", len(parts), count=len(order)):
        yield normalise(part.batch(index), ctx.spec).to(device), part.labels[index].to(device)


def _readable_members(group: Group) -> list[Member]:
    """Members whose weights tell something: convolutions, linear layers and the scales of batch norms."""
    kinds = (*WEIGHTED, *BATCH_NORMS)
    return [m for m in group.members if isinstance(m.module, kinds) and getattr(m.module, "weight", None) is not None]


def _member_weights(member: Member) -> Tensor:
    return channel_view(member.module, member.side, member.module.get_parameter("weight").detach())


def _sum_blocks(member: Member, values: Tensor) -> Tensor:
    """Values per channel [channels] summed over each block: [blocks]."""
    return values[member.channels.to(values.device)].sum(1)


def _member_device(member: Member) -> torch.device:
    return member.module.get_parameter("weight").device
