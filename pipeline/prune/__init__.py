"""The stage that removes whole channels, heads and hidden units, so that what is left is a smaller dense network."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.errors import RequestError, StageError
from pipeline.recipe import Context, in_range

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Prune"]

IMPORTANCES = ("l1", "l2", "bn_scale", "taylor", "fpgm", "lamp", "activation", "random")


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Structured pruning to a budget, which is exactly one of ``ratio``, ``macs`` and ``params``."""

    ratio: float | None = None
    """Share of the channels to remove, above 0 and below 1."""
    macs: float | None = None
    """Share of the multiply-accumulates to keep, for example 1 / 2.57; at most this much is left."""
    params: float | None = None
    """Share of the parameters to keep; at most this much is left."""
    importance: Literal["l1", "l2", "bn_scale", "taylor", "fpgm", "lamp", "activation", "random"] = "l2"
    """What makes a channel worth keeping; random is the control."""
    scope: Literal["global", "layer"] = "global"
    """Rank the channels of all layers against each other, or take the same share of every layer."""
    round_to: int = 8
    """Leave a multiple of this many channels; vector units and NPUs work in such blocks."""
    steps: int = 1
    """Reach the budget in so many equal steps, and look at the importance anew before each."""
    max_layer_ratio: float = 0.9
    """The largest share of its channels that a single layer may lose."""
    keep: tuple[str, ...] = ()
    """Layers whose output channels are never pruned."""
    images: int = 512
    """Calibration images that the measures of data (taylor, activation) look at."""

    def __post_init__(self) -> None:
        budgets = {name: getattr(self, name) for name in ("ratio", "macs", "params")}
        given = {name: value for name, value in budgets.items() if value is not None}
        if len(given) != 1:
            raise RequestError(f"Prune wants exactly one of {', '.join(budgets)}, found {', '.join(given) or 'none'}")
        for name, value in given.items():
            if not 0 < value < 1:
                raise RequestError(f"Prune.{name} must lie between 0 and 1, both excluded, found {value:g}")
        for name, choices in (("importance", IMPORTANCES), ("scope", ("global", "layer"))):
            if getattr(self, name) not in choices:
                raise RequestError(f"Prune.{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")
        for name in ("round_to", "steps", "images"):
            in_range(f"Prune.{name}", getattr(self, name), 1, 1_000_000)
        in_range("Prune.max_layer_ratio", self.max_layer_ratio, 0.01, 1)
        if self.scope == "layer" and self.ratio is not None and self.ratio > self.max_layer_ratio:
            raise RequestError(
                f"Prune.ratio {self.ratio:g} of every layer exceeds max_layer_ratio {self.max_layer_ratio:g}"
            )

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A pruned copy of ``model``, which carries the surgery that made it.

        Raises StageError when nothing can be removed, when the budget cannot be met, when a layer would be emptied, and
        when the smaller network does not compute what the larger one does without the removed channels.
        """
        from pipeline import surgery
        from pipeline.prune.budget import spend

        if "prune" in ctx.spec.cannot:
            raise RequestError(f"{ctx.spec.name} cannot be pruned: {ctx.spec.cannot['prune']}")
        pruned = copy.deepcopy(model).eval().requires_grad_(True)
        summary = spend(pruned, self, ctx)
        for before, after in zip(model.modules(), pruned.modules(), strict=True):
            after.training = before.training
        operation = surgery.difference(model, pruned)
        if not operation.shapes:
            raise StageError(f"pruning changed nothing: {summary}. Ask for more, or lower round_to ({self.round_to})")
        ctx.note(f"pruned {len(operation.attributes)} layers: {summary}")
        return surgery.record(pruned, operation)

    @property
    def budget(self) -> tuple[Literal["channels", "macs", "params"], float]:
        """What is limited, and the share of it to be left."""
        if self.ratio is not None:
            return "channels", 1 - self.ratio
        if self.macs is not None:
            return "macs", self.macs
        assert self.params is not None
        return "params", self.params
