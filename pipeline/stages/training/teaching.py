"""Which network a training is taught by.

Apart from the loop, so that a training without a teacher does not rest on the code that folds one.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from edgewise.images.normalise import normalise
from edgewise.network.fold_norms import without_norms
from edgewise.stage import Context
from edgewise.stages.training.settings import Training


def teacher_for(training: Training, ctx: Context) -> nn.Module | None:
    """The unmodified baseline as a distillation asks it; None without one.

    A copy in evaluation mode without batch norms, which cost a third of its pass (a captured graph keeps them).
    """
    if not training.distill or ctx.baseline is None:
        return None
    probe = normalise(ctx.data.train.batch(torch.arange(min(2, len(ctx.data.train)))), ctx.spec)
    return without_norms(copy.deepcopy(ctx.baseline).cpu(), probe).eval().requires_grad_(False)
