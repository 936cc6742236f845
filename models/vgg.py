"""VGG. Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition (arXiv 1409.1556)."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import GridMean

# Convolutions in each of the five stages, by the number of weight layers (table 1: A, B, D, E).
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _make_features(depth: int, in_channels: int, width: int, norm: bool) -> nn.Sequential:
    """The convolutional body: [N, in_channels, H, W] -> [N, 8 width, H // 32, W // 32]."""
    layers: list[nn.Module] = []
    for stage, convolutions in enumerate(_STAGES[depth]):
        out_channels = width * min(2**stage, 8)
        for _ in range(convolutions):
            layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
            layers += [nn.BatchNorm2d(out_channels), nn.ReLU()] if norm else [nn.ReLU()]
            in_channels = out_channels
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def _init_weights(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class VGG(nn.Module):
    """3x3 convolutions in five stages, a ``grid`` x ``grid`` average, three linear layers; any size from 32x32."""

    def __init__(
        self, depth: int, norm: bool, num_classes: int, in_channels: int, width: int, hidden: int, grid: int
    ) -> None:
        super().__init__()
        self.features = _make_features(depth, in_channels, width, norm)
        self.avgpool = GridMean(grid)
        sizes = ((8 * width * grid * grid, hidden), (hidden, hidden))
        hidden_layers = chain.from_iterable((nn.Linear(i, o), nn.ReLU(), nn.Dropout()) for i, o in sizes)
        self.classifier = nn.Sequential(*hidden_layers, nn.Linear(hidden, num_classes))
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


class CifarVGG(nn.Module):
    """The convolutional body before one linear layer, for 32x32 images, which it brings to one pixel."""

    def __init__(self, depth: int, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.features = _make_features(depth, in_channels, width, norm=True)
        self.avgpool = GridMean(1)
        self.classifier = nn.Linear(8 * width, num_classes)
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


@register(input_shape=(3, 32, 32), num_classes=10, classifier="classifier", small={"width": 8})
def vgg16_bn_cifar(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """VGG-16 with batch norm and one linear layer, for 32x32 images."""
    return CifarVGG(16, num_classes, in_channels, width)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg11(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-11 (Simonyan and Zisserman 2014, table 1, A)."""
    return VGG(11, False, num_classes, in_channels, width, hidden, grid)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg11_bn(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-11 with batch norm (Simonyan and Zisserman 2014, table 1, A)."""
    return VGG(11, True, num_classes, in_channels, width, hidden, grid)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg13(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-13 (Simonyan and Zisserman 2014, table 1, B)."""
    return VGG(13, False, num_classes, in_channels, width, hidden, grid)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg13_bn(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-13 with batch norm (Simonyan and Zisserman 2014, table 1, B)."""
    return VGG(13, True, num_classes, in_channels, width, hidden, grid)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg16(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2014, table 1, D)."""
    return VGG(16, False, num_classes, in_channels, width, hidden, grid)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg16_bn(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-16 with batch norm (Simonyan and Zisserman 2014, table 1, D)."""
    return VGG(16, True, num_classes, in_channels, width, hidden, grid)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg19(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-19 (Simonyan and Zisserman 2014, table 1, E)."""
    return VGG(19, False, num_classes, in_channels, width, hidden, grid)


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 2},
    small_input=(3, 64, 64),
)
def vgg19_bn(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 7
) -> nn.Module:
    """VGG-19 with batch norm (Simonyan and Zisserman 2014, table 1, E)."""
    return VGG(19, True, num_classes, in_channels, width, hidden, grid)
