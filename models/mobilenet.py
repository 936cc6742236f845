"""MobileNet V1, V2 and V3.

Howard et al.: MobileNets, 2017 (arXiv 1704.04861). Sandler et al.: MobileNetV2, 2018 (arXiv 1801.04381).
Howard et al.: Searching for MobileNetV3, 2019 (arXiv 1905.02244).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import ConvBN, GlobalMean, SqueezeExcite, init_residual, round_channels

# V1, table 1: output channels and stride of each depthwise-separable pair.
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# V2, table 2: expansion t, channels c, repeats n, stride s.
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV1(nn.Module):
    """Depthwise and pointwise convolutions in turn, each with batch norm and ReLU; any image size."""

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        channels = round_channels(32 * width)
        layers: list[nn.Module] = [ConvBN(in_channels, channels, stride=2)]
        for base, stride in _V1:
            out_channels = round_channels(base * width)
            layers.append(ConvBN(channels, channels, stride=stride, groups=channels))
            layers.append(ConvBN(channels, out_channels, 1))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.avgpool = GlobalMean()
        self.classifier = nn.Linear(channels, num_classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)))
        return logits


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection (V2, figure 3b); a shortcut where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        expand = [ConvBN(in_channels, middle, 1, activation=nn.ReLU6)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            ConvBN(middle, middle, 3, stride, middle, nn.ReLU6),
            nn.Conv2d(middle, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Inverted residuals with linear bottlenecks; any image size."""

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        channels = round_channels(32 * width)
        layers: list[nn.Module] = [ConvBN(in_channels, channels, 3, 2, 1, nn.ReLU6)]
        for expansion, base, repeats, stride in _V2:
            out_channels = round_channels(base * width)
            for i in range(repeats):
                layers.append(InvertedResidual(channels, out_channels, expansion, stride if i == 0 else 1))
                channels = out_channels
        last = round_channels(1280 * max(1.0, width))  # a narrow network keeps its wide last layer (section 6.1)
        layers.append(ConvBN(channels, last, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.avgpool = GlobalMean()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)))
        return logits


class Row(NamedTuple):
    """One line of V3's tables 1 and 2: kernel, expansion size, output channels, squeeze-and-excite, h-swish, stride."""

    kernel_size: int
    middle: int
    channels: int
    squeeze: bool
    hard_swish: bool
    stride: int


_LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
_SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)
_V3_NORM = (1e-3, 0.01)  # eps and momentum of every batch norm


class BlockV3(nn.Module):
    """Inverted residual with squeeze-and-excitation after the depthwise convolution (V3, figure 4)."""

    def __init__(self, in_channels: int, row: Row, width: float) -> None:
        super().__init__()
        middle, out_channels = round_channels(row.middle * width), round_channels(row.channels * width)
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if middle != in_channels:
            layers.append(ConvBN(in_channels, middle, 1, 1, 1, activation, *_V3_NORM))
        layers.append(ConvBN(middle, middle, row.kernel_size, row.stride, middle, activation, *_V3_NORM))
        if row.squeeze:
            layers.append(SqueezeExcite(middle, round_channels(middle // 4), nn.ReLU, nn.Hardsigmoid))
        layers.append(ConvBN(middle, out_channels, 1, 1, 1, None, *_V3_NORM))
        self.block = nn.Sequential(*layers)
        self.shortcut = row.stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.shortcut else out


class MobileNetV3(nn.Module):
    """V3's blocks, a 1x1 convolution, global mean, and two linear layers; any image size."""

    def __init__(self, rows: tuple[Row, ...], hidden: int, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        channels = round_channels(16 * width)
        layers: list[nn.Module] = [ConvBN(in_channels, channels, 3, 2, 1, nn.Hardswish, *_V3_NORM)]
        for row in rows:
            layers.append(BlockV3(channels, row, width))
            channels = round_channels(row.channels * width)
        layers.append(ConvBN(channels, 6 * channels, 1, 1, 1, nn.Hardswish, *_V3_NORM))
        self.features = nn.Sequential(*layers)
        self.avgpool = GlobalMean()
        hidden = round_channels(hidden * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, num_classes)
        )
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)))
        return logits


@register(input_shape=(3, 224, 224), classifier="classifier", small={"width": 0.25}, small_input=(3, 64, 64))
def mobilenet_v1(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileNet V1 (Howard et al. 2017, table 1)."""
    return MobileNetV1(num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="classifier.1", small={"width": 0.25}, small_input=(3, 64, 64))
def mobilenet_v2(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileNet V2 (Sandler et al. 2018, table 2)."""
    return MobileNetV2(num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="classifier.3", small={"width": 0.25}, small_input=(3, 64, 64))
def mobilenet_v3_small(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileNet V3-Small (Howard et al. 2019, table 2)."""
    return MobileNetV3(_SMALL, 1024, num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="classifier.3", small={"width": 0.25}, small_input=(3, 64, 64))
def mobilenet_v3_large(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileNet V3-Large (Howard et al. 2019, table 1)."""
    return MobileNetV3(_LARGE, 1280, num_classes, in_channels, width)
