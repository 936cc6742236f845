"""Layers shared by the architectures and by the substitution stage."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBN(nn.Sequential):
    """Convolution without bias, batch norm, and an activation (``None``: none), named ``0``, ``1``, ``2``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SeparableConv(nn.Module):
    """Depthwise k×k then pointwise 1×1: K²·Cin·m + m·Cin·Cout multiplies where a dense one takes K²·Cin·Cout.

    Chollet 2017 (arXiv 1610.02357), Howard et al. 2017 (arXiv 1704.04861). ``multiplier`` m is the number of depthwise
    filters per input channel, the rank of the approximation of a dense kernel. There is no activation between the two,
    so that a dense convolution whose kernel is separable is reproduced exactly. Input [N, Cin, H, W], output
    [N, Cout, H', W'] with the dense convolution's own output size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        bias: bool = True,
        multiplier: int = 1,
    ) -> None:
        super().__init__()
        middle = in_channels * multiplier
        self.depthwise = nn.Conv2d(
            in_channels, middle, kernel_size, stride, padding, dilation, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(middle, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        pointwise: Tensor = self.pointwise(self.depthwise(x))
        return pointwise
