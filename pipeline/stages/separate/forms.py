"""What a dense convolution can be replaced by: the parts, their cost, and how they are fitted and filled in.

A form is described by the dense kernel it stands for, so that planning, timing, fitting to outputs and distillation
know nothing of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from edgewise.models._layers import SeparableConv
from edgewise.stages.fitting.layer_io import explicit_padding
from edgewise.stages.fitting.least_squares import Fitted, Moments
from edgewise.stages.separate import chain_fit, depthwise_fit
from edgewise.stages.separate.chain_fit import Chain
from edgewise.stages.separate.depthwise_fit import Factors

Into = Literal["depthwise", "spatial", "stacked"]


class Form(Protocol):
    """A cheaper form of a dense convolution."""

    def obstacle(self, layer: nn.Conv2d) -> str:
        """Why this layer has no such form; empty where it has."""

    def size(self, layer: nn.Conv2d, given: Sequence[int], output: Sequence[int]) -> tuple[int, int]:
        """Channels between the parts, and multiply-accumulates for one image, from the shapes [N, C, H, W]."""

    def describe(self, layer: nn.Conv2d, middle: int, bias: bool) -> dict[str, Any]:
        """The new module for ``surgery.Replace``."""

    def kernel_fit(self, weight: Tensor, bias: Tensor, middle: int) -> Fitted:
        """The closest to the kernel [Cout, Cin, Kh, Kw] in the sum of squares; the bias [Cout] is kept."""

    def output_fit(self, start: Any, moments: Moments, sweeps: int) -> Fitted:
        """The closest to the layer's outputs, from ``start``."""

    def fill(self, module: nn.Module, fitted: Any) -> nn.Conv2d:
        """Write the kernels into the new module; returns the convolution that may hold the bias."""


@dataclass(frozen=True)
class Depthwise:
    """``rank`` depthwise filters per input channel, then a pointwise convolution (``fit``)."""

    rank: int

    def obstacle(self, layer: nn.Conv2d) -> str:
        return ""

    def size(self, layer: nn.Conv2d, given: Sequence[int], output: Sequence[int]) -> tuple[int, int]:
        height, width = layer.kernel_size
        middle = layer.in_channels * self.rank
        return middle, output[2] * output[3] * middle * (height * width + layer.out_channels)

    def describe(self, layer: nn.Conv2d, middle: int, bias: bool) -> dict[str, Any]:
        geometry = {
            "in_channels": layer.in_channels, "out_channels": layer.out_channels,
            "kernel_size": list(layer.kernel_size), "stride": list(layer.stride),
            "padding": list(_same_padding(layer)), "dilation": list(layer.dilation),
        }  # fmt: skip
        return {"type": "SeparableConv", "args": geometry | {"bias": bias, "multiplier": self.rank}}

    def kernel_fit(self, weight: Tensor, bias: Tensor, middle: int) -> Factors:
        return depthwise_fit.kernel_fit(weight, bias, self.rank)

    def output_fit(self, start: Factors, moments: Moments, sweeps: int) -> Factors:
        return depthwise_fit.output_fit(start, moments, sweeps)

    def fill(self, module: nn.Module, fitted: Factors) -> nn.Conv2d:
        assert isinstance(module, SeparableConv)
        module.depthwise.weight.copy_(fitted.depthwise.reshape(module.depthwise.weight.shape))
        module.pointwise.weight.copy_(fitted.pointwise.reshape(module.pointwise.weight.shape))
        return module.pointwise


@dataclass(frozen=True)
class Spatial:
    """A Kh x 1 convolution, then a 1 x Kw one (``chain``), with as many channels between as ``share`` allows."""

    share: float

    def obstacle(self, layer: nn.Conv2d) -> str:
        return (
            ""
            if min(layer.kernel_size) > 1
            else f"its kernel is {_size_text(layer.kernel_size)}, of one row or column already"
        )

    def size(self, layer: nn.Conv2d, given: Sequence[int], output: Sequence[int]) -> tuple[int, int]:
        height, width = layer.kernel_size
        dense = output[2] * output[3] * height * width * layer.in_channels * layer.out_channels
        # The first strides in height alone, so that it runs over all columns of its input.
        each = output[2] * (given[3] * height * layer.in_channels + output[3] * width * layer.out_channels)
        most = min(height * layer.in_channels, width * layer.out_channels)
        middle = max(1, min(most, int(self.share * dense / each)))
        return middle, middle * each

    def describe(self, layer: nn.Conv2d, middle: int, bias: bool) -> dict[str, Any]:
        down, across = _same_padding(layer)
        first = _conv_description(
            layer.in_channels, middle, (layer.kernel_size[0], 1), (layer.stride[0], 1), (down, 0), layer, False
        )
        last = _conv_description(
            middle, layer.out_channels, (1, layer.kernel_size[1]), (1, layer.stride[1]), (0, across), layer, bias
        )
        return {"type": "Sequential", "children": [first, last]}

    def kernel_fit(self, weight: Tensor, bias: Tensor, middle: int) -> Chain:
        return chain_fit.spatial_fit(weight, bias, middle)

    def output_fit(self, start: Chain, moments: Moments, sweeps: int) -> Chain:
        return chain_fit.output_fit(start, moments, sweeps)

    def fill(self, module: nn.Module, fitted: Chain) -> nn.Conv2d:
        return _fill_chain(module, fitted)


@dataclass(frozen=True)
class Stacked:
    """3 x 3 convolutions one after the other (``chain``), as many as give the dense one's receptive field."""

    share: float

    def obstacle(self, layer: nn.Conv2d) -> str:
        height, width = layer.kernel_size
        if height == width and height % 2 and height >= 5:
            return ""
        return f"its kernel is {_size_text(layer.kernel_size)}; odd square ones from 5x5 on are stacks of 3x3"

    def size(self, layer: nn.Conv2d, given: Sequence[int], output: Sequence[int]) -> tuple[int, int]:
        dense = output[2] * output[3] * layer.in_channels * layer.out_channels * layer.kernel_size[0] ** 2
        middle = 1
        while self._macs(layer, middle + 1, given, output) <= self.share * dense and middle < 9 * layer.in_channels:
            middle += 1
        return middle, self._macs(layer, middle, given, output)

    def _macs(self, layer: nn.Conv2d, middle: int, given: Sequence[int], output: Sequence[int]) -> int:
        down, across = _same_padding(layer)
        height, width = given[2] + 2 * down, given[3] + 2 * across
        total, channels = 0, layer.in_channels
        for _ in range(_part_count(layer) - 1):  # the padding is the first one's, the stride the last one's
            height, width = height - 2 * layer.dilation[0], width - 2 * layer.dilation[1]
            total += height * width * 9 * channels * middle
            channels = middle
        return total + output[2] * output[3] * 9 * middle * layer.out_channels

    def describe(self, layer: nn.Conv2d, middle: int, bias: bool) -> dict[str, Any]:
        parts, children = _part_count(layer), []
        for index in range(parts):
            first, last = index == 0, index == parts - 1
            channels = layer.in_channels if first else middle, layer.out_channels if last else middle
            stride, padding = layer.stride if last else (1, 1), _same_padding(layer) if first else (0, 0)
            children.append(_conv_description(*channels, (3, 3), stride, padding, layer, bias and last))
        return {"type": "Sequential", "children": children}

    def kernel_fit(self, weight: Tensor, bias: Tensor, middle: int) -> Chain:
        return chain_fit.stacked_fit(weight, bias, middle)

    def output_fit(self, start: Chain, moments: Moments, sweeps: int) -> Chain:
        return chain_fit.output_fit(start, moments, sweeps)

    def fill(self, module: nn.Module, fitted: Chain) -> nn.Conv2d:
        return _fill_chain(module, fitted)


def form_of(into: Into, rank: int, share: float) -> Form:
    """The form that a stage's settings name."""
    forms: Mapping[Into, Form] = {"depthwise": Depthwise(rank), "spatial": Spatial(share), "stacked": Stacked(share)}
    return forms[into]


def _same_padding(layer: nn.Conv2d) -> tuple[int, int]:
    padding = explicit_padding(layer)
    assert padding is not None
    return padding


def _part_count(layer: nn.Conv2d) -> int:
    return (layer.kernel_size[0] - 1) // 2


def _size_text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _conv_description(
    channels: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    like: nn.Conv2d, bias: bool,
) -> dict[str, Any]:  # fmt: skip
    args = {
        "in_channels": channels, "out_channels": outputs, "kernel_size": list(kernel), "stride": list(stride),
        "padding": list(padding), "dilation": list(like.dilation), "bias": bias,
    }  # fmt: skip
    return {"type": "Conv2d", "args": args}


def _fill_chain(module: nn.Module, fitted: Chain) -> nn.Conv2d:
    assert isinstance(module, nn.Sequential)
    last = module[0]
    for last, kernel in zip(module, fitted.kernels, strict=True):
        assert isinstance(last, nn.Conv2d)
        last.weight.copy_(kernel)
    assert isinstance(last, nn.Conv2d)
    return last


def bias_of(layer: nn.Conv2d) -> Tensor:
    """A convolution's bias, zeros where it has none, [Cout]."""
    return layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()


def get_convolution(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution called ``name``."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer
