"""ShuffleNet V2. Ma et al.: ShuffleNet V2: Practical Guidelines for Efficient CNN Design, 2018 (arXiv 1807.11164)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import ConvBN, GlobalMean, init_residual


def shuffle_channels(x: Tensor) -> Tensor:
    """Interleave the first and second half of the channels; [N, C, H, W] in and out, C even."""
    batch, channels, height, width = x.shape
    halves = x.reshape(batch, 2, channels // 2, height, width)
    return halves.transpose(1, 2).reshape(batch, channels, height, width)


def _depthwise_layers(channels: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]


class Unit(nn.Module):
    """A basic unit keeps one half of the channels as they are; a unit with stride 2 convolves both (figure 3 c, d)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        self.branch1 = nn.Sequential(*_depthwise_layers(in_channels, stride), *ConvBN(in_channels, half, 1))
        entering = in_channels
        if stride == 1:
            self.branch1, entering = nn.Sequential(), half
        self.branch2 = nn.Sequential(
            *ConvBN(entering, half, 1), *_depthwise_layers(half, stride), *ConvBN(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            half = x.shape[1] // 2
            return shuffle_channels(torch.cat((x[:, :half], self.branch2(x[:, half:])), 1))
        return shuffle_channels(torch.cat((self.branch1(x), self.branch2(x)), 1))


class ShuffleNetV2(nn.Module):
    """3x3 stem, three stages of 4, 8 and 4 units, a 1x1 convolution, global mean, one linear layer; any image size."""

    def __init__(self, stages: tuple[int, int, int], last: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, 24, stride=2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2 = _make_stage(24, stages[0], 4)
        self.stage3 = _make_stage(stages[0], stages[1], 8)
        self.stage4 = _make_stage(stages[1], stages[2], 4)
        self.conv5 = ConvBN(stages[2], last, 1)
        self.pool = GlobalMean()
        self.fc = nn.Linear(last, num_classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x)))))
        logits: Tensor = self.fc(self.pool(self.conv5(x)))
        return logits


def _make_stage(in_channels: int, out_channels: int, units: int) -> nn.Sequential:
    first = Unit(in_channels, out_channels, 2)
    return nn.Sequential(first, *(Unit(out_channels, out_channels, 1) for _ in range(units - 1)))


def _build_network(
    stages: tuple[int, int, int], last: int, num_classes: int, in_channels: int, width: float
) -> nn.Module:
    first, second, third = (2 * max(1, round(channels * width / 2)) for channels in stages)
    return ShuffleNetV2((first, second, third), max(1, round(last * width)), num_classes, in_channels)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 0.25}, small_input=(3, 64, 64))
def shufflenet_v2_x0_5(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """ShuffleNet V2 x0.5 (Ma et al. 2018, table 5)."""
    return _build_network((48, 96, 192), 1024, num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 0.25}, small_input=(3, 64, 64))
def shufflenet_v2_x1_0(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """ShuffleNet V2 x1.0 (Ma et al. 2018, table 5)."""
    return _build_network((116, 232, 464), 1024, num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 0.25}, small_input=(3, 64, 64))
def shufflenet_v2_x1_5(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """ShuffleNet V2 x1.5 (Ma et al. 2018, table 5)."""
    return _build_network((176, 352, 704), 1024, num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 0.25}, small_input=(3, 64, 64))
def shufflenet_v2_x2_0(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """ShuffleNet V2 x2.0 (Ma et al. 2018, table 5)."""
    return _build_network((244, 488, 976), 2048, num_classes, in_channels, width)
