"""What is cut of a layer: which channels it has on each side, and how a side is narrowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from edgewise.models._layers import PadShortcut

if TYPE_CHECKING:
    pass


Side = Literal["out", "in"]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WEIGHTED = (*CONVS, nn.Linear)


def heads_of(module: nn.Module) -> int:
    """Number of attention heads of a module that says so in ``num_heads``; 0 for any other."""
    heads = getattr(module, "num_heads", 0)
    return heads if isinstance(heads, int) else 0


def channel_view(module: nn.Module, side: Side, tensor: Tensor) -> Tensor:
    """A tensor shaped like the weight of ``module`` as [channels of the side, everything that belongs to each]."""
    if isinstance(module, nn.Linear):
        return tensor if side == "out" else tensor.t()
    if not isinstance(module, CONVS):
        return tensor.reshape(len(tensor), -1)
    if (side == "out") != module.transposed:
        return tensor.flatten(1)
    grouped = tensor.reshape(module.groups, -1, *tensor.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1).flatten(1)


def is_multiplier(module: object) -> bool:
    """Whether it is a depthwise convolution with several filters per channel, which torch-pruning does not know."""
    return isinstance(module, CONVS) and module.out_channels > module.groups == module.in_channels > 1


def _channels(module: nn.Module, side: Side) -> float:
    """How many channels a layer has on one side; infinity where it treats any number alike."""
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, PadShortcut):
        return len(module.source) if side == "out" else module.in_channels
    if isinstance(module, CONVS):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, BATCH_NORMS):
        return module.num_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return module.num_parameters if isinstance(module, nn.PReLU) and module.num_parameters > 1 else math.inf


def _cut_layer(module: nn.Module, out: Sequence[int], into: Sequence[int]) -> None:
    """Remove output and input channels of one layer in place."""
    if isinstance(module, PadShortcut):
        module.select(_others(module.in_channels, into), _others(len(module.source), out))
    elif is_multiplier(module):
        _cut_multiplier(module, out)  # type: ignore[arg-type]
    else:
        _cut_by_library(module, out, into)


def _cut_by_library(module: nn.Module, out: Sequence[int], into: Sequence[int]) -> None:
    import torch_pruning as tp

    rules = tp.DependencyGraph().get_pruner_of_module(module)
    rules.pruning_dim = -1  # it is read by layer norms alone
    if into:
        rules.prune_in_channels(module, list(into))
    if out:
        rules.prune_out_channels(module, list(out))


def _cut_multiplier(module: nn.Conv2d, out: Sequence[int]) -> None:
    """Remove filters ``out`` of a depthwise convolution with a multiplier: all those of some input channels."""
    filters = module.out_channels // module.groups
    kept = torch.tensor(_others(module.out_channels, out), device=module.weight.device)
    module.out_channels = len(kept)
    module.in_channels = module.groups = len(kept) // filters
    module.weight = nn.Parameter(module.weight.detach()[kept])
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[kept])


def _others(count: int, gone: Collection[int]) -> list[int]:
    lost = set(gone)
    return [channel for channel in range(count) if channel not in lost]


def _ignore_inputs(module: nn.Module, channels: Sequence[int]) -> None:
    if isinstance(module, PadShortcut):
        lost = set(channels)
        module.remap(module.in_channels, [-1 if channel in lost else channel for channel in module.source])
        return
    weight = module.get_parameter("weight").data
    places = torch.arange(weight.numel()).view(weight.shape)
    ignored = torch.zeros(weight.numel(), dtype=torch.bool)
    ignored[channel_view(module, "in", places)[list(channels)].flatten()] = True
    weight.masked_fill_(ignored.view(weight.shape).to(weight.device), 0)
