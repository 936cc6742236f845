"""Which network a training is taught by.

Apart from the loop, so that a training without a teacher does not rest on the code that folds one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.images.normalise import normalise
from edgewise.models import Spec
from edgewise.network.fold_norms import without_norms
from edgewise.stage import Context
from edgewise.stages.training.settings import Training


def teacher_for(training: Training, ctx: Context) -> nn.Module | None:
    """The unmodified baseline as a distillation asks it; None without one."""
    if not training.distill or ctx.baseline is None:
        return None
    return make_teacher(ctx.baseline, training, ctx.data, ctx.spec)


def make_teacher(network: nn.Module, training: Training, data: Data, spec: Spec) -> nn.Module:
    """A frozen copy in evaluation mode, in main memory, without batch norms, which cost a third of its pass.

    A captured graph keeps them. Raises RequestError where it is to see mirror images of data that has none.
    """
    probe = normalise(data.train.batch(torch.arange(min(2, len(data.train)))), spec)
    folded = without_norms(copy.deepcopy(network).cpu(), probe).eval().requires_grad_(False)
    if not training.mirrored_teacher:
        return folded
    flips = training.augment.flip
    if not (data.flip if flips is None else flips):
        why = (
            "these data say that a mirrored image may have another label" if flips is None else "augment has flip=False"
        )
        raise RequestError(
            f"mirrored_teacher=True asks the teacher about mirror images, and {why}; leave it out, or say "
            "Augment(flip=True) if a mirror image keeps its label"
        )
    return _Mirrored(folded).eval()


class _Mirrored(nn.Module):
    """The mean answer about images [B, C, H, W] and their mirror images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = (self.network(images) + self.network(images.flip(-1))) / 2
        return mean
