"""The stage that makes a baseline by training."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training


@check_fields
@dataclass(frozen=True, kw_only=True)
class Train:
    """Train from the labels alone."""

    training: Training = field(default_factory=lambda: Training(epochs=200, lr=0.1, warmup=1))

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(precision=self.training.precision, learns_from="labels")

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        trained = copy.deepcopy(model)
        fit(trained, self.training, ctx, None)
        return trained
