"""ConvNeXt. Liu et al.: A ConvNet for the 2020s, 2022 (arXiv 2201.03545)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._attention import init_transformer
from edgewise.models._layers import LayerNorm2d, StochasticDepth

_EPS = 1e-6
_DROP_PATH = 0.1


class Permute(nn.Module):
    """Reorder the dimensions."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Block(nn.Module):
    """7x7 depthwise convolution, layer norm, two linear layers with a GELU, a learned scale; beside a shortcut."""

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute((0, 2, 3, 1)),
            nn.LayerNorm(channels, eps=_EPS),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute((0, 3, 1, 2)),
        )
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.stochastic_depth(self.layer_scale * self.block(x))
        return out


class ConvNeXt(nn.Module):
    """4x4 patches, four stages of ``width`` to 8 ``width`` channels, global mean, norm, one linear layer; any size."""

    def __init__(self, blocks: tuple[int, ...], num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        channels = width
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(in_channels, channels, 4, 4), LayerNorm2d(channels, eps=_EPS))
        ]
        blocks_before, last = 0, max(1, sum(blocks) - 1)
        for stage, count in enumerate(blocks):
            if stage:
                halve = nn.Conv2d(channels, 2 * channels, 2, 2)
                layers.append(nn.Sequential(LayerNorm2d(channels, eps=_EPS), halve))
                channels *= 2
            layers.append(
                nn.Sequential(*(Block(channels, _DROP_PATH * (blocks_before + i) / last) for i in range(count)))
            )
            blocks_before += count
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            LayerNorm2d(channels, eps=_EPS), nn.Flatten(1), nn.Linear(channels, num_classes)
        )
        init_transformer(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3), keepdim=True))
        return logits


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.2",
    small={"width": 16, "blocks": (1, 1, 2, 1)},
    small_input=(3, 64, 64),
)
def convnext_tiny(
    num_classes: int = 1000, in_channels: int = 3, width: int = 96, blocks: tuple[int, ...] = (3, 3, 9, 3)
) -> nn.Module:
    """ConvNeXt-Tiny (Liu et al. 2022)."""
    return ConvNeXt(blocks, num_classes, in_channels, width)
