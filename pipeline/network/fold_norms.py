"""Batch norms taken into the layers before them, as a change of structure.

With scale and shift of a batch norm in evaluation, a layer of weight W and bias b followed by it equals one with
``W * scale`` and ``(b - mean) * scale + beta`` (Jacob et al. 2018, arXiv 1712.05877, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.network import surgery
from edgewise.network.linear_map import Unlike, channel_map_of
from edgewise.network.norm_pairs import _LAYERS, _NORMS, Norms, affine_of, find_norms


def without_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``model`` as ``Fold`` would make it, found by running it on normalised ``images`` [N, C, H, W]."""
    folded, norms = fold_pairs(model, images)
    return fold_layers(folded, {}, [name for name in norms.rest if is_affine(folded.get_submodule(name))])


def fold_pairs(model: nn.Module, images: Tensor) -> tuple[nn.Module, Norms]:
    """``model`` with every norm folded that follows a layer, or one that was folded before it; and the norms left."""
    norms = find_norms(model, images)
    while pairs := {**norms.pairs, **norms.maps}:
        model = fold_layers(model, pairs, ())
        norms = find_norms(model, images)
    return model, norms


def fold_layers(model: nn.Module, pairs: Mapping[str, str], alone: Iterable[str]) -> nn.Module:
    """A copy with each layer's norm (``pairs``: layer -> norm) taken into it, and those ``alone`` as 1x1 layers."""
    old = dict(model.named_modules())
    layers = {layer: _describe_layer(old[layer]) for layer in pairs}
    identities: dict[str, dict[str, Any]] = {norm: {"type": "Identity"} for norm in pairs.values()}
    pointwise = {norm: _described_affine(old[norm]) for norm in alone}
    replaced = layers | identities | pointwise
    with torch.random.fork_rng(devices=[]):  # the fresh layers' own values are never used
        new_model = surgery.apply(model, surgery.Replace(replaced))
    with torch.no_grad():
        for layer, norm in pairs.items():
            scale, shift = (
                affine_of(old[norm]) if isinstance(old[norm], _NORMS) else _measure_affine(old[norm], old[layer])
            )
            _fill_layer(new_model.get_submodule(layer), old[layer], *_combine_affine(old[layer], scale, shift))
        for norm in pointwise:
            scale, shift = affine_of(old[norm])
            _fill_layer(new_model.get_submodule(norm), old[norm], scale[:, None, None, None], shift)
    for name in replaced:
        new_model.get_submodule(name).train(old[name].training)
    return new_model


def _measure_affine(module: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 [C] each, of what maps the output of ``layer`` channel by channel."""
    assert isinstance(layer, _LAYERS)
    stored = next(layer.parameters())
    if isinstance(layer, nn.Linear):
        example = stored.new_zeros(1, layer.out_features)
    else:
        example = stored.new_zeros(1, layer.out_channels, 1, 1)
    channel_map = channel_map_of(module, example)
    return channel_map.scale, channel_map.shift


def is_affine(module: nn.Module) -> bool:
    """Whether it is a batch norm over images, with statistics, and no more than that."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    try:
        channel_map_of(module, module.running_mean.new_zeros(1, module.num_features, 1, 1))
    except Unlike:
        return False
    return True


def _combine_affine(layer: nn.Module, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of the layer with the affine map behind it."""
    assert isinstance(layer, _LAYERS)
    weight = layer.weight.double()
    if isinstance(layer, nn.ConvTranspose2d):  # [Cin, Cout / groups, K, K], groups one after the other
        by_group = weight.reshape(layer.groups, -1, *weight.shape[1:]) * scale.view(layer.groups, 1, -1, 1, 1)
        weight = by_group.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return weight, shift if layer.bias is None else layer.bias.double() * scale + shift


def _fill_layer(fresh: nn.Module, like: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(fresh, _LAYERS) and fresh.bias is not None
    stored = next(like.parameters(), weight.float())
    fresh.to(stored.device, stored.dtype)
    fresh.weight.copy_(weight)
    fresh.bias.copy_(bias)


def _describe_layer(layer: nn.Module) -> dict[str, Any]:
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
