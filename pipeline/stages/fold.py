"""Batch norm folded into the convolution or linear layer before it.

In evaluation a batch norm is the affine map ``y = (x - mean) * scale + shift`` per channel with
``scale = gamma / sqrt(var + eps)`` (Ioffe, Szegedy 2015, arXiv 1502.03167, section 3.1), so that a layer with weight W
and bias b followed by it equals one with ``W * scale`` and ``(b - mean) * scale + shift`` (Jacob et al. 2018,
arXiv 1712.05877, section 3.2). The same holds for whatever else maps channel by channel, found by what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgewise.errors import StageError
from edgewise.images.normalise import normalise
from edgewise.network.fold_norms import fold_layers, fold_pairs, is_affine
from edgewise.network.plain_layers import with_plain_layers
from edgewise.settings import check_fields
from edgewise.stage import Context, Traits

Rest = Literal["depthwise", "keep"]
_PROBE_IMAGES = 2
_TOLERANCE = 1e-3


@check_fields
@dataclass(frozen=True, kw_only=True)
class Fold:
    """Removes every batch norm that follows a convolution or a linear layer; the network computes what it did."""

    rest: Rest = "depthwise"
    """What becomes of a batch norm over images that follows no such layer (before a convolution, after a sum): a
    depthwise 1x1 convolution with the same values, which every target and quantizer knows, or kept."""

    @property
    def traits(self) -> Traits:
        """What the run has to know of it."""
        return Traits()

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        """A copy without those batch norms, equal to ``model`` in evaluation up to float32 rounding.

        What stays is told through ``ctx.note``. Raises StageError when the result computes something else.
        """
        probe = _probe_images(model, ctx)
        plain = with_plain_layers(model, probe)
        for sentence in plain.sentences():
            ctx.note(sentence)
        folded, norms = fold_pairs(plain.model, probe)
        affine = [name for name in norms.rest if self.rest == "depthwise" and is_affine(folded.get_submodule(name))]
        for name, why in norms.rest.items():
            ctx.note(f"{name}: {'now a depthwise 1x1 convolution' if name in affine else 'kept'}, {why}")
        if folded is model and not affine:
            ctx.note("no batch norm to fold")
        if affine or folded is model:
            folded = fold_layers(folded, {}, affine)
        _check_answers(model, folded, probe)
        return folded


def _check_answers(before: nn.Module, after: nn.Module, images: Tensor) -> None:
    expected, answers = _evaluate_network(before, images), _evaluate_network(after, images)
    difference = float((expected - answers).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise StageError(
            f"folding batch norm changed the network's outputs by {difference:.3g}, wanted rounding only; "
            "a layer may be used under two names, or have a forward of its own"
        )


def _evaluate_network(model: nn.Module, images: Tensor) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        outputs: Tensor = model(images)
    for module, training in modes:
        module.training = training
    return outputs


def _probe_images(model: nn.Module, ctx: Context) -> Tensor:
    """A few calibration images, normalised, where the network lies."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = ctx.data.calib.batch(torch.arange(min(_PROBE_IMAGES, len(ctx.data.calib))))
    return normalise(images, ctx.spec).to(device)
