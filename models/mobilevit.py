"""MobileViT: convolutions with a transformer between the pixels of a grid.

Mehta, Rastegari: MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer, 2021 (arXiv
2110.02178). Parameter names are timm's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._attention import TransformerBlock
from edgewise.models._layers import GlobalMean, init_residual, round_channels

_HEADS = 4
_PATCH = 2
_EPS = 1e-5


class NormedConv(nn.Module):
    """Convolution without bias, batch norm, and SiLU (where ``activated``)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act: nn.Module = nn.SiLU() if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        self.conv1_1x1 = NormedConv(in_channels, middle, 1)
        self.conv2_kxk = NormedConv(middle, middle, 3, stride, middle)
        self.conv3_1x1 = NormedConv(middle, out_channels, 1, activated=False)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + out if self.shortcut else out


def unfold_patches(x: Tensor) -> Tensor:
    """Sort pixels by their place in a 2x2 patch: [N, C, H, W] -> [4 N, H W / 4, C], H and W even.

    The tensors between have at most five dimensions, which is as many as Core ML takes.
    """
    batch, channels, height, width = x.shape
    rows, columns = height // _PATCH, width // _PATCH
    x = x.reshape(batch, channels * rows, _PATCH, columns, _PATCH).permute(0, 2, 4, 1, 3)
    return x.reshape(batch * _PATCH * _PATCH, channels, rows * columns).transpose(1, 2)


def fold_patches(x: Tensor, height: int, width: int) -> Tensor:
    """What ``unfold_patches`` made of an image of this size, put back: [4 N, H W / 4, C] -> [N, C, H, W]."""
    batch, channels = x.shape[0] // (_PATCH * _PATCH), x.shape[2]
    rows, columns = height // _PATCH, width // _PATCH
    x = x.transpose(1, 2).reshape(batch, _PATCH, _PATCH, channels * rows, columns)
    return x.permute(0, 3, 1, 4, 2).reshape(batch, channels, height, width)


class MobileViTBlock(nn.Module):
    """Local convolutions, a transformer over the pixels with the same place in their patches, fusion (figure 1b).

    [N, C, H, W] in and out. An image with an odd side is stretched to an even one for the transformer and back after.
    """

    def __init__(self, channels: int, tokens: int, depth: int) -> None:
        super().__init__()
        self.conv_kxk = NormedConv(channels, channels, 3)
        self.conv_1x1 = nn.Conv2d(channels, tokens, 1, bias=False)
        self.transformer = nn.Sequential(
            *(TransformerBlock(tokens, _HEADS, 2 * tokens, nn.SiLU, _EPS) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(tokens, eps=_EPS)
        self.conv_proj = NormedConv(tokens, channels, 1)
        self.conv_fusion = NormedConv(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv_1x1(self.conv_kxk(x))
        height, width = local.shape[-2:]
        odd = height % _PATCH != 0 or width % _PATCH != 0
        even = (height + height % _PATCH, width + width % _PATCH)
        if odd:
            local = F.interpolate(local, size=even, mode="bilinear", align_corners=False)
        mixed = fold_patches(self.norm(self.transformer(unfold_patches(local))), *even)
        if odd:
            mixed = F.interpolate(mixed, size=(height, width), mode="bilinear", align_corners=False)
        fused: Tensor = self.conv_fusion(torch.cat((x, self.conv_proj(mixed)), 1))
        return fused


class Size(NamedTuple):
    """Widths of one variant (table 4)."""

    stem: int
    channels: tuple[int, int, int, int, int]
    """Output channels of the five stages."""
    tokens: tuple[int, int, int]
    """Transformer widths of the last three."""
    expansion: int
    last: int
    """Channels before the classifier."""


_DEPTHS = (2, 4, 3)
_XXS = Size(16, (16, 24, 48, 64, 80), (64, 80, 96), 2, 320)
_XS = Size(16, (32, 48, 64, 80, 96), (96, 120, 144), 4, 384)
_S = Size(16, (32, 64, 96, 128, 160), (144, 192, 240), 4, 640)


def _scale_size(size: Size, width: float) -> Size:
    first, second, third, fourth, fifth = (round_channels(channels * width) for channels in size.channels)
    third_tokens, fourth_tokens, fifth_tokens = (round_channels(tokens * width) for tokens in size.tokens)
    return Size(
        round_channels(size.stem * width),
        (first, second, third, fourth, fifth),
        (third_tokens, fourth_tokens, fifth_tokens),
        size.expansion,
        round_channels(size.last * width),
    )


class MobileViT(nn.Module):
    """Two convolutional stages, three with a MobileViT block, global mean, one linear layer; any image size."""

    def __init__(self, size: Size, num_classes: int, in_channels: int) -> None:
        super().__init__()
        expansion, (first, second, *rest) = size.expansion, size.channels
        self.stem = NormedConv(in_channels, size.stem, 3, 2)
        stages: list[nn.Module] = [
            nn.Sequential(InvertedResidual(size.stem, first, expansion, 1)),
            nn.Sequential(
                InvertedResidual(first, second, expansion, 2),
                InvertedResidual(second, second, expansion, 1),
                InvertedResidual(second, second, expansion, 1),
            ),
        ]
        channels = second
        for out_channels, tokens, depth in zip(rest, size.tokens, _DEPTHS, strict=True):
            down = InvertedResidual(channels, out_channels, expansion, 2)
            stages.append(nn.Sequential(down, MobileViTBlock(out_channels, tokens, depth)))
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.final_conv = NormedConv(channels, size.last, 1)
        self.pool = GlobalMean()
        self.head = nn.ModuleDict({"fc": nn.Linear(size.last, num_classes)})
        init_residual(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.final_conv(self.stages(self.stem(x))))
        logits: Tensor = self.head["fc"](x)
        return logits


@register(
    input_shape=(3, 256, 256),
    classifier="head.fc",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    small={"width": 0.25},
    small_input=(3, 64, 64),
)
def mobilevit_xxs(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileViT-XXS (Mehta and Rastegari 2021)."""
    return MobileViT(_scale_size(_XXS, width), num_classes, in_channels)


@register(
    input_shape=(3, 256, 256),
    classifier="head.fc",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    small={"width": 0.25},
    small_input=(3, 64, 64),
)
def mobilevit_xs(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileViT-XS (Mehta and Rastegari 2021)."""
    return MobileViT(_scale_size(_XS, width), num_classes, in_channels)


@register(
    input_shape=(3, 256, 256),
    classifier="head.fc",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    small={"width": 0.25},
    small_input=(3, 64, 64),
)
def mobilevit_s(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileViT-S (Mehta and Rastegari 2021)."""
    return MobileViT(_scale_size(_S, width), num_classes, in_channels)
