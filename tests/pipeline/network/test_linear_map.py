"""What a module computes: one kernel and one bias, worked out by hand on layers of one or two channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.network.linear_map import ChannelMap, LinearMap, Unlike, channel_map_of, linear_map_of


class Computes(nn.Module):
    """A module that holds some layers and computes a function of them."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self, x)
        return result


def conv(channels: int = 1, size: int = 3, value: float = 1.0, bias: float | None = None, **how: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, channels, size, bias=bias is not None, **how)
    nn.init.constant_(layer.weight, value)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias or 0.0)
    return layer


IMAGE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def applied(found: LinearMap, images: Tensor) -> Tensor:
    """The map, done by torch's own functions."""
    if found.kernel.dim() == 2:
        return F.linear(images.double(), found.kernel, found.bias)
    padded = F.pad(images.double(), found.padding)
    return F.conv2d(padded, found.kernel, found.bias, found.stride, 0, found.dilation, found.groups)


def test_uneven_padding_and_a_strided_convolution() -> None:
    module = Computes(lambda m, x: F.conv2d(F.pad(x, (0, 1, 0, 1)), m.weight, stride=2), weight=torch.ones(1, 1, 3, 3))
    found = linear_map_of(module, IMAGE)
    assert (found.padding, found.stride, found.alone) == ((0, 1, 0, 1), (2, 2), True)
    assert found.macs == found.merged_macs == 3 * 3 * 9


def test_a_factor_and_a_term_behind_it() -> None:
    module = Computes(lambda m, x: m.conv(x) * 3 + m.term, conv=conv(value=2, bias=1), term=torch.tensor([5.0]))
    found = linear_map_of(module, IMAGE)
    assert found.kernel.unique().tolist() == [6]
    assert found.bias.tolist() == [8]  # 1 * 3 + 5
    assert not found.alone


def test_a_low_rank_term_is_added_to_the_kernel() -> None:
    down, up = conv(value=2, padding=1), conv(size=1, value=5)
    module = Computes(lambda m, x: m.base(x) + m.up(m.down(x)) * 0.1, base=conv(padding=1), down=down, up=up)
    found = linear_map_of(module, IMAGE)
    torch.testing.assert_close(found.kernel, torch.full((1, 1, 3, 3), 2.0, dtype=torch.float64))  # 1 + 0.1 * 5 * 2
    assert found.padding == (1, 1, 1, 1)
    assert found.macs > found.merged_macs


def test_a_small_kernel_is_laid_into_the_middle_of_a_large_one() -> None:
    module = Computes(lambda m, x: m.a(x) + m.b(x), a=conv(size=1, value=4, bias=2), b=conv(padding=1, bias=3))
    found = linear_map_of(module, IMAGE)
    assert found.kernel[0, 0].tolist() == [[1, 1, 1], [1, 5, 1], [1, 1, 1]]
    assert found.bias.tolist() == [5]
    torch.testing.assert_close(applied(found, IMAGE).float(), module(IMAGE))


def test_kernels_that_do_not_lie_on_each_other_are_not_added() -> None:
    def shifted(m: Computes, x: Tensor) -> Tensor:
        return m.a(F.pad(x, (0, 2, 0, 2))) + m.b(F.pad(x, (1, 0, 1, 0)))

    module = Computes(shifted, a=conv(), b=conv(size=2, value=3))
    with pytest.raises(Unlike, match="unlike alignment"):
        linear_map_of(module, IMAGE)


def test_a_kernel_that_lies_in_a_corner_is_laid_there() -> None:
    module = Computes(lambda m, x: m.a(F.pad(x, (0, 2, 0, 2))) + m.b(x), a=conv(), b=conv(size=1, value=4))
    found = linear_map_of(module, IMAGE)
    assert found.kernel[0, 0].tolist() == [[5, 1, 1], [1, 1, 1], [1, 1, 1]]
    torch.testing.assert_close(applied(found, IMAGE).float(), module(IMAGE))


def test_a_standardised_weight_is_the_one_that_was_used() -> None:
    def standardised(m: Computes, x: Tensor) -> Tensor:
        weight = m.conv.weight
        return F.conv2d(x, (weight - weight.mean()) / weight.std(), m.conv.bias)

    module = Computes(standardised, conv=nn.Conv2d(1, 2, 3))
    found = linear_map_of(module, IMAGE)
    torch.testing.assert_close(applied(found, IMAGE).float(), module(IMAGE))
    assert float(found.kernel.mean().abs()) < 1e-6


def test_matrix_products_written_by_hand() -> None:
    given = torch.randn(4, 3)
    weight, bias = torch.randn(2, 3), torch.randn(2)
    for function in (
        lambda m, x: F.linear(x, m.weight, m.bias) * 2,
        lambda m, x: (x @ m.weight.t() + m.bias) * 2,
        lambda m, x: torch.addmm(m.bias, x, m.weight.t()) * 2,
    ):
        found = linear_map_of(Computes(function, weight=weight, bias=bias), given)
        torch.testing.assert_close(found.kernel.float(), 2 * weight)
        torch.testing.assert_close(found.bias.float(), 2 * bias)


UNLIKE: dict[str, Callable[[Computes, Tensor], Tensor]] = {
    "relu": lambda m, x: torch.relu(m.conv(x)),
    "a factor or a term that differs from place to place": lambda m, x: m.conv(x) * torch.rand(4, 4),
    "a product of two values": lambda m, x: m.conv(x) * m.conv(x),
    "a sum with its own input": lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1))) + x,
    "a convolution after another": lambda m, x: m.conv(m.conv(x)),
    "a batch_norm": lambda m, x: F.batch_norm(m.conv(x), torch.zeros(1), torch.ones(1)),
    "a padding": lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), value=2.0)),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_is_no_convolution_is_named(what: str) -> None:
    with pytest.raises(Unlike, match=what):
        linear_map_of(Computes(UNLIKE[what], conv=conv()), IMAGE)


def test_a_value_written_over_is_not_mistaken() -> None:
    def over(m: Computes, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = y.detach()
        y.mul_(2)
        return z

    with pytest.raises(Unlike, match="read elsewhere"):
        linear_map_of(Computes(over, conv=conv()), IMAGE)


class Frozen(nn.Module):
    """A batch norm whose four tensors are buffers, as detection networks have it."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("weight", 2.0), ("bias", 1.0), ("mean", 3.0), ("var", 4.0)):
            self.register_buffer(name, torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("weight") / self.get_buffer("var").sqrt()
        return (x - self.get_buffer("mean")) * scale + self.get_buffer("bias")


@pytest.mark.parametrize("given", [IMAGE, IMAGE[:, :, 0, 0]])
def test_whatever_maps_channel_by_channel(given: Tensor) -> None:
    found = channel_map_of(Frozen(), given)
    assert isinstance(found, ChannelMap)
    assert (found.scale.tolist(), found.shift.tolist()) == ([1], [-2])  # 2 / sqrt 4; 1 - 3 * 1


def test_the_module_keeps_its_mode_and_its_input() -> None:
    module = nn.Sequential(nn.Dropout(), conv()).train()
    module[0].eval()
    given = IMAGE.clone()
    linear_map_of(module, given)
    assert module.training and not module[0].training and module[1].training
    assert torch.equal(given, IMAGE)
