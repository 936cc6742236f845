"""Layers shared by the architectures and by the substitution stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBN(nn.Sequential):
    """Convolution without bias, batch norm, and an activation (``None``: none), named ``0``, ``1``, ``2``.

    ``eps`` and ``momentum`` are the batch norm's, as ``torch.nn.BatchNorm2d`` defines them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, eps, momentum),
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


class PadShortcut(nn.Module):
    """Shortcut without parameters (He et al. 2015, option A): every ``stride``-th pixel, and zeros for new channels.

    ``source`` names for each output channel the input channel it copies, or -1 for zeros. Input [N, in_channels, H, W],
    output [N, len(source), ceil(H / stride), ceil(W / stride)]. A map that holds all inputs in order between two runs
    of zeros is a padding; any other (after channels were removed) runs as a 1x1 convolution with weights 0 and 1.
    """

    weight: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        """The published map: zeros in equal numbers on both sides, an odd one after the inputs."""
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(f"a padding shortcut only adds channels; {in_channels} to {out_channels} would drop some")
        before = (out_channels - in_channels) // 2
        after = out_channels - in_channels - before
        self.stride = stride
        self.register_buffer("weight", None, persistent=False)
        self.remap(in_channels, (-1,) * before + tuple(range(in_channels)) + (-1,) * after)

    def remap(self, in_channels: int, source: Sequence[int]) -> None:
        """Set the map; raises ValueError for a source channel that does not exist."""
        wrong = [channel for channel in source if not -1 <= channel < in_channels]
        if wrong:
            raise ValueError(f"source channels must lie in -1 ... {in_channels - 1}, found {wrong}")
        self.in_channels = in_channels
        self.source = tuple(source)
        self.weight = None if self._padding() else self._selection()

    def select(self, inputs: Sequence[int] | None, outputs: Sequence[int] | None) -> None:
        """Keep only these input and output channels, in this order (``None``: all).

        A kept output whose input is gone becomes zeros.
        """
        channels = range(self.in_channels) if inputs is None else inputs
        place = {channel: position for position, channel in enumerate(channels)}
        source = self.source if outputs is None else [self.source[channel] for channel in outputs]
        self.remap(len(channels), [place.get(channel, -1) for channel in source])

    def forward(self, x: Tensor) -> Tensor:
        padding = self._padding()
        if padding:
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *padding))
        assert self.weight is not None
        if (self.weight.device, self.weight.dtype) != (
            x.device,
            x.dtype,
        ):  # select() cannot know where the network lies
            self.weight = self.weight.to(x)
        return F.conv2d(x, self.weight, stride=self.stride)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {len(self.source)}, stride={self.stride}"

    def _padding(self) -> tuple[int, int] | None:
        """Zero channels before and after the inputs, or None where the map is no padding."""
        channels = [channel for channel in self.source if channel >= 0]
        if not channels or channels != list(range(self.in_channels)):
            return None
        before = self.source.index(0)
        after = len(self.source) - before - self.in_channels
        return (before, after) if self.source[before : before + self.in_channels] == tuple(channels) else None

    def _selection(self) -> Tensor:
        """The map as a 1x1 kernel, [len(source), in_channels, 1, 1]."""
        weight = torch.zeros(len(self.source), self.in_channels, 1, 1)
        for output, channel in enumerate(self.source):
            if channel >= 0:
                weight[output, channel] = 1
        return weight


class GlobalMean(nn.Module):
    """Mean over the image: [N, C, H, W] -> [N, C], at any H and W."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).flatten(1)  # without keepdim XNNPACK leaves the mean to the CPU kernels


def _fixed_size(x: Tensor) -> bool:
    """Whether the image's height and width are numbers, not symbols that stand for a range of sizes being exported."""
    return all(type(side) is int for side in x.shape[-2:])


class GridMean(nn.Module):
    """Average over a ``size`` x ``size`` grid of cells: [N, C, H, W] -> [N, C, size, size].

    The same numbers as adaptive average pooling. Where the grid divides the image it runs as plain average pooling, and
    not at all where each cell is one pixel, because few runtimes know the adaptive operator.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not _fixed_size(x):
            return F.adaptive_avg_pool2d(x, self.size)
        height, width = x.shape[-2:]
        if (height, width) == (self.size, self.size):
            return x
        if height % self.size or width % self.size:
            return F.adaptive_avg_pool2d(x, self.size)
        window = (height // self.size, width // self.size)
        # XNNPACK takes no other kind, and wants the stride spelt out.
        return F.avg_pool2d(x, window, window, count_include_pad=False)


class CeilMaxPool(nn.Module):
    """Max pooling whose last window may stand over the edge, for inputs that are nowhere negative (after a ReLU).

    [N, C, H, W] -> [N, C, ceil((H - kernel) / stride) + 1, ...]. The same numbers as ``MaxPool2d(ceil_mode=True)``,
    which XNNPACK does not run; zeros at the edge change no maximum of such inputs, so that a padding takes its place.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if not _fixed_size(x):
            return F.max_pool2d(x, self.kernel_size, self.stride, ceil_mode=True)
        below, right = (-(side - self.kernel_size) % self.stride for side in x.shape[-2:])
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        return F.max_pool2d(x, self.kernel_size, self.stride)


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole images with probability ``p`` in training (Huang et al. 2016, 1603.09382).

    Survivors are divided by 1 - p, so that evaluation is the identity. Any shape whose first dimension is the batch.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = x.new_full((x.shape[0],) + (1,) * (x.dim() - 1), 1 - self.p)
        return x * (torch.bernoulli(keep) / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (Hu et al. 2017, arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.activation(self.fc1(x.mean((2, 3), keepdim=True)))
        scaled: Tensor = x * self.gate(self.fc2(squeezed))
        return scaled


class PassOn(nn.Module):
    """Returns the first of what it is called with; stands where a block was."""

    def forward(self, x: Tensor, *others: object, **named: object) -> Tensor:
        return x


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel; [N, C, H, W] in and out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def round_channels(channels: float, multiple: int = 8) -> int:
    """The nearest multiple (at least one), taken upwards where rounding would lose more than 10 %.

    Sandler et al. 2018 (arXiv 1801.04381), as their code rounds scaled widths.
    """
    nearest = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return nearest if nearest >= 0.9 * channels else nearest + multiple


def init_residual(model: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / fan_out) (He et al. 2015, arXiv 1502.01852); batch norms at 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
