"""Which channels of which layers are removed together, as values; and how they are removed, or ignored.

A block is the smallest set of channels that can go, a group the blocks that consist of the same layers (``blocks`` finds
them). All indices are those of the network as it was traced, so that the blocks of several groups are cut in one pass, in
any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from edgewise.models._layers import PadShortcut
from edgewise.stages.prune.channels import (
    NORMS_OVER_CHANNELS,
    WEIGHTED,
    Side,
    channels_of,
    cut_layer,
    find_part,
    heads_of,
    ignore_inputs,
    is_multiplier,
    per_channel,
    remaining_channels,
)

Removed = Sequence[Sequence[int]]
"""For each group the numbers of the blocks that go."""


@dataclass(frozen=True, eq=False)
class Member:
    """A layer that takes part in a group with one side of its channels (a layer with one side only: "out")."""

    name: str
    module: nn.Module
    side: Side
    channels: Tensor
    """int64 [blocks, channels of this side per block]."""


@dataclass(frozen=True, eq=False)
class Group:
    """Layers whose channels are removed together, block by block."""

    name: str
    """The layer the group is called after, whose channels are counted as the group's."""
    members: tuple[Member, ...]
    width: int
    """Channels of that layer that are the group's."""
    attention: str | None = None
    """The attention module whose heads are the blocks."""
    labels: tuple[frozenset[int], ...] = ()
    """Of each block."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.members[0].channels)

    @property
    def block_size(self) -> int:
        """Channels of the naming layer per block."""
        return self.width // self.blocks

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members that read the channels."""
        readers = (*WEIGHTED, PadShortcut)
        sides = (m for m in self.members if m.side == "in" and isinstance(m.module, readers))
        return tuple(m for m in sides if not is_multiplier(m.module))


Cut = tuple[Sequence[Group], Removed]
"""The groups of the network as it then was, and what went of each."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A layer whose output channels, all or some, are not pruned."""

    width: int
    """All its output channels."""
    stay: int
    """So many of them stay."""
    reason: str

    def __str__(self) -> str:
        return self.reason if self.stay == self.width else f"{self.stay} of {self.width} channels: {self.reason}"


@dataclass(frozen=True, eq=False)
class Coupling:
    """The groups of a network that can be pruned, and the reason for each layer that cannot."""

    groups: tuple[Group, ...]
    alone: Mapping[str, Alone]
    """Layer -> why its output channels stay."""

    @property
    def left_alone(self) -> dict[str, str]:
        """The reasons in words."""
        return {name: str(alone) for name, alone in self.alone.items()}


def cut_channels(model: nn.Module, groups: Sequence[Group], removed: Removed) -> None:
    """Remove blocks in place from ``model``: the traced network, or a copy of it."""
    for group, blocks in zip(groups, removed, strict=True):
        if group.attention is not None:
            attention = model.get_submodule(group.attention)
            attention.num_heads = heads_of(attention) - len(blocks)  # type: ignore[assignment]
    for name, indices in channels_to_cut(groups, removed).items():
        cut_layer(find_part(model, name), sorted(indices.get("out", ())), sorted(indices.get("in", ())))


def outputs_left(model: nn.Module, cuts: Sequence[Cut]) -> dict[str, list[int]]:
    """For every convolution and linear layer of ``model``, which of its outputs are left after ``cuts``, one by one."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    outputs = {name: list(range(int(channels_of(module, "out")))) for name, module in layers.items()}
    for groups, removals in cuts:
        for name, indices in channels_to_cut(groups, removals).items():
            if name in outputs:
                outputs[name] = [
                    outputs[name][place] for place in remaining_channels(len(outputs[name]), indices.get("out", ()))
                ]
    return outputs


def channels_to_cut(groups: Sequence[Group], removed: Removed) -> dict[str, dict[Side, set[int]]]:
    """Layer -> side -> the channels that go."""
    sides: dict[str, dict[Side, set[int]]] = {}
    for group, blocks in zip(groups, removed, strict=True):
        for member in group.members if blocks else ():
            sides.setdefault(member.name, {}).setdefault(member.side, set()).update(_channels_of_blocks(member, blocks))
    return sides


def silence_channels(model: nn.Module, groups: Sequence[Group], removed: Removed) -> None:
    """Make every layer of ``model`` that reads the blocks ignore them, in place, without changing a shape.

    ``model`` has the module names of the traced network. Its function is then that of the network without the blocks,
    except where a layer or group norm averages over them (``averaging_norms``).
    """
    for group, blocks in zip(groups, removed, strict=True):
        for member in group.consumers:
            ignore_inputs(model.get_submodule(member.name), _channels_of_blocks(member, blocks))


def averaging_norms(groups: Sequence[Group], removed: Removed) -> dict[str, set[int]]:
    """Norms that average over channels of which some go -> which."""
    touches = [(group, blocks) for group, blocks in zip(groups, removed, strict=True) if blocks]
    channels_by_norm: dict[str, set[int]] = {}
    for group, blocks in touches:
        for member in group.members:
            module = member.module
            if isinstance(module, NORMS_OVER_CHANNELS) and not (
                isinstance(module, nn.GroupNorm) and per_channel(module)
            ):
                channels_by_norm.setdefault(member.name, set()).update(_channels_of_blocks(member, blocks))
    return channels_by_norm


def _channels_of_blocks(member: Member, blocks: Sequence[int]) -> list[int]:
    return [channel for block in blocks for channel in member.channels[block].tolist()]
