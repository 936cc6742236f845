"""The channels of one layer: how many there are, what belongs to each, and how some are removed or ignored."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgewise.models._layers import PadShortcut

Side = Literal["out", "in"]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)
WEIGHTED = (*CONVS, nn.Linear)

WHOLE = (*BATCH_NORMS, *INSTANCE_NORMS, *NORMS_OVER_CHANNELS, nn.PReLU)
"""Layers whose tensors are cut all together."""
PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a norm with one value per channel."""


class OwnChannels(nn.Module):
    """A module's own tensor that has values for each channel of what it meets, along one of its dimensions: a learned scale, a
    frozen norm's mean, positions that are added to tokens."""

    holder: nn.Module

    def __init__(self, holder: nn.Module, tensor: str, dim: int) -> None:
        super().__init__()
        object.__setattr__(self, "holder", holder)  # not as a child: it would be its own ancestor
        self.tensor, self.dim = tensor, dim

    @property
    def values(self) -> Tensor:
        """The tensor itself."""
        values: Tensor = getattr(self.holder, self.tensor)
        return values


def name_part(layer: str, tensor: str, dim: int) -> str:
    """What such a tensor is called among layers: ``stages.0.gamma[0]``."""
    return f"{layer}.{tensor}[{dim}]" if layer else f"{tensor}[{dim}]"


def find_part(model: nn.Module, name: str) -> nn.Module:
    """A module of ``model`` by its name, or the channels of one of its tensors, as ``name_part`` calls them."""
    key, bracket, dim = name.removesuffix("]").rpartition("[")
    if not bracket:
        return model.get_submodule(name)
    owner, _, tensor = key.rpartition(".")
    return OwnChannels(model.get_submodule(owner), tensor, int(dim))


def channel_dim(values: Tensor, channels: int, at: int, *, strict: bool = False) -> int | None:
    """The dimension of a tensor with so many values: ``at``, else the only one, but not where ``strict``; None for none."""
    if -values.dim() <= at < values.dim() and values.shape[at] == channels:
        return at % values.dim()
    dims = [dim for dim, size in enumerate(values.shape) if size == channels]
    return dims[0] if len(dims) == 1 and not strict else None


def heads_of(module: nn.Module) -> int:
    """Number of attention heads of a module that says so in ``num_heads``; 0 for any other."""
    heads = getattr(module, "num_heads", 0)
    return heads if isinstance(heads, int) else 0


def is_depthwise(module: object) -> bool:
    """Whether it is a convolution with one filter for each channel."""
    return isinstance(module, CONVS) and module.groups == module.in_channels == module.out_channels > 1


def is_multiplier(module: object) -> bool:
    """Whether it is a depthwise convolution with several filters per channel."""
    return isinstance(module, CONVS) and module.out_channels > module.groups == module.in_channels > 1


def per_channel(norm: nn.GroupNorm) -> bool:
    """Whether each group is one channel, so that the norm averages over none."""
    return norm.num_groups == norm.num_channels


def channels_of(module: nn.Module, side: Side) -> float:
    """How many channels a layer has on one side; infinity where it treats any number alike."""
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, PadShortcut):
        return len(module.source) if side == "out" else module.in_channels
    if isinstance(module, CONVS):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, (*BATCH_NORMS, *INSTANCE_NORMS)):
        return module.num_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, OwnChannels):
        return module.values.shape[module.dim]
    return module.num_parameters if isinstance(module, nn.PReLU) and module.num_parameters > 1 else math.inf


def channel_view(module: nn.Module, side: Side, tensor: Tensor) -> Tensor:
    """A tensor shaped like the weight of ``module`` as [channels of the side, everything that belongs to each]."""
    if isinstance(module, nn.Linear):
        return tensor if side == "out" else tensor.t()
    if not isinstance(module, CONVS):
        return tensor.reshape(len(tensor), -1)
    if (side == "out") != module.transposed:
        return tensor.flatten(1)
    groups = tensor.reshape(module.groups, -1, *tensor.shape[1:])
    return groups.transpose(1, 2).flatten(0, 1).flatten(1)


def tie_of(module: nn.Module, side: Side) -> Callable[[int], int]:
    """What channels of ``module`` that must go together have in common: their place in a group."""
    if isinstance(module, nn.GroupNorm):
        return _same_channel if per_channel(module) else _place_in(module.num_channels // module.num_groups)
    if not isinstance(module, CONVS) or module.groups == 1 or is_depthwise(module) or is_multiplier(module):
        return _same_channel  # the two sides of a depthwise convolution are linked, which ties the filters of a channel
    return _place_in((module.out_channels if side == "out" else module.in_channels) // module.groups)


def _same_channel(channel: int) -> int:
    return channel


def _place_in(group: int) -> Callable[[int], int]:
    return lambda channel: channel % group


def cut_layer(module: nn.Module, out: Collection[int], into: Collection[int]) -> None:
    """Remove output and input channels of one layer in place.

    Raises ValueError where that leaves no layer of this kind: groups of different sizes, or no channel.
    """
    if isinstance(module, PadShortcut):
        module.select(remaining_channels(module.in_channels, into), remaining_channels(len(module.source), out))
    elif isinstance(module, CONVS):
        _cut_convolution(module, out, into)
    elif isinstance(module, nn.Linear):
        _set_tensor(module, "weight", _without_channels(_without_channels(module.weight, 0, out), 1, into))
        _set_tensor(module, "bias", None if module.bias is None else _without_channels(module.bias, 0, out))
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, OwnChannels):
        _set_tensor(module.holder, module.tensor, _without_channels(module.values, module.dim, out or into))
    else:
        _cut_norm(module, out or into)


def _cut_convolution(module: Any, out: Collection[int], into: Collection[int]) -> None:
    """The kernel as [groups, outputs, inputs, …] loses whole rows of each group, and groups that have none left."""
    if is_depthwise(module):
        into = out
    elif is_multiplier(module) and not into:
        filters = module.out_channels // module.groups
        into = {channel // filters for channel in out}
    weight, groups = module.weight, module.groups
    inside = weight.reshape(groups, -1, *weight.shape[1:])  # transposed: [groups, inputs, outputs, …]
    outs, ins = _by_group(module.out_channels, groups, out), _by_group(module.in_channels, groups, into)
    if module.transposed:
        outs, ins = ins, outs
    parts = [
        group[rows][:, columns] for group, rows, columns in zip(inside, outs, ins, strict=True) if rows and columns
    ]
    if not parts or len({part.shape for part in parts}) > 1 or sum(map(bool, outs)) != sum(map(bool, ins)):
        raise ValueError(f"the {groups} groups of a {type(module).__name__} would not be of one size")
    if module.bias is not None:
        _set_tensor(module, "bias", _without_channels(module.bias, 0, out))
    _set_tensor(module, "weight", torch.cat(parts))
    module.groups = len(parts)
    module.out_channels -= len(set(out))
    module.in_channels -= len(set(into))


def _by_group(channels: int, groups: int, gone: Collection[int]) -> list[list[int]]:
    """For each group the places in it that stay."""
    size = channels // groups
    indices = set(gone)
    return [[place for place in range(size) if group * size + place not in indices] for group in range(groups)]


def _cut_norm(module: Any, gone: Collection[int]) -> None:
    """A norm, or a PReLU with a slope per channel."""
    channels = int(channels_of(module, "out")) - len(set(gone))
    if isinstance(module, nn.GroupNorm):
        if per_channel(module):
            module.num_groups = channels
        elif channels % module.num_groups:
            raise ValueError(f"{channels} channels do not form {module.num_groups} groups of one size")
        module.num_channels = channels
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (*module.normalized_shape[:-1], channels)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = channels
    else:
        module.num_features = channels
    for name in PER_CHANNEL:
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            _set_tensor(module, name, _without_channels(tensor, tensor.dim() - 1, gone))


def _without_channels(tensor: Tensor, dim: int, gone: Collection[int]) -> Tensor:
    return tensor.index_select(dim, torch.tensor(remaining_channels(tensor.shape[dim], gone), device=tensor.device))


def _set_tensor(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    old = getattr(module, name)
    if tensor is not None and isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor.detach().clone(), requires_grad=old.requires_grad)
    if tensor is not None and name in dict(module.named_buffers(recurse=False)):
        module.register_buffer(name, tensor)  # saved from now on: what is left of it cannot be built anew
    else:
        setattr(module, name, tensor)


def remaining_channels(count: int, gone: Collection[int]) -> list[int]:
    """The numbers below ``count`` that are not in ``gone``."""
    indices = set(gone)
    return [channel for channel in range(count) if channel not in indices]


def ignore_inputs(module: nn.Module, channels: Sequence[int]) -> None:
    """Make a layer that reads channels compute as if these were zero, in place, without changing a shape."""
    if isinstance(module, PadShortcut):
        indices = set(channels)
        module.remap(module.in_channels, [-1 if channel in indices else channel for channel in module.source])
        return
    weight = module.get_parameter("weight").data
    places = torch.arange(weight.numel()).view(weight.shape)
    silence_mask = torch.zeros(weight.numel(), dtype=torch.bool)
    silence_mask[channel_view(module, "in", places)[list(channels)].flatten()] = True
    weight.masked_fill_(silence_mask.view(weight.shape).to(weight.device), 0)
