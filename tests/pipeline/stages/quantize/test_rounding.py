"""Weights rounded with feedback: worked by hand, held against nearest rounding, and kept through conversion and storage."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.network import captured
from edgewise.network.captured import Prepare
from edgewise.network.tensors import fill_tensors
from edgewise.stages.quantize import freeze_ranges, rounding
from edgewise.stages.quantize.calibrate import correct_biases, set_ranges
from edgewise.targets import Grid

SHAPE = (4, 12, 12)


def chosen(row: list[float], moments: Tensor, limit: int = 7) -> list[int]:
    """Integers of one channel in steps of 1."""
    integers = rounding.round_with_feedback(torch.tensor([row]), torch.ones(1), moments.double()[None], limit)
    return [int(value) for value in integers[0]]


def test_inputs_that_vary_apart_leave_the_nearest_integers() -> None:
    assert chosen([0.4, 1.6, -7.0, 0.4], torch.eye(4)) == [0, 2, -7, 0]


def test_inputs_that_vary_together_make_up_for_each_other() -> None:
    """Two equal inputs count with the sum of their weights, 0.8: nearest rounding gives 0, one of the two as 1 gives 1."""
    equal = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) + 1e-6 * torch.eye(3)
    assert sorted(chosen([0.4, 0.4, 7.0], equal)[:2]) == [0, 1]
    opposite = equal * torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert chosen([0.4, 0.4, 7.0], opposite)[:2] == [0, 0], "0.4 - 0.4 is nothing to make up for"


def test_no_integer_leaves_the_range_and_the_largest_weight_keeps_its_end() -> None:
    together = torch.ones(5, 5) + 1e-3 * torch.eye(5)
    integers = chosen([6.9, 7.0, 6.6, 6.6, -3.0], together)
    assert max(map(abs, integers)) == 7 and integers[1] == 7


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, (few, spread) = torch.randn(6, 10, generator=draw), torch.randn(2, 40, 10, generator=draw)
    inputs = few[:, :4] @ spread[:4]
    moments = (inputs.T @ inputs + torch.eye(10)).double()[None]
    scale = weight.abs().amax(1) / 7
    whole = rounding.round_with_feedback(weight, scale, moments, 7)
    monkeypatch.setattr(rounding, "_BLOCK", 3)
    assert torch.equal(rounding.round_with_feedback(weight, scale, moments, 7), whole)


class Kinds(nn.Module):
    """Every kind of layer: strided, padded, depthwise, grouped, dilated, without a bias, linear; a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.full = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.grouped = nn.Conv2d(8, 8, (3, 1), dilation=2, groups=2, bias=False)
        self.point = nn.Conv2d(8, 16, 1)
        self.linear = nn.Linear(16, 16)
        self.twice = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.grouped(self.depthwise(self.full(x).relu()).relu()).relu()).mean((2, 3))
        return self.twice(self.twice(self.linear(x)).relu())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Kinds().eval()
        for parameter in network.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        return network


def smooth_images(count: int, seed: int) -> Tensor:
    """Neighbouring pixels and channels vary together, as in photographs."""
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    blurred = torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)
    return 3 * blurred + noise.mean(1, keepdim=True)


def prepare(network: nn.Module, float_layers: tuple[str, ...] = ()) -> torch.fx.GraphModule:
    prepared = Prepare(Grid(weight_bits=4).to_json(), SHAPE, float_layers).capture(network)
    set_ranges(prepared, [smooth_images(32, 1)], "minmax")
    return prepared


def test_answers_move_less_than_with_the_nearest_integers(network: nn.Module) -> None:
    nearest = prepare(network, ("twice",))
    rounded = copy.deepcopy(nearest)
    rounding.round_weights(rounded, [smooth_images(128, seed) for seed in (1, 2)], 0)
    for graph in (nearest, rounded):
        correct_biases(graph, smooth_images(64, 1))
    fresh = smooth_images(64, 9)
    with torch.no_grad():
        wanted = network(fresh)
        errors = [float((graph(fresh) - wanted).square().mean()) for graph in (nearest, rounded)]
    assert errors[1] < 0.7 * errors[0]


def test_all_layers_with_a_weight_of_their_own_are_rounded_so(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def layers(prepared: torch.fx.GraphModule) -> int:
        rounding.round_weights(prepared, [smooth_images(16, 1)], 0)
        return sum(getattr(module, "integers", None) is not None for module in prepared.modules())

    assert layers(prepare(network)) == 5, "all but the one that is used twice"
    monkeypatch.setattr(rounding, "LARGEST", 16)
    assert layers(prepare(network)) == 4, "36 weights behind an output are too many now"


def test_the_integers_outlive_storage_and_conversion(network: nn.Module, tmp_path: Path) -> None:
    prepared = prepare(network)
    rounding.round_weights(prepared, [smooth_images(64, 1)], 0)
    freeze_ranges(prepared)
    images = smooth_images(4, 5)
    with torch.no_grad():
        wanted = prepared(images)
        loaded = prepare(network)
        fill_tensors(loaded, prepared.state_dict())
        assert torch.equal(loaded(images), wanted)
        converted = captured.convert(loaded)
        torch.testing.assert_close(converted(images), wanted, atol=1e-5, rtol=0)
    integers = {tuple(value.shape): value for key, value in prepared.state_dict().items() if key.endswith(".chosen")}
    assert len(integers) == 5
    constants = [value for value in converted.state_dict().values() if value.dtype == torch.int8]
    for wanted_integers in integers.values():
        assert any(torch.equal(value, wanted_integers) for value in constants if value.shape == wanted_integers.shape)


def test_the_weights_themselves_stay_as_they_are_where_rounding_is_off(network: nn.Module) -> None:
    from torchao.quantization.pt2e.fake_quantize import disable_fake_quant

    prepared = prepare(network)
    rounding.round_weights(prepared, [smooth_images(16, 1)], 0)
    prepared.apply(disable_fake_quant)
    images = smooth_images(4, 5)
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), network(images), atol=1e-5, rtol=1e-5)
