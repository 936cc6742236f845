"""AlexNet, in its one-tower form.

Krizhevsky: One Weird Trick for Parallelizing Convolutional Neural Networks, 2014 (arXiv 1404.5997).
"""

from __future__ import annotations

from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import GridMean


class AlexNet(nn.Module):
    """Five convolutions, a ``grid`` x ``grid`` average, three linear layers; images of at least 63x63."""

    def __init__(self, num_classes: int, in_channels: int, width: int, hidden: int, grid: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(width, 3 * width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(3 * width, 6 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = GridMean(grid)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(4 * width * grid * grid, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


@register(
    input_shape=(3, 224, 224),
    classifier="classifier.6",
    small={"width": 8, "hidden": 64, "grid": 1},
    small_input=(3, 64, 64),
)
def alexnet(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, grid: int = 6
) -> nn.Module:
    """AlexNet (Krizhevsky 2014)."""
    return AlexNet(num_classes, in_channels, width, hidden, grid)
