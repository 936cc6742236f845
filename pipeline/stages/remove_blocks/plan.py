"""What a plan of removals is, and how the report tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from edgewise.network import surgery
from edgewise.stages.remove_blocks.find import Block


@dataclass(frozen=True, kw_only=True)
class Removed:
    """One removal."""

    block: Block
    rise: float | None
    """By how much it raised the divergence from the whole network, in nats; None: not read, it was named."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes, in the order in which it was chosen."""

    blocks: Sequence[Block]
    """All that could go, in order of execution."""
    removed: Sequence[Removed]
    saves: Mapping[str, float] = field(default_factory=dict)
    """Block -> the share of the whole time that it saves; empty where nothing was timed."""
    whole_ms: float | None = None
    wanted: float | None = None
    """Share of the time to keep."""
    measured: float | None = None
    """Share that is left."""

    @property
    def gone(self) -> list[Block]:
        """The blocks that are removed."""
        return [removal.block for removal in self.removed]

    @property
    def summary(self) -> str:
        """In a line."""
        line = f"{len(self.removed)} of {len(self.blocks)} blocks removed"
        if self.whole_ms is None or self.measured is None:
            return line
        goal = "" if self.wanted is None else f", wanted {self.wanted:.1%}"
        return f"{line}: {self.whole_ms:.3g} ms -> {self.measured:.1%}{goal}"

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for the report."""
        order = {removal.block.name: number for number, removal in enumerate(self.removed)}
        rises = {removal.block.name: removal.rise for removal in self.removed}
        rows = [
            {
                "block": block.name,
                "modules": list(block.modules),
                "residual": block.residual,
                "saves": self.saves.get(block.name),
                "removed": order.get(block.name),
                "rise": rises.get(block.name),
            }
            for block in self.blocks
        ]
        return {"blocks": rows, "whole_ms": self.whole_ms, "wanted": self.wanted, "measured": self.measured}


def without_blocks(model: nn.Module, blocks: Sequence[Block]) -> nn.Module:
    """A copy of ``model`` in which ``blocks`` pass on what they are given; the rest keeps its weights."""
    names = [name for block in blocks for name in block.modules]
    return surgery.apply(model, surgery.Replace({name: {"type": "PassOn"} for name in names}))
