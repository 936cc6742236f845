"""Self-attention and the transformer block, of plain matrix products, so that exporters and quantizers see them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def attend_heads(qkv: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V for each head (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    ``qkv`` [N, T, 3 C] holds queries, keys and values side by side; the result is [N, T, C] with C = heads x d.
    """
    batch, tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    size = channels // heads
    query, key, value = (
        qkv[:, :, part * channels : (part + 1) * channels]
        .reshape(batch, tokens, heads, size)
        .transpose(1, 2)
        .reshape(
            batch * heads, tokens, size
        )  # products of rank 3: of rank 4 they bring expansions XNNPACK does not run
        for part in range(3)
    )
    scores = torch.bmm(query * size**-0.5, key.transpose(1, 2))
    mixed = torch.bmm(scores.softmax(dim=-1), value).reshape(batch, heads, tokens, size)
    return mixed.transpose(1, 2).reshape(batch, tokens, channels)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values; [N, T, C] in and out."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels must be a multiple of the heads, found {channels} channels and {heads} heads")
        self.num_heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.proj(attend_heads(self.qkv(x), self.num_heads))
        return projected


class Mlp(nn.Module):
    """Two linear layers with an activation between; [..., C] in and out."""

    def __init__(self, channels: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = activation()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each after a layer norm and beside a shortcut; [N, T, C] in and out."""

    def __init__(self, channels: int, heads: int, hidden: int, activation: type[nn.Module], eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def init_transformer(model: nn.Module) -> None:
    """Draw linear and convolution weights from a truncated normal of deviation 0.02, biases at zero, in place."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
