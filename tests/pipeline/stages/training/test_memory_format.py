"""Networks whose training in channels-last memory would kill the process are trained in the other order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgewise.network.captured import Prepare
from edgewise.stages.training.memory_format import fitting_order, trains_channels_last
from edgewise.targets import Grid

CPU = torch.device("cpu")


def strided(channels: int, *, kernel: int = 1, stride: int = 2, groups: int = 1) -> nn.Sequential:
    """A network whose second convolution is the one in question, [N, 3, 8, 8] to [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 8, kernel, stride, groups=groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_a_narrow_strided_pointwise_convolution_keeps_channels_first(channels: int) -> None:
    assert not trains_channels_last(strided(channels), CPU)


@pytest.mark.parametrize(
    "net",
    [strided(8), strided(4, stride=1), strided(4, kernel=2), strided(4, groups=4)],
    ids=["wide", "dense", "2x2", "grouped"],
)
def test_all_others_go_channels_last(net: nn.Module) -> None:
    assert trains_channels_last(net, CPU)


class Viewed(nn.Module):
    """Reads its features in the order channels, rows, columns, as ``view`` does [N, 3, 8, 8] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).view(len(x), -1))


def test_the_order_is_one_that_all_networks_run_in() -> None:
    wide = strided(8)
    assert fitting_order(CPU, (3, 8, 8), wide, wide) is torch.channels_last
    for other in (Viewed(), strided(4)):
        assert fitting_order(CPU, (3, 8, 8), wide, other) is torch.contiguous_format


def test_a_gpu_trains_all_channels_last() -> None:
    assert trains_channels_last(strided(4), torch.device("cuda"))


@pytest.mark.parametrize(("channels", "expected"), [(4, False), (8, True)])
def test_a_graph_captured_for_quantization_is_seen_through(channels: int, expected: bool) -> None:
    graph = Prepare(Grid().to_json(), (3, 8, 8)).capture(strided(channels))
    assert trains_channels_last(graph, CPU) is expected


class Mixing(nn.Module):
    """Convolves with a kernel that it makes of the image, 1 × 1 with a stride (Yang et al. 2019, CondConv)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.kernels = nn.Conv2d(3, channels, 3, padding=1), nn.Parameter(torch.ones(8, channels, 1, 1))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x)
        kernel = features.mean().sigmoid() * self.kernels
        return self.head(nn.functional.conv2d(features, kernel, stride=2).mean((2, 3)))


@pytest.mark.parametrize(("channels", "expected"), [(4, False), (8, True)])
def test_a_kernel_that_the_network_makes_counts_as_one(channels: int, expected: bool) -> None:
    graph = Prepare(Grid().to_json(), (3, 8, 8)).capture(Mixing(channels))
    assert trains_channels_last(graph, CPU) is expected
