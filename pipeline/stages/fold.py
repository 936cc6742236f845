"""Batch norm folded into the convolution or linear layer before it.

In evaluation a batch norm is the affine map ``y = (x - mean) * scale + shift`` per channel with
``scale = gamma / sqrt(var + eps)`` (Ioffe, Szegedy 2015, arXiv 1502.03167, section 3.1), so that a layer with weight W
and bias b followed by it equals one with ``W * scale`` and ``(b - mean) * scale + shift`` (Jacob et al. 2018,
arXiv 1712.05877, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgewise.errors import StageError
from edgewise.images.normalise import normalise
from edgewise.network import surgery
from edgewise.network.norm_pairs import _LAYERS, affine_of, find_norms
from edgewise.settings import checked
from edgewise.stage import Context, Traits

Rest = Literal["depthwise", "keep"]
_PROBE_IMAGES = 2
_TOLERANCE = 1e-3


@checked
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
        probe = _probe(model, ctx)
        norms = find_norms(model, probe)
        affine = [name for name in norms.rest if self.rest == "depthwise" and _is_affine(model.get_submodule(name))]
        for name, why in norms.rest.items():
            ctx.note(f"{name}: {'now a depthwise 1x1 convolution' if name in affine else 'kept'}, {why}")
        if not norms.pairs and not affine:
            ctx.note("no batch norm to fold")
        folded = _folded(model, norms.pairs, affine)
        _check(model, folded, probe)
        return folded


def without_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``model`` as ``Fold`` would make it, found by running it on normalised ``images`` [N, C, H, W]."""
    norms = find_norms(model, images)
    return _folded(model, norms.pairs, [name for name in norms.rest if _is_affine(model.get_submodule(name))])


def _folded(model: nn.Module, pairs: Mapping[str, str], alone: Iterable[str]) -> nn.Module:
    old = dict(model.named_modules())
    layers = {layer: _described(old[layer]) for layer in pairs}
    identities: dict[str, dict[str, Any]] = {norm: {"type": "Identity"} for norm in pairs.values()}
    pointwise = {norm: _described_affine(old[norm]) for norm in alone}
    replaced = layers | identities | pointwise
    with torch.random.fork_rng(devices=[]):  # the fresh layers' own values are never used
        folded = surgery.apply(model, surgery.Replace(replaced))
    with torch.no_grad():
        for layer, norm in pairs.items():
            scale, shift = affine_of(old[norm])
            _fill(folded.get_submodule(layer), old[layer], *_combined(old[layer], scale, shift))
        for norm in pointwise:
            scale, shift = affine_of(old[norm])
            _fill(folded.get_submodule(norm), old[norm], scale[:, None, None, None], shift)
    for name in replaced:
        folded.get_submodule(name).train(old[name].training)
    return folded


def _is_affine(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _combined(layer: nn.Module, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of the layer with the affine map behind it."""
    assert isinstance(layer, _LAYERS)
    weight = layer.weight.double()
    if isinstance(layer, nn.ConvTranspose2d):  # [Cin, Cout / groups, K, K], groups one after the other
        by_group = weight.reshape(layer.groups, -1, *weight.shape[1:]) * scale.view(layer.groups, 1, -1, 1, 1)
        weight = by_group.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return weight, shift if layer.bias is None else layer.bias.double() * scale + shift


def _fill(fresh: nn.Module, like: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(fresh, _LAYERS) and fresh.bias is not None
    stored = next(like.parameters(), weight.float())
    fresh.to(stored.device, stored.dtype)
    fresh.weight.copy_(weight)
    fresh.bias.copy_(bias)


def _described(layer: nn.Module) -> dict[str, Any]:
    """A layer of the same kind with a bias, for surgery.Replace."""
    if isinstance(layer, nn.Linear):
        return {"type": "Linear", "args": {"in_features": layer.in_features, "out_features": layer.out_features}}
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    kind = "Conv2d"
    if isinstance(layer, nn.ConvTranspose2d):
        kind, names = "ConvTranspose2d", [*names, "output_padding"]
    values = {name: getattr(layer, name) for name in names}
    return {"type": kind, "args": {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def _described_affine(norm: nn.Module) -> dict[str, Any]:
    assert isinstance(norm, nn.BatchNorm2d)
    channels = norm.num_features
    args = {"in_channels": channels, "out_channels": channels, "kernel_size": [1, 1], "groups": channels}
    return {"type": "Conv2d", "args": args}


def _check(before: nn.Module, after: nn.Module, images: Tensor) -> None:
    wanted, found = _evaluated(before, images), _evaluated(after, images)
    difference = float((wanted - found).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise StageError(
            f"folding batch norm changed the network's outputs by {difference:.3g}, wanted rounding only; "
            "a layer may be used under two names, or have a forward of its own"
        )


def _evaluated(model: nn.Module, images: Tensor) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        outputs: Tensor = model(images)
    for module, training in modes:
        module.training = training
    return outputs


def _probe(model: nn.Module, ctx: Context) -> Tensor:
    """A few calibration images, normalised, where the network lies."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = ctx.data.calib.batch(torch.arange(min(_PROBE_IMAGES, len(ctx.data.calib))))
    return normalise(images, ctx.spec).to(device)
