"""Separable layers put in the place of dense ones, and filled with what was fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models._layers import SeparableConv
from pipeline import surgery
from pipeline.separate.fit import Factors, Moments, error
from pipeline.separate.moments import gather
from pipeline.separate.plan import explicit_padding

Fit = Callable[[nn.Conv2d, Moments], Factors]
_BYTES_AT_ONCE = 1 << 30


def errors(
    model: nn.Module,
    names: Sequence[str],
    fit: Fit,
    fitting: Sequence[Tensor],
    judging: Sequence[Tensor],
    positions: int,
    seed: int,
) -> dict[str, float]:
    """Relative output error of each named layer's fit, every layer alone in the dense ``model``.

    Fitted on the batches ``fitting``, judged on ``judging``: normalised images where the network lies. ``positions``:
    per batch.
    """
    found = {}
    for group in _groups(model, names):
        fitted = gather(model, model, group, fitting, positions, seed)
        judged = gather(model, model, group, judging, positions, seed)
        for name in group:
            found[name] = error(fit(_convolution(model, name), fitted[name]), judged[name])
    return found


def replaced(model: nn.Module, names: Iterable[str], rank: int, norms: Mapping[str, str]) -> nn.Module:
    """A copy of ``model`` with freshly initialised separable layers at ``names``.

    A layer has a bias where the dense one had one or where no batch norm (``norms``: layer -> batch norm) takes it up.
    """
    modules = {name: _described(_convolution(model, name), rank, norms.get(name)) for name in names}
    device = next(model.parameters()).device
    return surgery.apply(model, surgery.Replace(modules)).to(device)


def fit_in_turn(
    student: nn.Module,
    teacher: nn.Module,
    names: Iterable[str],
    norms: Mapping[str, str],
    fit: Fit,
    batches: Sequence[Tensor],
    positions: int,
    seed: int,
) -> None:
    """Fit the named layers of ``student``, in order of execution, in place.

    Each is fitted to the teacher's outputs on the inputs that the student gives it with the layers before it already
    replaced, so that it makes up for their errors (the asymmetric reconstruction of Zhang et al. 2015,
    arXiv 1505.06798, section 2.3).
    """
    for name in names:
        found = gather(student, teacher, [name], batches, positions, seed)[name]
        fill(student, name, fit(_convolution(teacher, name), found), norms.get(name))


def fill(student: nn.Module, name: str, factors: Factors, norm: str | None) -> None:
    """Write factors into the separable layer ``name``; a bias without a place there moves into the batch norm."""
    layer = student.get_submodule(name)
    assert isinstance(layer, SeparableConv)
    with torch.no_grad():
        layer.depthwise.weight.copy_(factors.depthwise.reshape(layer.depthwise.weight.shape))
        layer.pointwise.weight.copy_(factors.pointwise.reshape(layer.pointwise.weight.shape))
        if layer.pointwise.bias is not None:
            layer.pointwise.bias.copy_(factors.bias)
        elif norm is not None:
            mean = student.get_submodule(norm).running_mean
            assert isinstance(mean, Tensor)
            mean.sub_(factors.bias)


def bias_of(layer: nn.Conv2d) -> Tensor:
    """A convolution's bias, zeros where it has none, [Cout]."""
    return layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()


def _described(layer: nn.Conv2d, rank: int, norm: str | None) -> dict[str, Any]:
    padding = explicit_padding(layer)
    assert padding is not None
    args = {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": list(layer.kernel_size),
        "stride": list(layer.stride),
        "padding": list(padding),
        "dilation": list(layer.dilation),
        "bias": layer.bias is not None or norm is None,
        "multiplier": rank,
    }
    return {"type": "SeparableConv", "args": args}


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer


def _groups(model: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Names in runs whose moments fit in memory together."""
    groups: list[list[str]] = []
    room = 0
    for name in names:
        size = 8 * _convolution(model, name).weight[0].numel() ** 2
        if size > room:
            groups.append([])
            room = _BYTES_AT_ONCE
        groups[-1].append(name)
        room -= size
    return groups
