"""A residual network small enough to train on 8x8 digits within seconds."""

from __future__ import annotations

from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import ConvBN, GlobalMean, init_residual


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, out_channels, stride=stride)
        self.conv2 = ConvBN(out_channels, out_channels, activation=None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvBN(in_channels, out_channels, 1, stride, activation=None)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        sum_: Tensor = self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return sum_


class TinyResNet(nn.Module):
    """Stem, three residual stages that halve the image twice, global mean, one linear layer; any image size."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = ConvBN(in_channels, width)
        self.stages = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.pool = GlobalMean()
        self.linear = nn.Linear(4 * width, num_classes)
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.pool(self.stages(self.stem(x))))
        return logits


# Mean and deviation of scikit-learn's digits (0 to 16) scaled to 0 to 1, over all 1,797 images.
@register(
    input_shape=(1, 8, 8),
    num_classes=10,
    mean=(0.3053,),
    std=(0.3760,),
    classifier="linear",
    small={"width": 8},
)
def tiny_resnet(num_classes: int = 10, in_channels: int = 1, width: int = 32) -> nn.Module:
    """Residual network of three stages for 8x8 digits, for tests, documentation and the demo recipe."""
    return TinyResNet(num_classes, in_channels, width)
