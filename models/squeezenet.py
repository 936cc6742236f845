"""SqueezeNet. Iandola et al.: SqueezeNet: AlexNet-Level Accuracy with 50x Fewer Parameters, 2016 (arXiv 1602.07360)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import CeilMaxPool, GlobalMean


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions side by side, concatenated (figure 1)."""

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        one, three = self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))
        return torch.cat((one, three), 1)


# Squeeze widths of fire 2 to 9 (table 1); each expansion has four times as many channels.
_SQUEEZED = (16, 16, 32, 32, 48, 48, 64, 64)


class SqueezeNet(nn.Module):
    """Eight fire modules; the classifier is a 1x1 convolution before the global mean. Any image size.

    ``pools`` are the fire modules (from 0) that a max pooling stands before.
    """

    def __init__(
        self, stem: int, kernel_size: int, pools: tuple[int, ...], num_classes: int, in_channels: int, width: float
    ) -> None:
        super().__init__()
        channels = max(1, round(stem * width))
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, kernel_size, 2), nn.ReLU()]
        for i, base in enumerate(_SQUEEZED):
            squeezed = max(1, round(base * width))
            if i in pools:
                layers.append(CeilMaxPool(3, 2))
            layers.append(Fire(channels, squeezed, 4 * squeezed))
            channels = 8 * squeezed
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, num_classes, 1), nn.ReLU(), GlobalMean())
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _init_weights(model: SqueezeNet) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    last = model.classifier[1]
    assert isinstance(last, nn.Conv2d)
    nn.init.normal_(last.weight, 0, 0.01)


@register(input_shape=(3, 224, 224), classifier="classifier.1", small={"width": 0.25}, small_input=(3, 64, 64))
def squeezenet1_0(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """SqueezeNet 1.0 (Iandola et al. 2016, table 1)."""
    return SqueezeNet(96, 7, (0, 3, 7), num_classes, in_channels, width)


@register(input_shape=(3, 224, 224), classifier="classifier.1", small={"width": 0.25}, small_input=(3, 64, 64))
def squeezenet1_1(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """SqueezeNet 1.1: the authors' later release, 2.4 times fewer operations."""
    return SqueezeNet(64, 3, (0, 2, 4), num_classes, in_channels, width)
