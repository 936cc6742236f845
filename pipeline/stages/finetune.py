"""The stage that recovers by training what a change of structure cost.

Apart from ``Train``: a baseline has no teacher, and is not to be trained anew because what folds one has changed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from edgewise.settings import check_fields
from edgewise.stage import Context, Traits
from edgewise.stages.training.loop import fit
from edgewise.stages.training.settings import Training
from edgewise.stages.training.teaching import teacher_for


@check_fields
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
        fit(tuned, self.training, ctx, teacher_for(self.training, ctx))
        return tuned
