"""Which blocks go, so that a budget is met: the least important first, in steps the kernels reward."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from edgewise.errors import StageError
from edgewise.stages.prune.coupling import Group

Scope = Literal["global", "layer", "sensitivity"]
Counts = tuple[int, ...]
"""For each group the number of blocks that go."""

Curve = Sequence[float]
"""What a group's loss costs in accuracy, after 0, 1, 2, … of its blocks are gone; never falls."""

EIGHTHS = 8
"""Where no rounding is asked for, widths are eighths of a layer."""
_LAST_MOVES = 8
"""The last move is chosen among so many of the cheapest."""


@dataclass(frozen=True)
class Rules:
    """What a plan must keep to."""

    scope: Scope
    round_to: int | None
    """None: eighths of every layer."""
    min_layer: float
    """The smallest share of its channels that a group keeps."""
    widths: Mapping[str, int]
    """Width of each group before anything was pruned; the cap counts from there."""


@dataclass(frozen=True)
class Move:
    """Takes one group from one allowed width to the next smaller one."""

    group: int
    count: int
    """Blocks of the group that are gone after the move."""
    price: float
    """Moves are made in the order of this."""


def moves(groups: Sequence[Group], scores: Sequence[Tensor], rules: Rules, curves: Sequence[Curve] = ()) -> list[Move]:
    """Every move in the order it is made; those of one group follow each other.

    The price is the mean importance of the blocks that go (scope "global"), the share of the layer that is gone when
    its width is rounded to the nearest allowed one (scope "layer"), or the point of its curve that the group has then
    come to (scope "sensitivity"), so that all groups are thinned to about the same cost.
    """
    steps = []
    for index, (group, importance) in enumerate(zip(groups, scores, strict=True)):
        increasing, before, price = importance.sort().values, 0, -torch.inf
        for count in allowed_counts(group, importance, rules):
            middle = (before + count) / 2 / group.blocks
            if rules.scope == "sensitivity":
                price = max(price, float(curves[index][count]))
            else:
                price = max(price, float(increasing[before:count].mean()) if rules.scope == "global" else middle)
            before = count
            steps.append(Move(index, count, price))
    return sorted(steps, key=lambda move: (move.price, move.group, move.count))


def meet_budget(moves: Sequence[Move], groups: int, cost: Callable[[Counts], float], target: float) -> Counts:
    """The moves, in order, until ``cost`` is at most ``target``; the last is chosen so that it ends closest below.

    Raises StageError when all moves together do not get there.
    """
    cost = cache(cost)

    def after(number: int) -> float:
        return cost(removed_after(moves[:number], groups))

    if after(len(moves)) > target:
        raise StageError(
            f"wanted {target:.1%} of the network left; with every layer at its smallest allowed width "
            f"{after(len(moves)):.1%} are left. Ask for less, or lower round_to or min_layer, or shorten keep"
        )
    number = bisect_left(range(len(moves)), True, key=lambda n: after(n) <= target)
    if number == 0:
        return removed_after((), groups)
    start = removed_after(moves[: number - 1], groups)
    next_of_each: dict[int, Move] = {}
    for move in moves[number - 1 :]:  # the one that gets there is the first, also among moves of one price
        next_of_each.setdefault(move.group, move)
    cheapest = list(next_of_each.values())[:_LAST_MOVES]
    ends = [(*start[: m.group], m.count, *start[m.group + 1 :]) for m in cheapest]
    return max((end for end in ends if cost(end) <= target), key=cost)


def uniform(moves: Sequence[Move], groups: Sequence[Group], ratio: float) -> Counts:
    """Remove ``ratio`` of every layer, rounded to the nearest allowed width.

    Raises StageError, naming the layer, where less than one channel would be left.
    """
    for group in groups:
        if round(group.blocks * (1 - ratio), 6) < 1:
            raise StageError(describe_emptied(group, ratio))
    return removed_after([move for move in moves if move.price <= ratio], len(groups))


def refuse_emptying(groups: Sequence[Group], scores: Sequence[Tensor], ratio: float) -> None:
    """Raise StageError, naming the layer, if one threshold for ``ratio`` of all channels would leave a layer none."""
    each = [importance.repeat_interleave(group.block_size) for group, importance in zip(groups, scores, strict=True)]
    increasing = torch.cat(each).sort().values
    threshold = increasing[min(int(len(increasing) * ratio), len(increasing) - 1)]
    for group, importance in zip(groups, scores, strict=True):
        if bool((importance < threshold).all()):
            raise StageError(describe_emptied(group, ratio))


def describe_emptied(group: Group, ratio: float) -> str:
    """Why a ratio is refused."""
    return (
        f"keeping {1 - ratio:g} of the channels would empty layer {group.name} ({group.width} channels); ask for less, "
        f"name it in keep, or say what share a single layer must keep with min_layer"
    )


def weakest_blocks(scores: Sequence[Tensor], counts: Counts) -> list[list[int]]:
    """The ``counts[i]`` blocks of lowest importance of each group, in ascending order."""
    return [sorted(score.argsort(stable=True)[:count].tolist()) for score, count in zip(scores, counts, strict=True)]


def allowed_counts(group: Group, importance: Tensor, rules: Rules) -> list[int]:
    """Numbers of removed blocks that leave an allowed width, ascending; the width now is always allowed.

    A block of infinite importance stays.
    """
    least = rules.widths.get(group.name, group.width) * rules.min_layer
    most = int(torch.isfinite(importance).sum())
    channels = {
        count: (group.blocks - count) * group.block_size for count in _allowed_widths(group, rules) if count <= most
    }
    return [count for count, width in channels.items() if width >= least - 1e-6]


def _allowed_widths(group: Group, rules: Rules) -> list[int]:
    if rules.round_to is None:
        counts = {round(group.blocks * k / EIGHTHS) for k in range(1, EIGHTHS)}
        return sorted(count for count in counts if 0 < count < group.blocks)
    round_to = rules.round_to
    return [n for n in range(1, group.blocks) if (group.blocks - n) * group.block_size % round_to == 0]


def removed_after(moves: Sequence[Move], groups: int) -> Counts:
    """What is gone of each of so many groups after ``moves``."""
    counts = [0] * groups
    for move in moves:
        counts[move.group] = max(counts[move.group], move.count)
    return tuple(counts)
