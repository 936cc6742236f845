"""Which channels of a network can only go together, from the labels that ``flow`` finds.

The idea is that of the dependency graph (Fang et al. 2023, arXiv 2301.12900): from one removed channel follow all that
must go with it. Tied labels are a block, blocks that consist of the same layers a group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.models._layers import PadShortcut
from edgewise.stages.prune.channels import (
    CONVS,
    WEIGHTED,
    WHOLE,
    OwnChannels,
    channels_of,
    heads_of,
    tie_of,
)
from edgewise.stages.prune.coupling import Alone, Coupling, Group, Member
from edgewise.stages.prune.flow import follow_channels
from edgewise.stages.prune.labels import Flow, Touch

_CUTTABLE = (*WEIGHTED, *WHOLE, PadShortcut, OwnChannels)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What may be pruned, as it was asked."""

    classifier: str
    """The layer whose output channels are the classes."""
    keep: Collection[str] = ()
    """Layers whose output channels stay."""
    shortcuts: bool = True
    """Whether channels of layers whose outputs are added to each other may go."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What trying to cut a network has shown."""

    level: Mapping[int, int] = field(default_factory=dict)
    """Label -> how its channels are counted in groups: 1 at the same place of every group, 2 in whole groups."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Label -> why its channel must stay."""


def trace_groups(
    model: nn.Module, example: Tensor, *, classifier: str, keep: Collection[str] = (), shortcuts: bool = True
) -> Coupling:
    """The coupled channels of ``model``, found by running ``example`` [1, C, H, W] in eval mode; see ``Request``.

    Layers that run in training only (side classifiers) lose the inputs that are gone and keep their own channels. Leaves
    the model in eval mode. Nothing is tried: ``checked_cut`` does that.
    """
    flow, idle = follow_all(model, example)
    return couple_channels(model, flow, Request(classifier=classifier, keep=keep, shortcuts=shortcuts), idle)


def follow_all(model: nn.Module, example: Tensor) -> tuple[Flow, set[str]]:
    """Where the channels go, and the layers that run in training only."""
    flow = follow_channels(model, example)
    resting = {name for name, module in model.named_modules() if isinstance(module, WEIGHTED)} - _touched_layers(flow)
    if not resting:
        return flow, set()
    with_help = follow_channels(model, example, aided=True)
    idle = resting & _touched_layers(with_help)
    return (with_help, idle) if idle else (flow, set())


def _touched_layers(flow: Flow) -> set[str]:
    return {touch.name for touch in flow.touches}


def couple_channels(
    model: nn.Module, flow: Flow, request: Request, idle: Collection[str] = (), lessons: Lessons | None = None
) -> Coupling:
    """Blocks and groups from the labels."""
    lessons = lessons or Lessons()
    blocks = _Blocks(flow, lessons)
    reasons = _reasons(flow, blocks, request, idle, lessons)
    groups, single = _form_groups(model, flow, blocks, set(reasons))
    reasons |= dict.fromkeys(single, "they can only go all together")
    return Coupling(groups=groups, alone=_layers_alone(model, flow, blocks, reasons, groups))


class _Blocks:
    """Which labels go together."""

    def __init__(self, flow: Flow, lessons: Lessons) -> None:
        ties = [flow.ties.numpy(), *(_place_ties(touch) for touch in flow.touches)]
        ties += [
            pairs.numpy()[[max(lessons.level.get(int(a), 0), lessons.level.get(int(b), 0)) == level for a, b in pairs]]
            for level, pairs in enumerate(flow.regrouped, 1)
            if len(pairs) and lessons.level
        ]
        edges = np.concatenate([np.zeros((0, 2), np.int64), *ties])
        self.of = connected_sets(flow.labels + 1, edges)
        """int [labels + 1]: each label's block."""
        self.nobody = int(self.of[0])
        """The block of label 0."""

    def at(self, labels: Tensor) -> list[int]:
        """The blocks of a layer's channels."""
        numbers: list[int] = self.of[labels.cpu().numpy()].tolist()
        return numbers


def connected_sets(count: int, pairs: np.ndarray) -> np.ndarray:
    """For each of ``count`` labels the number of its set, where ``pairs`` [n, 2] go together; int [count]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    matrix = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers: np.ndarray = connected_components(matrix, directed=False)[1]
    return numbers


def _place_ties(touch: Touch) -> np.ndarray:
    """Ties of channels that have one place in the groups of a layer."""
    tie, labels = tie_of(touch.module, touch.side), touch.labels.tolist()
    first: dict[int, int] = {}
    pairs = [(first.setdefault(tie(channel), label), label) for channel, label in enumerate(labels)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _reasons(flow: Flow, blocks: _Blocks, request: Request, idle: Collection[str], lessons: Lessons) -> dict[int, str]:
    """Block -> why it stays; the most telling reason first."""
    reasons: dict[int, str] = {blocks.nobody: "it has a single channel"}

    def stay(numbers: Iterable[int], reason: str) -> None:
        for block in numbers:
            reasons.setdefault(block, reason)

    for touch in flow.touches:
        if touch.side == "out" and touch.name in idle:
            stay(blocks.at(touch.labels), "it runs in training only")
    if not request.shortcuts:
        stay(_sum_blocks(flow, blocks), "its channels are added to other layers'")
    for touch in flow.touches:
        if touch.side == "out" and touch.name == request.classifier:
            stay(blocks.at(touch.labels), "its channels are the network's outputs")
        if touch.side == "out" and touch.name in request.keep:
            stay(blocks.at(touch.labels), f"{touch.name} is kept")
        if not isinstance(touch.module, _CUTTABLE):
            stay(
                blocks.at(touch.labels),
                f"they reach {touch.name}, a {type(touch.module).__name__}, which cannot be cut",
            )
    for block_reasons in (lessons.refused, flow.stopped):
        for label, reason in block_reasons.items():
            stay([int(blocks.of[label])], reason)
    read = {block for touch in flow.touches if touch.side == "in" for block in blocks.at(touch.labels)}
    stay((set(blocks.of.tolist()) - read), "no layer reads them")
    return reasons


def _sum_blocks(flow: Flow, blocks: _Blocks) -> set[int]:
    """The blocks in which several layers' outputs meet in an addition; a bias or a constant makes no sum."""
    makers: dict[int, set[str]] = {}
    for touch in flow.touches:
        if touch.side == "out" and _makes_channels(touch.module):
            for block in set(blocks.at(touch.labels)):
                makers.setdefault(block, set()).add(touch.name)
    additions = {int(blocks.of[label]) for label in flow.added}
    return {block for block in additions if len(makers.get(block, ())) > 1}


def _makes_channels(module: nn.Module) -> bool:
    """Whether it makes channels of its own; a depthwise convolution only filters those that it is given."""
    if isinstance(module, CONVS) and module.groups > 1:
        return module.groups < module.out_channels
    return isinstance(module, (*WEIGHTED, PadShortcut))


def _form_groups(
    model: nn.Module, flow: Flow, blocks: _Blocks, staying: set[int]
) -> tuple[tuple[Group, ...], set[int]]:
    """The groups; and the blocks of those whose blocks come out alone."""
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    channels = [(touch, _by_block(blocks.at(touch.labels))) for touch in flow.touches]
    made_of: dict[int, list[tuple[int, int]]] = {}
    for number, (_, channel) in enumerate(channels):
        for block in channel.keys() - staying:
            made_of.setdefault(block, []).append((number, len(channel[block])))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for block, parts in made_of.items():
        alike.setdefault(tuple(parts), []).append(block)
    labels = _labels_of(blocks)
    groups: list[Group] = []
    single: set[int] = set()
    for key, numbers in alike.items():
        touches = [channels[number] for number, _ in key]
        if len(numbers) == 1 or not any(t.side == "out" and isinstance(t.module, WEIGHTED) for t, _ in touches):
            single.update(numbers)
            continue
        groups.append(_form_group(model, touches, numbers, places, labels))
    return _named_apart(sorted(groups, key=lambda group: places[group.name])), single


def _labels_of(blocks: _Blocks) -> dict[int, frozenset[int]]:
    labels_by_block: dict[int, set[int]] = {}
    for label, block in enumerate(blocks.of.tolist()):
        labels_by_block.setdefault(block, set()).add(label)
    return {block: frozenset(labels) for block, labels in labels_by_block.items()}


def _by_block(blocks: Sequence[int]) -> dict[int, list[int]]:
    """Block -> channels, in order of the first channels."""
    members: dict[int, list[int]] = {}
    for channel, block in enumerate(blocks):
        members.setdefault(block, []).append(channel)
    return members


def _form_group(
    model: nn.Module,
    touches: Sequence[tuple[Touch, Mapping[int, list[int]]]],
    numbers: Collection[int],
    places: Mapping[str, int],
    labels: Mapping[int, frozenset[int]],
) -> Group:
    attention = _attention_inside([touch.name for touch, _ in touches], model)
    first = _first_reader(touches) if attention else _naming_layer(touches, places)
    order = [block for block in first[1] if block in numbers]
    sequence = [first, *(pair for pair in touches if pair is not first)]
    members = tuple(
        Member(touch.name, touch.module, touch.side, torch.tensor([axis[block] for block in order]))
        for touch, axis in sequence
    )
    return Group(
        name=first[0].name,
        members=members,
        width=members[0].channels.numel(),
        attention=attention,
        labels=tuple(labels[block] for block in order),
    )


def _first_reader(touches: Sequence[tuple[Touch, Mapping[int, list[int]]]]) -> tuple[Touch, Mapping[int, list[int]]]:
    return next(pair for pair in touches if pair[0].side == "in")


def _naming_layer(
    touches: Sequence[tuple[Touch, Mapping[int, list[int]]]], places: Mapping[str, int]
) -> tuple[Touch, Mapping[int, list[int]]]:
    """The first layer that makes the channels; a depthwise convolution, which only filters them, where it is alone."""
    makers = [pair for pair in touches if pair[0].side == "out" and isinstance(pair[0].module, WEIGHTED)]
    return min(makers, key=lambda pair: (getattr(pair[0].module, "groups", 1) > 1, places[pair[0].name]))


def _attention_inside(names: Sequence[str], model: nn.Module) -> str | None:
    """The module with ``num_heads`` whose own children are all the layers, if there is one."""
    owners = {name.rpartition(".")[0] for name in names}
    if len(owners) != 1:
        return None
    owner = owners.pop()
    return owner if heads_of(model.get_submodule(owner)) else None


def _named_apart(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Groups of one layer's channels that go different ways get names of their own."""
    counts: dict[str, int] = {}
    names = []
    for group in groups:
        counts[group.name] = number = counts.get(group.name, 0) + 1
        name = group.name if number == 1 else f"{group.name} ({number})"
        names.append(Group(name, group.members, group.width, group.attention, group.labels))
    return tuple(names)


def _layers_alone(
    model: nn.Module,
    flow: Flow,
    blocks: _Blocks,
    reasons: Mapping[int, str],
    groups: Sequence[Group],
) -> dict[str, Alone]:
    """Every layer with weights of which some output channel stays."""
    ours = {label for group in groups for block in group.labels for label in block}
    labels_alone = {}
    for touch in flow.touches:
        if touch.side == "out" and isinstance(touch.module, WEIGHTED):
            labels = [label for label in touch.labels.tolist() if label not in ours]
            if labels:
                causes = [reasons[int(blocks.of[label])] for label in labels]
                labels_alone[touch.name] = Alone(
                    width=len(touch.labels), stay=len(labels), reason=_most_telling(causes)
                )
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED) and name not in labels_alone and not _is_told(name, flow):
            width = int(channels_of(module, "out"))
            own = "weight" in dict(module.named_parameters(recurse=False))
            reason = "it is not called as a layer" if own else "its weights are computed from other parameters"
            labels_alone[name] = Alone(width=width, stay=width, reason=reason)
    return labels_alone


def _most_telling(reasons: Sequence[str]) -> str:
    """The reason of most channels, the longer of two."""
    return max(sorted(set(reasons)), key=lambda reason: (reasons.count(reason), len(reason)))


def _is_told(name: str, flow: Flow) -> bool:
    return any(touch.name == name and touch.side == "out" for touch in flow.touches)
