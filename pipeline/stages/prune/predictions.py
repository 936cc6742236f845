"""What is predicted and measured for a budget of milliseconds, and for one of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from edgewise.stage import Context
from edgewise.stages.fitting.timer import Clock
from edgewise.stages.prune import plan
from edgewise.stages.prune.coupling import Group
from edgewise.stages.prune.knapsack import lightest_counts
from edgewise.stages.prune.latency_table import Table, tabulate_layers
from edgewise.stages.prune.plan import Counts


@dataclass(frozen=True)
class Time:
    """Milliseconds of one call: the sum over the layers, corrected by whole networks."""

    watch: Clock
    table: Table
    scope: plan.Scope
    moves: Sequence[plan.Move]
    choices: Sequence[Sequence[int]]
    curves: Sequence[plan.Curve]
    slack: float = 0.02

    @classmethod
    def of(
        cls,
        watch: Clock,
        model: nn.Module,
        groups: Sequence[Group],
        ctx: Context,
        scope: plan.Scope,
        moves: Sequence[plan.Move],
        choices: Sequence[Sequence[int]],
        curves: Sequence[plan.Curve],
    ) -> Time:
        """With the latency table of ``model``, built where the store does not hold it."""
        return cls(watch, tabulate_layers(model, groups, ctx), scope, moves, choices, curves)

    def predict(self, counts: Counts) -> float:
        """The layers' time with ``counts`` of the groups gone, as a share of their time now."""
        return self.table.ms(counts) / self._now

    def choose(self, share: float) -> Counts:
        """The same share of every layer (scope "layer"), or what costs least accuracy."""
        if self.scope == "layer":
            return plan.meet_budget(self.moves, len(self.choices), self.predict, share)
        return lightest_counts(self.table, self.choices, self.curves, share * self._now)

    def least(self) -> Counts:
        """All moves made."""
        return plan.removed_after(self.moves, len(self.choices))

    def measure(self, model: nn.Module) -> float:
        """The whole network's time."""
        return self.watch.read(model).time

    @cached_property
    def _now(self) -> float:
        return self.table.ms((0,) * len(self.choices))


@dataclass(frozen=True)
class Bytes:
    """Bytes of the written file: the tensors, corrected by whole files."""

    watch: Clock
    moves: Sequence[plan.Move]
    groups: int
    cut: Callable[[Counts], nn.Module]
    slack: float = 0.0

    def predict(self, counts: Counts) -> float:
        """The tensors' bytes, as a share of the bytes now."""
        return _bytes(self.cut(counts)) / self._now

    def choose(self, share: float) -> Counts:
        """The cheapest moves, in order."""
        return plan.meet_budget(self.moves, self.groups, self.predict, share)

    def least(self) -> Counts:
        """All moves made."""
        return plan.removed_after(self.moves, self.groups)

    def measure(self, model: nn.Module) -> float:
        """The whole file."""
        return self.watch.size(model) / self.watch.bytes

    @cached_property
    def _now(self) -> int:
        return _bytes(self.cut((0,) * self.groups))


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
