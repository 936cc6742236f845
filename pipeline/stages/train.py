"""The stages that train: ``Train`` makes a baseline, ``Finetune`` recovers what a change of structure cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from edgewise.settings import checked
from edgewise.stage import Context, Traits
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training


@checked
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


@checked
@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train on, with the unmodified baseline as the teacher."""

    training: Training = field(default_factory=lambda: Training(epochs=40, lr=0.02, distill=0.9))

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits(recovers=True, precision=self.training.precision, learns_from="labels")

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        tuned = copy.deepcopy(model)
        fit(tuned, self.training, ctx, ctx.baseline if self.training.distill else None)
        return tuned
