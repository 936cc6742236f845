"""GoogLeNet. Szegedy et al.: Going Deeper with Convolutions, 2014 (arXiv 1409.4842), with batch norm."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import CeilMaxPool, GlobalMean, init_residual


class GoogLeNetOutputs(NamedTuple):
    """What the network returns while training; the paper adds 0.3 times each auxiliary loss to the main one."""

    logits: Tensor
    """[N, classes]"""
    aux_logits2: Tensor
    """[N, classes], from the later side branch (inception 4d)."""
    aux_logits1: Tensor
    """[N, classes], from the earlier side branch (inception 4a)."""


class NormedConv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class Inception(nn.Module):
    """Four branches side by side, concatenated (figure 2b). Widths are table 1's columns, left to right.

    The third branch has a 3x3 kernel where the paper writes 5x5, because the published weights do.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        self.branch1 = NormedConv(in_channels, one, 1)
        self.branch2 = nn.Sequential(NormedConv(in_channels, reduce3, 1), NormedConv(reduce3, three, 3))
        self.branch3 = nn.Sequential(NormedConv(in_channels, reduce5, 1), NormedConv(reduce5, five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), NormedConv(in_channels, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), 1)


class Auxiliary(nn.Module):
    """A side classifier on a 4x4 average (section 5); [N, C, H, W] -> [N, classes]."""

    def __init__(self, in_channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = NormedConv(in_channels, width, 1)
        self.fc1 = nn.Linear(16 * width, 8 * width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)
        logits: Tensor = self.fc2(self.dropout(self.relu(self.fc1(x))))
        return logits


# Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
_WIDTHS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """Stem, nine inception modules, global mean, one linear layer; any image size.

    ``forward`` returns logits [N, classes]; while training, and only where the side classifiers are there, a
    GoogLeNetOutputs.
    """

    inception3a: Inception
    inception3b: Inception
    inception4a: Inception
    inception4b: Inception
    inception4c: Inception
    inception4d: Inception
    inception4e: Inception
    inception5a: Inception
    inception5b: Inception
    aux1: Auxiliary | None
    aux2: Auxiliary | None

    def __init__(self, num_classes: int, in_channels: int, width: float, auxiliary: bool) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        self.conv1 = NormedConv(in_channels, scaled(64), 7, 2)
        self.maxpool1 = CeilMaxPool(3, 2)
        self.conv2 = NormedConv(scaled(64), scaled(64), 1)
        self.conv3 = NormedConv(scaled(64), scaled(192), 3)
        self.maxpool2 = CeilMaxPool(3, 2)
        self.maxpool3 = CeilMaxPool(3, 2)
        self.maxpool4 = CeilMaxPool(2, 2)
        channels, outputs = scaled(192), {}
        for name, widths in _WIDTHS.items():
            one, reduce3, three, reduce5, five, pooled = (scaled(w) for w in widths)
            self.add_module(f"inception{name}", Inception(channels, (one, reduce3, three, reduce5, five, pooled)))
            channels = outputs[name] = one + three + five + pooled
        self.aux1 = Auxiliary(outputs["4a"], scaled(128), num_classes) if auxiliary else None
        self.aux2 = Auxiliary(outputs["4d"], scaled(128), num_classes) if auxiliary else None
        self.pool = GlobalMean()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)
        init_residual(self)

    def drop_auxiliary(self) -> None:
        """Take the side classifiers away, in place; training then returns plain logits too."""
        self.aux1 = self.aux2 = None

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        side1 = x = self.inception4a(x)
        side2 = x = self.inception4d(self.inception4c(self.inception4b(x)))
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        logits: Tensor = self.fc(self.dropout(self.pool(x)))
        if self.training and self.aux1 is not None and self.aux2 is not None:
            return GoogLeNetOutputs(logits, self.aux2(side2), self.aux1(side1))
        return logits


# The published weights were trained on images scaled to -1 to 1.
@register(
    input_shape=(3, 224, 224),
    classifier="fc",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    small={"width": 0.25},
    small_input=(3, 64, 64),
)
def googlenet(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, auxiliary: bool = True) -> nn.Module:
    """GoogLeNet with its two side classifiers for training (Szegedy et al. 2014)."""
    return GoogLeNet(num_classes, in_channels, width, auxiliary)
