"""Residual networks: the ImageNet five, and the CIFAR ones with shortcuts that have no parameters.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015 (arXiv 1512.03385).
"""

from __future__ import annotations

from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import ConvBN, GlobalMean, PadShortcut, init_residual


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads with zero channels where the shape changes (option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = PadShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        output: Tensor = self.relu2(out)
        return output


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages of n blocks, ``width``, 2 and 4 times ``width`` channels (section 4.2)."""

    def __init__(self, depth: int, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"the depth of a CIFAR ResNet is 6n + 2 (8, 14, 20, ...), found {depth}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _cifar_stage(width, width, blocks, 1)
        self.layer2 = _cifar_stage(width, 2 * width, blocks, 2)
        self.layer3 = _cifar_stage(2 * width, 4 * width, blocks, 2)
        self.pool = GlobalMean()
        self.linear = nn.Linear(4 * width, num_classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x))
        return logits


def _cifar_stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(CifarBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ``downsample`` is the shortcut's 1x1 convolution where the shape changes (option B)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        output: Tensor = self.relu2(out + (x if self.downsample is None else self.downsample(x)))
        return output


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions. The 3x3 one has the stride (the paper: the first), as the published weights do."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu3 = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        output: Tensor = self.relu3(out + (x if self.downsample is None else self.downsample(x)))
        return output


class ResNet(nn.Module):
    """7x7 stem, four stages of ``width`` to 8 ``width`` channels, global mean, one linear layer; any size (table 1)."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int,
        width: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _make_stage(block, width, width, blocks[0], 1)
        self.layer2 = _make_stage(block, block.expansion * width, 2 * width, blocks[1], 2)
        self.layer3 = _make_stage(block, block.expansion * 2 * width, 4 * width, blocks[2], 2)
        self.layer4 = _make_stage(block, block.expansion * 4 * width, 8 * width, blocks[3], 2)
        self.avgpool = GlobalMean()
        self.fc = nn.Linear(block.expansion * 8 * width, num_classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x))
        return logits


def _make_stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    out_channels = width * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = ConvBN(in_channels, out_channels, 1, stride, activation=None)
    first = block(in_channels, width, stride, downsample)
    return nn.Sequential(first, *(block(out_channels, width, 1, None) for _ in range(blocks - 1)))


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 8}, small_input=(3, 64, 64))
def resnet18(num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-18 (He et al. 2015, table 1)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 8}, small_input=(3, 64, 64))
def resnet34(num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-34 (He et al. 2015, table 1)."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 8}, small_input=(3, 64, 64))
def resnet50(num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-50 (He et al. 2015, table 1)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 8}, small_input=(3, 64, 64))
def resnet101(num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-101 (He et al. 2015, table 1)."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="fc", small={"width": 8}, small_input=(3, 64, 64))
def resnet152(num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> nn.Module:
    """ResNet-152 (He et al. 2015, table 1)."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, in_channels, width)


@register(input_shape=(3, 32, 32), num_classes=10, classifier="linear", small={"width": 8})
def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-20 for 32x32 images (He et al. 2015, section 4.2)."""
    return CifarResNet(20, num_classes, in_channels, width)


@register(input_shape=(3, 32, 32), num_classes=10, classifier="linear", small={"width": 8})
def resnet32(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-32 for 32x32 images (He et al. 2015, section 4.2)."""
    return CifarResNet(32, num_classes, in_channels, width)


@register(input_shape=(3, 32, 32), num_classes=10, classifier="linear", small={"width": 8})
def resnet44(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-44 for 32x32 images (He et al. 2015, section 4.2)."""
    return CifarResNet(44, num_classes, in_channels, width)


@register(input_shape=(3, 32, 32), num_classes=10, classifier="linear", small={"width": 8})
def resnet56(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-56 for 32x32 images (He et al. 2015, section 4.2)."""
    return CifarResNet(56, num_classes, in_channels, width)


@register(input_shape=(3, 32, 32), num_classes=10, classifier="linear", small={"width": 8})
def resnet110(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-110 for 32x32 images (He et al. 2015, section 4.2)."""
    return CifarResNet(110, num_classes, in_channels, width)
