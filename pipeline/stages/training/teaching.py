"""Which network a training is taught by.

Apart from the loop, so that a training without a teacher does not rest on the code that folds one.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from edgewise.calib_data import Data
from edgewise.images.normalise import normalise
from edgewise.models import Spec
from edgewise.network.fold_norms import without_norms
from edgewise.stage import Context
from edgewise.stages.training.settings import Training


def teacher_for(training: Training, ctx: Context) -> nn.Module | None:
    """The unmodified baseline as a distillation asks it; None without one."""
    return fold_teacher(ctx.baseline, ctx.data, ctx.spec) if training.distill and ctx.baseline is not None else None


def fold_teacher(network: nn.Module, data: Data, spec: Spec) -> nn.Module:
    """A frozen copy in evaluation mode, in main memory, without batch norms, which cost a third of its pass.

    A captured graph keeps them.
    """
    probe = normalise(data.train.batch(torch.arange(min(2, len(data.train)))), spec)
    return without_norms(copy.deepcopy(network).cpu(), probe).eval().requires_grad_(False)
