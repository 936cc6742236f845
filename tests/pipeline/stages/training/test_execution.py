"""Networks are trained in the precision and in the order of memory that they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import RequestError
from edgewise.network.captured import Prepare
from edgewise.stages.training.execution import fitting_order, fitting_precision, trains_channels_last
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


class Mixed(nn.Module):
    """``meet`` is given what a convolution answers, [N, 8, 8, 8], and a parameter of that shape; [N, 3, 8, 8] -> [N, 10]."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.meet = meet
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 10)
        self.own = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x))
        return self.fc(self.meet(features, self.own.expand_as(features)).mean((2, 3)))


def want_float32(features: Tensor, own: Tensor) -> Tensor:
    assert features.dtype == torch.float32
    return features * own


def write_into(features: Tensor, own: Tensor) -> Tensor:
    place = torch.zeros(own.shape)
    place[:, torch.arange(8)] = features
    return place * own


class Scaled(torch.autograd.Function):
    """Multiplies; its gradient alone wants both of one type."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, own: Tensor) -> Tensor:
        ctx.save_for_backward(features, own)
        return features * own

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        features, own = ctx.saved_tensors
        return torch.lerp(features, own, 1.0) * gradient, features * gradient


UNMIXED = {
    "lerp": lambda features, own: torch.lerp(own, features, 0.5),
    "a check": want_float32,
    "an index": write_into,
    "a gradient": Scaled.apply,
}


@pytest.mark.parametrize("name", UNMIXED)
def test_what_does_not_compute_in_mixed_precision_is_trained_in_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    network, plain, told = Mixed(UNMIXED[name]), strided(8), list[str]()
    state = torch.random.get_rng_state()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert fitting_precision("auto", "cpu", (3, 8, 8), plain, network, note=told.append) == "32-true"
    (said,) = told
    assert said.startswith("computed in float32, for bf16-mixed ends in ") and said.split(" in ")[-1].strip()
    with pytest.raises(RequestError, match=r"'bf16-mixed' was asked for, .* take 'auto' or '32-true'"):
        fitting_precision("bf16-mixed", "cpu", (3, 8, 8), network)
    assert fitting_precision("32-true", "cpu", (3, 8, 8), network) == "32-true"
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_computes_in_mixed_precision_is_trained_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    graph, told = Prepare(Grid().to_json(), (3, 8, 8)).capture(strided(8)), list[str]()
    for networks in ([strided(8)], [strided(8), graph], [Mixed(lambda features, own: features * own)]):
        assert fitting_precision("auto", "cpu", (3, 8, 8), *networks, note=told.append) == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert fitting_precision("auto", "cpu", (3, 8, 8), Mixed(UNMIXED["lerp"]), note=told.append) == "32-true"
    assert not told


class Ordered(nn.Module):
    """Checks, with a sentence of nothing, that its images lie channels-first [N, 3, 8, 8] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        return self.fc(self.conv(x).mean((2, 3)))


def test_whatever_a_network_raises_in_the_other_order_keeps_it_channels_first() -> None:
    assert fitting_order(CPU, (3, 8, 8), Ordered()) is torch.contiguous_format
