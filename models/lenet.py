"""LeNet-5. LeCun et al.: Gradient-Based Learning Applied to Document Recognition, 1998, section II.B."""

from __future__ import annotations

from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._layers import GlobalMean


class LeNet5(nn.Module):
    """Three 5x5 convolutions (C1, C3, C5) with average pooling between (S2, S4), then F6 and the output layer.

    28x28 images are padded to the paper's 32x32 by C1, where C5 then sees one position; larger images average over its
    positions. C3 is connected to every map of S2, and the output is a linear layer, as is usual since.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, width * 16 // 6, 5)
        self.conv3 = nn.Conv2d(width * 16 // 6, 20 * width, 5)
        self.fc1 = nn.Linear(20 * width, 14 * width)
        self.fc2 = nn.Linear(14 * width, num_classes)
        self.tanh = nn.Tanh()
        self.subsample = nn.AvgPool2d(2, count_include_pad=False)  # XNNPACK takes no other kind
        self.pool = GlobalMean()

    def forward(self, x: Tensor) -> Tensor:
        x = self.subsample(self.tanh(self.conv1(x)))
        x = self.subsample(self.tanh(self.conv2(x)))
        x = self.pool(self.tanh(self.conv3(x)))
        logits: Tensor = self.fc2(self.tanh(self.fc1(x)))
        return logits


# Mean and deviation of the MNIST training images.
@register(input_shape=(1, 28, 28), num_classes=10, mean=(0.1307,), std=(0.3081,), classifier="fc2")
def lenet5(num_classes: int = 10, in_channels: int = 1, width: int = 6) -> nn.Module:
    """LeNet-5 for 28x28 digits (LeCun et al. 1998)."""
    return LeNet5(num_classes, in_channels, width)
