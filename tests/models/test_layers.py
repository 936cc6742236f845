"""Shared layers against definitions worked out by hand or by torch's own operators."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgewise.models._attention import Attention, attend_heads
from edgewise.models._layers import (
    CeilMaxPool,
    ConvBN,
    GlobalMean,
    GridMean,
    LayerNorm2d,
    PadShortcut,
    SeparableConv,
    SqueezeExcite,
    StochasticDepth,
    round_channels,
)
from edgewise.models.mobilevit import fold_patches, unfold_patches
from edgewise.models.shufflenet import shuffle_channels


class TestPadShortcut:
    def test_pads_both_sides_and_takes_every_second_pixel(self) -> None:
        shortcut = PadShortcut(2, 4, stride=2)
        assert (shortcut.in_channels, shortcut.stride, shortcut.source) == (2, 2, (-1, 0, 1, -1))
        x = torch.arange(18.0).reshape(1, 2, 3, 3)
        zeros = torch.zeros(2, 2)
        wanted = torch.stack([zeros, torch.tensor([[0.0, 2], [6, 8]]), torch.tensor([[9.0, 11], [15, 17]]), zeros])
        assert shortcut(x)[0].equal(wanted)
        assert not list(shortcut.parameters())
        assert not shortcut.state_dict()

    def test_an_odd_number_of_new_channels_puts_the_odd_one_last(self) -> None:
        assert PadShortcut(2, 5).source == (-1, 0, 1, -1, -1)

    @pytest.mark.parametrize(
        ("inputs", "outputs"),
        [(None, [1, 2]), ([0, 2], None), ([2, 0], [5, 2, 0, 4]), ([1], [0, 1]), (None, [7, 3, 2]), ([3], [0, 5])],
    )
    def test_select_is_indexing(self, inputs: list[int] | None, outputs: list[int] | None) -> None:
        """The same as zeroing the inputs that are gone, running the whole map, and picking the kept outputs."""
        whole = PadShortcut(4, 8)
        cut = copy.deepcopy(whole)
        cut.select(inputs, outputs)
        kept_in = list(range(4)) if inputs is None else inputs
        kept_out = list(range(8)) if outputs is None else outputs
        x = torch.zeros(2, 4, 5, 4)
        x[:, kept_in] = torch.randn(2, len(kept_in), 5, 4)
        assert cut(x[:, kept_in]).equal(whole(x)[:, kept_out])
        assert (cut.in_channels, len(cut.source)) == (len(kept_in), len(kept_out))

    def test_select_twice(self) -> None:
        shortcut = PadShortcut(4, 8)
        shortcut.select([0, 2, 3], [2, 3, 4, 5])
        assert shortcut.source == (0, -1, 1, 2)
        shortcut.select([1, 2], [0, 2, 3])
        assert shortcut.source == (-1, 0, 1)
        assert shortcut.weight is None

    def test_padding_and_convolution_agree(self) -> None:
        """The same map once as a padding, and once, its inputs permuted, as a convolution."""
        padding, convolution = PadShortcut(3, 7), PadShortcut(3, 7)
        convolution.select([2, 0, 1], None)
        assert padding.weight is None
        assert convolution.weight is not None
        x = torch.randn(2, 3, 6, 6)
        assert convolution(x[:, [2, 0, 1]]).equal(padding(x))

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="4 to 2 would drop some"):
            PadShortcut(4, 2)
        with pytest.raises(ValueError, match=r"must lie in -1 \.\.\. 1, found \[2\]"):
            PadShortcut(2, 4).remap(2, (0, 2))


@pytest.mark.parametrize("size", [(6, 6), (12, 18), (7, 13), (1, 1), (3, 6)])
def test_grid_mean_is_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(GridMean(6)(x), F.adaptive_avg_pool2d(x, 6))


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (13, 10), (112, 55)])
@pytest.mark.parametrize("window", [(3, 2), (2, 2)])
def test_ceil_max_pool(size: tuple[int, int], window: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    assert CeilMaxPool(*window)(x).equal(F.max_pool2d(x, *window, ceil_mode=True))


def test_global_mean() -> None:
    assert GlobalMean()(torch.tensor([[[[1.0, 2], [3, 6]]]])).equal(torch.tensor([[3.0]]))


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    out = layer(torch.ones(4000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out.flatten(1).std(dim=1) == 0).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    x = torch.randn(2, 3)
    assert layer.eval()(x) is x


def test_squeeze_excite_by_hand() -> None:
    """One channel, mean 2, both convolutions the identity: each pixel is scaled by sigmoid(relu(2))."""
    layer = SqueezeExcite(1, 1, nn.ReLU, nn.Sigmoid)
    for convolution in (layer.fc1, layer.fc2):
        nn.init.ones_(convolution.weight)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    x = torch.tensor([[[[1.0, 3.0]]]])
    torch.testing.assert_close(layer(x), x * 0.8807970779778823)


def test_layer_norm_2d_normalises_each_pixel() -> None:
    out = LayerNorm2d(8)(torch.randn(2, 8, 3, 5) * 4 + 1)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, correction=0), torch.ones(2, 3, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(3, 8), (11, 16), (12, 16), (35.2, 32), (38.4, 40), (44, 48), (18, 24)]
)
def test_round_channels(channels: float, rounded: int) -> None:
    """To the nearest multiple of 8; 18 would lose more than a tenth at 16, 11 at 8."""
    assert round_channels(channels) == rounded


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    x = torch.randn(2, 5, 12)
    qkv = F.linear(x, reference.in_proj_weight, reference.in_proj_bias)
    wanted, _ = reference(x, x, x, need_weights=False)
    torch.testing.assert_close(reference.out_proj(attend_heads(qkv, 3)), wanted)


def test_attention_refuses_a_remainder() -> None:
    with pytest.raises(ValueError, match="10 channels and 3 heads"):
        Attention(10, 3)


def test_unfold_sorts_pixels_by_their_place_in_the_patch() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert unfold_patches(x)[:, :, 0].tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    images = torch.randn(2, 3, 6, 4)
    assert fold_patches(unfold_patches(images), 6, 4).equal(images)


def test_shuffle_interleaves_the_halves() -> None:
    assert shuffle_channels(torch.arange(6.0).reshape(1, 6, 1, 1)).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_separable_conv_reproduces_a_separable_kernel() -> None:
    """Rank 1 per input channel: the dense kernel is the outer product of the pointwise and the depthwise one."""
    torch.manual_seed(0)
    layer = SeparableConv(3, 4, (3, 3), (2, 1), (1, 1))
    dense = layer.pointwise.weight * layer.depthwise.weight[:, 0][None]
    x = torch.randn(2, 3, 7, 6)
    torch.testing.assert_close(layer(x), F.conv2d(x, dense, layer.pointwise.bias, (2, 1), 1))


def test_conv_bn_keeps_the_size_at_stride_one() -> None:
    block = ConvBN(3, 6, kernel_size=5, groups=3, activation=None, eps=1e-3, momentum=0.01)
    assert block(torch.randn(2, 3, 7, 7)).shape == (2, 6, 7, 7)
    assert [type(layer).__name__ for layer in block] == ["Conv2d", "BatchNorm2d"]
    assert (block[1].eps, block[1].momentum, block[0].bias) == (1e-3, 0.01, None)
