"""Vision transformers on 16x16 patches.

Dosovitskiy et al.: An Image Is Worth 16x16 Words, 2020 (arXiv 2010.11929); the tiny and small sizes are Touvron et
al. 2020 (arXiv 2012.12877). The two forms differ in the names of their parameters only: Base carries torchvision's,
Tiny and Small carry timm's, so that each loads the weights published for it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.models import register
from edgewise.models._attention import TransformerBlock, attend_heads, init_transformer

_EPS = 1e-6
_PATCH = 16


def _tokens(image_size: int) -> int:
    """Patches of a square image, and the class token."""
    if image_size % _PATCH:
        raise ValueError(f"the image size must be a multiple of {_PATCH}, found {image_size}")
    return (image_size // _PATCH) ** 2 + 1


def _embed_patches(patches: Tensor, token: Tensor, position: Tensor) -> Tensor:
    """[N, C, H / 16, W / 16] -> [N, T, C] with the class token in front and the positions added.

    Raises ValueError for an image of another size than the positions were made for.
    """
    sequence = patches.flatten(2).transpose(1, 2)
    if sequence.shape[1] + 1 != position.shape[1]:
        raise ValueError(
            f"the network was built for {position.shape[1] - 1} patches, found {sequence.shape[1]}: "
            "build it with image_size= the side of the images"
        )
    tokens = token if sequence.shape[0] == 1 else token.expand(sequence.shape[0], -1, -1)  # XNNPACK runs no expand
    return torch.cat((tokens, sequence), 1) + position


def _class_token(x: Tensor) -> Tensor:
    return x[:, :1].flatten(1)  # a slice, not an index: XNNPACK runs slices


class PackedAttention(nn.Module):
    """Self-attention with the parameters of ``nn.MultiheadAttention``; [N, T, C] in and out."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels must be a multiple of the heads, found {channels} channels and {heads} heads")
        self.num_heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        mixed = attend_heads(F.linear(x, self.in_proj_weight, self.in_proj_bias), self.num_heads)
        projected: Tensor = self.out_proj(mixed)
        return projected


class EncoderBlock(nn.Module):
    """Attention and a two-layer network, each after a layer norm and beside a shortcut; [N, T, C] in and out."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels, eps=_EPS)
        self.self_attention = PackedAttention(channels, heads)
        self.ln_2 = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Encoder(nn.Module):
    """Positions, blocks and the last layer norm."""

    def __init__(self, image_size: int, channels: int, depth: int, heads: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, _tokens(image_size), channels).normal_(std=0.02))
        blocks = ((f"encoder_layer_{i}", EncoderBlock(channels, heads)) for i in range(depth))
        self.layers = nn.Sequential(OrderedDict(blocks))
        self.ln = nn.LayerNorm(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ln(self.layers(x))
        return out


class TorchvisionViT(nn.Module):
    """The transformer under torchvision's names; images of ``image_size`` only."""

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, channels: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(in_channels, channels, _PATCH, _PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.encoder = Encoder(image_size, channels, depth, heads)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(channels, num_classes)))
        init_transformer(self)

    def forward(self, x: Tensor) -> Tensor:
        x = _embed_patches(self.conv_proj(x), self.class_token, self.encoder.pos_embedding)
        logits: Tensor = self.heads(_class_token(self.encoder(x)))
        return logits


class PatchEmbed(nn.Module):
    """One convolution whose windows are the patches."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, _PATCH, _PATCH)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x)
        return patches


class TimmViT(nn.Module):
    """The transformer under timm's names; images of ``image_size`` only."""

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, channels: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels).normal_(std=1e-6))
        self.pos_embed = nn.Parameter(torch.empty(1, _tokens(image_size), channels).normal_(std=0.02))
        self.patch_embed = PatchEmbed(in_channels, channels)
        self.blocks = nn.Sequential(
            *(TransformerBlock(channels, heads, 4 * channels, nn.GELU, _EPS) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.head = nn.Linear(channels, num_classes)
        init_transformer(self)

    def forward(self, x: Tensor) -> Tensor:
        x = _embed_patches(self.patch_embed(x), self.cls_token, self.pos_embed)
        logits: Tensor = self.head(_class_token(self.norm(self.blocks(x))))
        return logits


@register(
    input_shape=(3, 224, 224),
    classifier="heads.head",
    small={"image_size": 32, "width": 32, "depth": 2, "heads": 2},
    small_input=(3, 32, 32),
)
def vit_b_16(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
) -> nn.Module:
    """ViT-Base on 16x16 patches (Dosovitskiy et al. 2020, table 1)."""
    return TorchvisionViT(num_classes, in_channels, image_size, width, depth, heads)


@register(
    input_shape=(3, 224, 224),
    classifier="head",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    small={"image_size": 32, "width": 32, "depth": 2, "heads": 2},
    small_input=(3, 32, 32),
)
def vit_tiny_patch16_224(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
) -> nn.Module:
    """ViT-Tiny on 16x16 patches (Touvron et al. 2020, table 1)."""
    return TimmViT(num_classes, in_channels, image_size, width, depth, heads)


@register(
    input_shape=(3, 224, 224),
    classifier="head",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    small={"image_size": 32, "width": 32, "depth": 2, "heads": 2},
    small_input=(3, 32, 32),
)
def vit_small_patch16_224(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
) -> nn.Module:
    """ViT-Small on 16x16 patches (Touvron et al. 2020, table 1)."""
    return TimmViT(num_classes, in_channels, image_size, width, depth, heads)
