"""EfficientNet B0 to B7: one table, scaled in depth, width and resolution together.

Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019 (arXiv 1905.11946).
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import ConvBN, GlobalMean, SqueezeExcite, StochasticDepth, init_residual, round_channels


class Stage(NamedTuple):
    """One row of table 1."""

    expansion: int
    kernel_size: int
    stride: int
    channels: int
    blocks: int


_B0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
_STEM = 32
_HEAD = 4  # the last convolution has four times the last stage's channels
_DROP_PATH = 0.2


class Norm(NamedTuple):
    """Constants of the batch norms."""

    eps: float = 1e-5
    momentum: float = 0.1


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, linear projection; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stage: Stage, stride: int, drop: float, norm: Norm) -> None:
        super().__init__()
        middle = round_channels(in_channels * stage.expansion)
        layers: list[nn.Module] = []
        if middle != in_channels:
            layers.append(ConvBN(in_channels, middle, 1, 1, 1, nn.SiLU, *norm))
        layers += [
            ConvBN(middle, middle, stage.kernel_size, stride, middle, nn.SiLU, *norm),
            SqueezeExcite(middle, max(1, in_channels // 4), nn.SiLU, nn.Sigmoid),
            ConvBN(middle, out_channels, 1, 1, 1, None, *norm),
        ]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + self.stochastic_depth(out) if self.shortcut else out


class EfficientNet(nn.Module):
    """B0 with channels times ``width`` and blocks times ``depth``; any image size.

    The rule (equation 3) is depth 1.2^phi, width 1.1^phi, resolution 1.15^phi; the published variants round the three.
    """

    def __init__(
        self, width: float, depth: float, dropout: float, norm: Norm, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        channels = round_channels(_STEM * width)
        layers: list[nn.Module] = [ConvBN(in_channels, channels, 3, 2, 1, nn.SiLU, *norm)]
        repeats = [ceil(stage.blocks * depth) for stage in _B0]
        blocks_before = 0
        for stage, blocks in zip(_B0, repeats, strict=True):
            drops = [_DROP_PATH * (blocks_before + i) / sum(repeats) for i in range(blocks)]
            layers.append(_make_stage(channels, round_channels(stage.channels * width), stage, drops, norm))
            channels = round_channels(stage.channels * width)
            blocks_before += blocks
        layers.append(ConvBN(channels, _HEAD * channels, 1, 1, 1, nn.SiLU, *norm))
        self.features = nn.Sequential(*layers)
        self.avgpool = GlobalMean()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(_HEAD * channels, num_classes))
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)))
        return logits


def _make_stage(in_channels: int, out_channels: int, stage: Stage, drops: list[float], norm: Norm) -> nn.Sequential:
    first = MBConv(in_channels, out_channels, stage, stage.stride, drops[0], norm)
    return nn.Sequential(first, *(MBConv(out_channels, out_channels, stage, 1, drop, norm) for drop in drops[1:]))


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b0(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B0: width 1.0, depth 1.0, 224x224 images (Tan and Le 2019)."""
    return EfficientNet(1.0 * width, 1.0 * depth, 0.2, Norm(), num_classes, in_channels)


@register(
    input_shape=(3, 240, 240),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b1(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B1: width 1.0, depth 1.1, 240x240 images (Tan and Le 2019)."""
    return EfficientNet(1.0 * width, 1.1 * depth, 0.2, Norm(), num_classes, in_channels)


@register(
    input_shape=(3, 260, 260),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b2(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B2: width 1.1, depth 1.2, 260x260 images (Tan and Le 2019)."""
    return EfficientNet(1.1 * width, 1.2 * depth, 0.3, Norm(), num_classes, in_channels)


@register(
    input_shape=(3, 300, 300),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b3(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B3: width 1.2, depth 1.4, 300x300 images (Tan and Le 2019)."""
    return EfficientNet(1.2 * width, 1.4 * depth, 0.3, Norm(), num_classes, in_channels)


@register(
    input_shape=(3, 380, 380),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b4(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B4: width 1.4, depth 1.8, 380x380 images (Tan and Le 2019)."""
    return EfficientNet(1.4 * width, 1.8 * depth, 0.4, Norm(), num_classes, in_channels)


@register(
    input_shape=(3, 456, 456),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b5(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B5: width 1.6, depth 2.2, 456x456 images (Tan and Le 2019)."""
    return EfficientNet(1.6 * width, 2.2 * depth, 0.4, Norm(eps=1e-3, momentum=0.01), num_classes, in_channels)


@register(
    input_shape=(3, 528, 528),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b6(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B6: width 1.8, depth 2.6, 528x528 images (Tan and Le 2019)."""
    return EfficientNet(1.8 * width, 2.6 * depth, 0.5, Norm(eps=1e-3, momentum=0.01), num_classes, in_channels)


@register(
    input_shape=(3, 600, 600),
    classifier="classifier.1",
    small={"width": 0.25, "depth": 0.25},
    small_input=(3, 64, 64),
)
def efficientnet_b7(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """EfficientNet-B7: width 2.0, depth 3.1, 600x600 images (Tan and Le 2019)."""
    return EfficientNet(2.0 * width, 3.1 * depth, 0.5, Norm(eps=1e-3, momentum=0.01), num_classes, in_channels)
