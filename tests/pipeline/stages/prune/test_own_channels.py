"""Scales, statistics, gains, masks, positions and tokens that are a network's own go with the channels that they meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise import calib_data
from edgewise.models import Spec
from edgewise.network import surgery
from edgewise.stage import Context
from edgewise.stages.prune import Prune
from edgewise.stages.prune.blocks import trace_groups
from edgewise.stages.prune.channels import channel_dim, cut_layer, find_part, name_part
from edgewise.stages.prune.coupling import Group, cut_channels, silence_channels


class Frozen(nn.Module):
    """A batch norm whose statistics and scales are buffers, as detectors have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, values in (("weight", 1.5), ("bias", 0.1), ("running_mean", 0.2), ("running_var", 0.8)):
            self.register_buffer(name, values + torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


class Functional(nn.Module):
    """A batch norm and a PReLU called as functions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(channels))
        self.register_buffer("variance", torch.rand(channels) + 0.5)
        self.scale, self.slope = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(F.batch_norm(x, self.mean, self.variance, self.scale, None), self.slope)


class Unsaved(nn.Module):
    """Holds a constant for each channel that no file of weights has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.randn(1, channels, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.offset


class Scaled(nn.Module):
    """A residual block with a learned scale, as ConvNeXt's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(channels, channels, 1), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma[:, None, None] * self.conv(x).relu()


class Threshold(nn.Module):
    """Filter response normalisation with its threshold: factors and summands [1, C, 1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.floor = (nn.Parameter(torch.randn(1, channels, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.gain * x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-3), self.floor)


class Gained(nn.Conv2d):
    """Its weight standardised, times a gain for each output."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(x, self.gain * ((self.weight - mean) * (variance + 1e-3).rsqrt()), self.bias)


class Masked(nn.Conv2d):
    """Weights of which some stay zero, as sparse training leaves them; each output reads some input."""

    mask: Tensor

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def stack(*layers: nn.Module, channels: int = 6) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


class Tokens(nn.Module):
    """A class token beside patches, positions on all of them, and a tanh with scales in place of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.alpha, self.scale = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.randn(6))
        self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.down(self.up(torch.tanh(self.alpha * x) * self.scale).relu())
        return self.head(x[:, 0])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, set[str]]] = {
    "frozen": (
        lambda: stack(nn.Conv2d(3, 6, 3), Frozen(6)), "0",
        {"0", "1.weight[0]", "1.bias[0]", "1.running_mean[0]", "1.running_var[0]", "4"},
    ),
    "functional": (
        lambda: stack(nn.Conv2d(3, 6, 3), Functional(6)), "0",
        {"0", "1.mean[0]", "1.variance[0]", "1.scale[0]", "1.slope[0]", "4"},
    ),
    "unsaved": (lambda: stack(nn.Conv2d(3, 6, 3), Unsaved(6)), "0", {"0", "1.offset[1]", "4"}),
    "scaled": (lambda: stack(nn.Conv2d(3, 6, 3), Scaled(6)), "0", {"0", "1.conv", "1.gamma[0]", "4"}),
    "threshold": (lambda: stack(nn.Conv2d(3, 6, 3), Threshold(6)), "0", {"0", "1.gain[1]", "1.floor[1]", "4"}),
    "gained": (lambda: stack(Gained(3, 6, 3)), "0", {"0", "0.gain[0]", "3"}),
    "masked": (lambda: stack(Masked(3, 5, 3), Masked(5, 6, 1)), "0", {"0", "0.mask[0]", "1", "1.mask[1]"}),
    "square": (lambda: stack(Masked(3, 6, 3), Masked(6, 6, 1)), "0", {"0", "0.mask[0]", "1", "1.mask[1]"}),
    "tokens": (Tokens, "embed", {"embed", "token[2]", "positions[2]", "scale[0]", "up", "down", "head"}),
}  # fmt: skip


def groups_of(network: nn.Module) -> dict[str, Group]:
    classifier = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    found = trace_groups(network.eval(), torch.randn(1, 3, 4, 4), classifier=classifier)
    return {group.name: group for group in found.groups}


def built(name: str) -> nn.Module:
    torch.manual_seed(3)
    return NETWORKS[name][0]().eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_they_belong_to_the_group(name: str) -> None:
    _, first, members = NETWORKS[name]
    group = groups_of(built(name))[first]
    assert {member.name for member in group.members} == members
    assert all(member.channels.tolist() == [[channel] for channel in range(group.width)] for member in group.members)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_without_channels_answers_as_the_one_that_ignores_them(name: str) -> None:
    network, ignoring, smaller = (built(name) for _ in range(3))
    groups = list(groups_of(network).values())
    removed = [[1, 4] for _ in groups]
    silence_channels(ignoring, groups, removed)
    cut_channels(smaller, groups, removed)
    images = torch.randn(3, 3, 4, 4)
    with torch.no_grad():
        assert not torch.allclose(network(images), ignoring(images), atol=1e-4), "the test proves nothing"
        torch.testing.assert_close(smaller(images), ignoring(images), atol=1e-5, rtol=1e-4)
    rebuilt = built(name)
    surgery.difference(network, smaller)(rebuilt)
    rebuilt.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), smaller(images)), "it is not rebuilt from its history"


class Flipped(nn.Module):
    """A scale for each channel, but not that channel's: only trying shows it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.flip(0)[:, None, None]


def test_a_scale_that_only_looks_like_a_channels_own_is_found_by_trying(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), Flipped(6), nn.Conv2d(6, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 10)
    ).eval()
    spec = Spec(
        name="net", summary="", build=lambda **_: network, input_shape=(1, 8, 8), num_classes=10, mean=(0.5,), std=(0.5,),
        classifier="5",
    )  # fmt: skip
    notes: list[str] = []
    ctx = Context(spec=spec, data=calib_data.load("digits"), scratch=tmp_path, note=notes.append)
    smaller = Prune(channels=0.5, scope="layer", round_to=1)(network, ctx)
    assert (smaller[0].out_channels, len(smaller[1].gamma)) == (6, 6) and smaller[2].out_channels < 7


def test_names_of_parts_and_the_dimension_by_hand() -> None:
    network = stack(nn.Conv2d(3, 6, 3), Scaled(6))
    part = find_part(network, name_part("1", "gamma", 0))
    cut_layer(part, [0, 5], [])
    assert len(network[1].gamma) == 4 and find_part(network, "1.conv") is network[1].conv
    assert find_part(Tokens(), name_part("", "token", 2)).values.shape == (1, 1, 6)  # type: ignore[operator]
    values = torch.zeros(1, 5, 6)
    assert [channel_dim(values, count, at) for count, at in ((6, -1), (5, 0), (4, 1), (1, -3))] == [2, 1, None, 0]
    assert channel_dim(torch.zeros(6, 6), 6, 1) == 1 and channel_dim(torch.zeros(6, 6), 6, 2) is None
    assert channel_dim(values, 5, 0, strict=True) is None
