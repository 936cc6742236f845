"""Which channels of which layers can only be removed together.

torch-pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900) finds, for every layer, the channels that follow
from removing one of its own. Here its groups become values: a group is a list of blocks, a block the smallest set of
channels that can go, and every member layer says which of its channels belong to which block. All indices are those of
the network as it was traced, so that the blocks of several groups are cut in one pass, in any order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgewise.models._layers import PadShortcut

if TYPE_CHECKING:
    from torch_pruning import DependencyGraph
from edgewise.stages.prune.channels import (
    BATCH_NORMS,
    CONVS,
    WEIGHTED,
    Side,
    _channels,
    _cut_layer,
    _ignore_inputs,
    _others,
    heads_of,
    is_multiplier,
)

Removed = Sequence[Sequence[int]]
"""For each group the numbers of the blocks that go."""
_CUTTABLE = (*WEIGHTED, *BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.PReLU, PadShortcut)


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
    """Channels of that layer."""
    attention: str | None = None
    """The attention module whose heads are the blocks."""

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


@dataclass(frozen=True, eq=False)
class Coupling:
    """The groups of a network that can be pruned, and the reason for each that cannot."""

    groups: tuple[Group, ...]
    left_alone: Mapping[str, str]
    """Layer -> why its output channels stay."""


def trace_groups(
    model: nn.Module, example: Tensor, *, classifier: str, keep: Collection[str] = (), shortcuts: bool = True
) -> Coupling:
    """The coupled channels of ``model``, found by running ``example`` [N, C, H, W] in eval mode.

    ``classifier`` names the layer whose output channels are the classes; ``keep`` layers whose output channels stay;
    without ``shortcuts`` those of layers whose outputs are added to each other stay, too. Layers that run in training
    only (side classifiers) lose the inputs that are gone and keep their own channels. Leaves the model in eval mode.
    """
    idle = _idle(model, example)
    graph = _dependency_graph(model, example, aided=bool(idle))
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    groups, left_alone = [], {}
    for reach in _all_reaches(graph, names):
        reason = "it runs in training only" if reach.items[0].module in idle else None
        reason = reason or _reason_to_keep(reach, classifier, keep, shortcuts)
        group = None if reason else _as_group(graph, reach, model)
        if group is None:
            left_alone[reach.items[0].name] = reason or "its channels do not form blocks of one size"
        else:
            groups.append(group)
    place = {name: position for position, name in enumerate(names.values())}
    return Coupling(groups=tuple(sorted(groups, key=lambda group: place[group.name])), left_alone=left_alone)


def cut_channels(model: nn.Module, groups: Sequence[Group], removed: Removed) -> None:
    """Remove blocks in place from ``model``: the traced network, or a copy of it."""
    for group, blocks in zip(groups, removed, strict=True):
        if group.attention is not None:
            attention = model.get_submodule(group.attention)
            attention.num_heads = heads_of(attention) - len(blocks)  # type: ignore[assignment]
    for name, lost in _gone(groups, removed).items():
        _cut_layer(model.get_submodule(name), sorted(lost.get("out", ())), sorted(lost.get("in", ())))


def outputs_left(model: nn.Module, cuts: Sequence[Cut]) -> dict[str, list[int]]:
    """For every convolution and linear layer of ``model``, which of its outputs are left after ``cuts``, one by one."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    left = {name: list(range(int(_channels(module, "out")))) for name, module in layers.items()}
    for groups, removed in cuts:
        for name, lost in _gone(groups, removed).items():
            if name in left:
                left[name] = [left[name][place] for place in _others(len(left[name]), lost.get("out", ()))]
    return left


def _gone(groups: Sequence[Group], removed: Removed) -> dict[str, dict[Side, set[int]]]:
    """Layer -> side -> the channels that go."""
    gone: dict[str, dict[Side, set[int]]] = {}
    for group, blocks in zip(groups, removed, strict=True):
        for member in group.members if blocks else ():
            gone.setdefault(member.name, {}).setdefault(member.side, set()).update(_chosen(member, blocks))
    return gone


def silence_channels(model: nn.Module, groups: Sequence[Group], removed: Removed) -> None:
    """Make every layer of ``model`` that reads the blocks ignore them, in place, without changing a shape.

    ``model`` has the module names of the traced network. Its function is then that of the network without the blocks,
    except where a layer or group norm averages over them.
    """
    for group, blocks in zip(groups, removed, strict=True):
        for member in group.consumers:
            _ignore_inputs(model.get_submodule(member.name), _chosen(member, blocks))


def averages(groups: Sequence[Group], removed: Removed) -> bool:
    """Whether a norm that averages over channels loses some of them."""
    norms = (nn.LayerNorm, nn.GroupNorm)
    touched = [group for group, blocks in zip(groups, removed, strict=True) if blocks]
    return any(isinstance(member.module, norms) for group in touched for member in group.members)


def _chosen(member: Member, blocks: Sequence[int]) -> list[int]:
    return [channel for block in blocks for channel in member.channels[block].tolist()]


def _idle(model: nn.Module, example: Tensor) -> set[nn.Module]:
    """The layers with weights that do not run in evaluation."""
    layers: set[nn.Module] = {module for module in model.modules() if isinstance(module, WEIGHTED)}
    hooks = [layer.register_forward_pre_hook(lambda layer, _: layers.discard(layer)) for layer in list(layers)]
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _dependency_graph(model: nn.Module, example: Tensor, aided: bool) -> DependencyGraph:
    """The library's graph; ``aided``: of all that the network computes in training."""
    import torch_pruning as tp

    graph = tp.DependencyGraph()
    with torch.enable_grad(), _quiet():
        graph.build_dependency(
            model,
            example,
            # Its own way of calling tries model(*example) first, which runs the first layers twice for one image.
            forward_fn=_call_aided if aided else _call,
            customized_pruners={PadShortcut: _pad_shortcut_rules()},
            verbose=False,
        )
    for module, node in graph.module2node.items():
        if is_multiplier(module):
            _link_multiplier(graph, node)
    return graph


def _call(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits


def _call_aided(model: nn.Module, images: Tensor) -> Any:
    """Logits and whatever comes with them in training; the layers themselves stay in evaluation."""
    model.training = True
    try:
        return model(images)
    finally:
        model.training = False


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch_pruning\..*")
        yield


@cache
def _pad_shortcut_rules() -> Any:
    """How torch-pruning sees a padding shortcut: like a convolution, inputs and outputs independent of each other."""
    import torch_pruning as tp

    class Rules(tp.pruner.BasePruningFunc):
        def prune_out_channels(self, layer: PadShortcut, idxs: Sequence[int]) -> PadShortcut:
            _cut_layer(layer, idxs, [])
            return layer

        def prune_in_channels(self, layer: PadShortcut, idxs: Sequence[int]) -> PadShortcut:
            _cut_layer(layer, [], idxs)
            return layer

        def get_out_channels(self, layer: PadShortcut) -> int:
            return len(layer.source)

        def get_in_channels(self, layer: PadShortcut) -> int:
            return layer.in_channels

    return Rules()


def _link_multiplier(graph: DependencyGraph, node: Any) -> None:
    """An input channel of a depthwise convolution with a multiplier takes all its filters along, and they take it."""
    from torch_pruning.dependency import Dependency

    rules = graph.get_pruner_of_module(node.module)
    filters = node.module.out_channels // node.module.groups
    into, out = rules.prune_in_channels, rules.prune_out_channels
    for trigger, handler in ((into, out), (out, into)):
        link = Dependency(trigger=trigger, handler=handler, source=node, target=node)
        link.index_mapping[0] = _Repeat(filters, to_outputs=handler is out)
        node.dependencies.append(link)


@dataclass(frozen=True)
class _Repeat:
    """Index map between the inputs of a depthwise convolution and its ``filters`` times as many outputs."""

    filters: int
    to_outputs: bool

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        if not self.to_outputs:
            return [index._replace(idx=index.idx // self.filters) for index in indices]
        return [index._replace(idx=index.idx * self.filters + k) for index in indices for k in range(self.filters)]


@dataclass(frozen=True, eq=False)
class _Item:
    """One side of a layer, and which of its channels go with which channel of the root."""

    name: str
    module: Any
    handler: Any
    pairs: Collection[tuple[int, int]]
    """(channel here, channel of the root)."""

    @property
    def side(self) -> Side:
        # Where one function cuts both sides (norms, depthwise convolutions) it goes by the name of the outputs.
        return "in" if self.handler.__name__ == "prune_in_channels" else "out"


@dataclass(frozen=True, eq=False)
class _Reach:
    """Everything that follows from removing channels of one layer, the root, which is the first item."""

    width: int
    """Channels of the root."""
    items: list[_Item]
    obstacles: list[str]
    """What else is reached and cannot be cut, in words."""
    added: bool
    """Whether the channels go through an addition."""


def _all_reaches(graph: DependencyGraph, names: Mapping[Any, str]) -> Iterator[_Reach]:
    """One reach for every set of coupled outputs."""
    seen: set[Any] = set()
    for module in list(graph.module2node):
        if isinstance(module, WEIGHTED) and module not in seen:
            rules = graph.get_pruner_of_module(module)
            width = rules.get_out_channels(module)
            reach = _reach(graph, names, module, rules.prune_out_channels, width)
            seen.update(item.module for item in reach.items if item.side == "out")
            yield reach


def _reach(graph: DependencyGraph, names: Mapping[Any, str], root: Any, handler: Any, width: int) -> _Reach:
    """Follow the graph's dependencies from every channel of one side of ``root``.

    The library's own walk keeps lists that grow without end where channels are shuffled; sets of pairs cannot.
    """
    from torch_pruning._helpers import _HybridIndex
    from torch_pruning.dependency.index_mapping import update_index_mapping

    update_index_mapping(graph)
    start = graph.module2node[root]
    fresh = [_HybridIndex(idx=channel, root_idx=channel) for channel in range(width)]
    reached: dict[tuple[Any, Any], set[Any]] = {(start, handler): set(fresh)}
    waiting = [(start, handler, fresh)]
    while waiting:
        node, trigger, fresh = waiting.pop()
        for dep in node.dependencies:
            if dep.is_triggered_by(trigger):
                known = reached.setdefault((dep.target, dep.handler), set())
                new = sorted(set(_mapped(dep, fresh)) - known)
                known.update(new)
                if new:
                    waiting.append((dep.target, dep.handler, new))
    named = {key: pairs for key, pairs in reached.items() if key[0].module in names and pairs}
    items = [_Item(names[node.module], node.module, handler, pairs) for (node, handler), pairs in named.items()]
    obstacles = [words for node, _ in reached if (words := _obstacle(node))]
    return _Reach(width, items, obstacles, any(_is_addition(node) for node, _ in reached))


def _mapped(dep: Any, indices: list[Any]) -> list[Any]:
    for mapping in dep.index_mapping:
        if mapping is not None and indices:
            indices = mapping(indices)
    return indices


def _is_addition(node: Any) -> bool:
    from torch_pruning import ops

    return node.type == ops.OPTYPE.ELEMENTWISE and repr(node.module).endswith(("(AddBackward0)", "(SubBackward0)"))


def _is_sum(reach: _Reach) -> bool:
    """Whether several layers' outputs meet in an addition; a bias or a constant that is added makes no sum."""
    makers = {item.name for item in reach.items if item.side == "out" and _makes(item.module)}
    return reach.added and len(makers) > 1


def _makes(module: nn.Module) -> bool:
    """Whether it makes channels of its own; a depthwise convolution only filters those that it is given."""
    if isinstance(module, CONVS) and module.groups > 1:
        return module.groups < module.out_channels
    return isinstance(module, (*WEIGHTED, PadShortcut))


def _obstacle(node: Any) -> str | None:
    """Why the channels of this node of the graph must stay, if it is no layer."""
    from torch_pruning import ops

    if node.type == ops.OPTYPE.OUTPUT:
        return "its channels are the network's outputs"
    return "its channels meet a free parameter" if isinstance(node.module, nn.Parameter) else None


def _reason_to_keep(reach: _Reach, classifier: str, keep: Collection[str], shortcuts: bool) -> str | None:
    if not shortcuts and _is_sum(reach):
        return "its channels are added to other layers'"
    for item in reach.items:
        module, name = item.module, item.name
        if name == classifier and item.side == "out":
            return "its channels are the network's outputs"
        if not isinstance(module, _CUTTABLE):
            return f"they reach {name}, a {type(module).__name__}, which cannot be cut"
        if isinstance(module, CONVS) and 1 < module.groups == module.out_channels < module.in_channels:
            return f"{name} has one filter per group of several channels"
        if name in keep and item.side == "out":
            return f"{name} is kept"
    if not any(item.side == "in" for item in reach.items):
        return "its channels are the network's outputs"
    return next(iter(reach.obstacles), None)


def _as_group(graph: DependencyGraph, reach: _Reach, model: nn.Module) -> Group | None:
    attention = _attention_inside(reach, model)
    if attention is not None:
        reach = _rooted_at_reader(graph, reach)
    labels = _labels(reach, 0 if attention is None else heads_of(model.get_submodule(attention)))
    tables = [_per_block(item, labels) for item in reach.items]
    members = tuple(
        Member(item.name, item.module, item.side, table)
        for item, table in zip(reach.items, tables, strict=True)
        if table is not None
    )
    if len(members) < len(reach.items):
        return None
    first = members[0] if attention else _namesake(members, model)
    return Group(name=first.name, members=members, width=first.channels.numel(), attention=attention)


def _namesake(members: Sequence[Member], model: nn.Module) -> Member:
    """The first layer that makes the channels; a depthwise convolution, which only filters them, where it is alone."""
    makers = [m for m in members if m.side == "out" and isinstance(m.module, WEIGHTED)]
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return min(makers, key=lambda m: (getattr(m.module, "groups", 1) > 1, order[m.name]))


def _attention_inside(reach: _Reach, model: nn.Module) -> str | None:
    """The module with ``num_heads`` whose own children are all the layers of the reach, if there is one."""
    owners = {item.name.rpartition(".")[0] for item in reach.items}
    if len(owners) != 1:
        return None
    owner = owners.pop()
    return owner if heads_of(model.get_submodule(owner)) else None


def _rooted_at_reader(graph: DependencyGraph, reach: _Reach) -> _Reach:
    """The reach seen from the layer that reads the heads: one channel there names its query, key and value."""
    reader = next(item for item in reach.items if item.side == "in")
    width = graph.get_in_channels(reader.module)
    names = {item.module: item.name for item in reach.items}
    return _reach(graph, names, reader.module, reader.handler, width)


def _labels(reach: _Reach, heads: int) -> list[int]:
    """For each channel of the root the number of its block, 0 … blocks − 1, in order of their first channels."""
    if heads:
        return [channel * heads // reach.width for channel in range(reach.width)]
    parent = list(range(reach.width))

    def find(channel: int) -> int:
        while parent[channel] != channel:
            parent[channel] = channel = parent[parent[channel]]
        return channel

    for item in reach.items:
        tie, first = _tie(item.module, item.side), dict[int, int]()
        for channel, root in item.pairs:
            low, high = sorted((find(first.setdefault(tie(channel), root)), find(root)))
            parent[high] = low
    order: dict[int, int] = {}
    return [order.setdefault(find(channel), len(order)) for channel in range(reach.width)]


def _tie(module: nn.Module, side: Side) -> Callable[[int], int]:
    """What channels of ``module`` that must go together have in common."""
    if isinstance(module, nn.GroupNorm):
        return _position_in(module.num_channels // module.num_groups)
    if not isinstance(module, CONVS) or module.groups == 1 or module.groups == module.out_channels:
        return _itself
    if is_multiplier(module):
        return _itself  # its two sides are linked, which ties the filters of a channel
    return _position_in((module.out_channels if side == "out" else module.in_channels) // module.groups)


def _itself(channel: int) -> int:
    return channel


def _position_in(group: int) -> Callable[[int], int]:
    return lambda channel: channel % group


def _per_block(item: _Item, labels: Sequence[int]) -> Tensor | None:
    """The item's channels as int64 [blocks, channels per block]; None where the blocks differ in size."""
    blocks: list[set[int]] = [set() for _ in range(max(labels) + 1)]
    for channel, root in item.pairs:
        blocks[labels[root]].add(channel)
    if len({len(block) for block in blocks}) != 1 or not blocks[0]:
        return None
    if max(map(max, blocks)) >= _channels(item.module, item.side):
        return None  # the graph has followed a reshape that regroups channels
    return torch.tensor([sorted(block) for block in blocks])
