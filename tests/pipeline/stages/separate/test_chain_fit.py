"""Chains of smaller convolutions: their composition, their fits, and what the stage puts in a network."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import StageError
from edgewise.measure.cost.totals import count_costs
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.fitting.layer_io import gather_moments
from edgewise.stages.fitting.least_squares import relative_error
from edgewise.stages.separate import Separate
from edgewise.stages.separate.chain_fit import Chain, compose_kernels, output_fit, spatial_fit, stacked_fit


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Images:
    """Random bytes."""

    def __init__(self, seed: int) -> None:
        self._images = torch.randint(
            0, 256, (32, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        self.labels = torch.zeros(32, dtype=torch.int64)

    def __len__(self) -> int:
        return 32

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(folder: Path, notes: list[str] | None = None) -> Context:
    train, calib = Images(0), Images(1)
    data = Data(name="noise", train=train, calib=calib, test=calib, classes=("a",), shape=(3, 12, 12), digest="0")
    spec = Spec(name="net", build=nn.Identity, input_shape=(3, 12, 12), mean=(0.5,), std=(0.25,), classifier="")
    return Context(spec=spec, data=data, scratch=folder, note=[].append if notes is None else notes.append)


def net(layer: nn.Conv2d) -> nn.Module:
    layer.weight.data.copy_(draw(*layer.weight.shape, seed=3) / layer.weight[0].numel() ** 0.5)
    return nn.Sequential(layer, nn.Flatten()).eval()


def outputs(model: nn.Module) -> Tensor:
    images = (Images(1).batch(torch.arange(32)).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        result: Tensor = copy.deepcopy(model)(images)
    return result


def test_composition_by_hand() -> None:
    # (1, 2) then (10, 1), in one row: 10·x0 + 20·x1 at the first place, 1·x1 + 2·x2 one further: (10, 21, 2).
    first, then = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[10.0, 1.0]]]])
    assert compose_kernels(first, then).flatten().tolist() == [10, 21, 2]


@pytest.mark.parametrize("shapes", [((4, 3, 3, 3), (5, 4, 3, 3)), ((4, 3, 3, 1), (5, 4, 1, 3))])
def test_composition_is_what_two_convolutions_compute(shapes: tuple[tuple[int, ...], ...]) -> None:
    first, then, images = draw(*shapes[0], seed=1), draw(*shapes[1], seed=2), draw(2, 3, 9, 9)
    wanted = F.conv2d(F.conv2d(images, first), then)
    torch.testing.assert_close(F.conv2d(images, compose_kernels(first, then)), wanted)


def test_spatial_rank_one_by_hand() -> None:
    # The outer product of (1, 2) down and (3, 4) across is exact at one channel between; its identity matrix is not:
    # of two equal singular values 1 one is lost.
    kernel = torch.tensor([[[[3.0, 4.0], [6.0, 8.0]]]])
    torch.testing.assert_close(spatial_fit(kernel, torch.zeros(1), 1).kernel(), kernel.double().flatten(2))
    unit = torch.eye(2)[None, None]
    left = spatial_fit(unit, torch.zeros(1), 1).kernel() - unit.double().flatten(2)
    assert float(left.square().sum()) == pytest.approx(1)
    torch.testing.assert_close(spatial_fit(unit, torch.zeros(1), 2).kernel(), unit.double().flatten(2))


def test_spatial_fit_is_the_truncated_singular_value_decomposition() -> None:
    kernel = draw(6, 4, 3, 5)
    values = torch.linalg.svdvals(kernel.permute(0, 3, 1, 2).reshape(30, 12))
    for middle in (1, 5, 12):
        left = spatial_fit(kernel, draw(6), middle).kernel() - kernel.flatten(2)
        assert float(left.square().sum()) == pytest.approx(float(values[middle:].square().sum()), abs=1e-9)


def test_stacked_kernels_are_found_again() -> None:
    exact = compose_kernels(draw(6, 3, 3, 3, seed=1), draw(4, 6, 3, 3, seed=2))
    left = stacked_fit(exact, torch.zeros(4), 6).kernel() - exact.flatten(2)
    assert float(left.norm() / exact.norm()) < 1e-3
    poorer = stacked_fit(exact, torch.zeros(4), 2).kernel() - exact.flatten(2)
    assert float(poorer.norm() / exact.norm()) > 0.1


def test_a_3x3_kernel_in_a_5x5_one_is_exact() -> None:
    kernel = F.pad(draw(4, 3, 3, 3), (1, 1, 1, 1))
    left = stacked_fit(kernel, torch.zeros(4), 4).kernel() - kernel.flatten(2)
    assert float(left.norm() / kernel.norm()) < 1e-4


@pytest.mark.parametrize("kind", ["spatial", "stacked"])
def test_outputs_fit_better_than_kernels_and_keep_even_ranges(kind: str) -> None:
    layer = nn.Conv2d(4, 6, 5, dtype=torch.float64)
    layer.weight.data.copy_(draw(6, 4, 5, 5))
    images = F.avg_pool2d(draw(8, 4, 16, 16, seed=7), 3, 1).relu() + 0.5
    model = nn.Sequential(layer)
    moments = gather_moments(model, model, ["0"], [images], 10**6, seed=0)["0"]
    fit = spatial_fit if kind == "spatial" else stacked_fit
    start = fit(layer.weight.detach(), layer.bias.detach(), 3)
    found = output_fit(start, moments, 2)
    assert relative_error(found, moments) < 0.9 * relative_error(start, moments)
    first = F.conv2d(images, found.kernels[0])
    variance = first.var((0, 2, 3), correction=0)
    assert (
        float(variance.max() / variance.min()) < 1.5
    )  # equal but for the borders, which the middle of a patch never meets


def test_error_of_a_chain_counts_its_bias() -> None:
    layer = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    model, images = nn.Sequential(layer), draw(4, 2, 8, 8)
    moments = gather_moments(model, model, ["0"], [images], 10**6, seed=0)["0"]
    exact = spatial_fit(layer.weight.detach(), layer.bias.detach(), 6)
    assert relative_error(exact, moments) < 1e-6
    assert relative_error(Chain(exact.kernels, exact.bias + 1), moments) > 0.1


SPATIAL = {
    "plain": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "uneven stride": {"kernel_size": 3, "padding": (0, 1), "stride": (2, 1), "bias": False},
    "dilation": {"kernel_size": (3, 5), "padding": (2, 4), "dilation": 2},
}


@pytest.mark.parametrize("kind", SPATIAL)
def test_spatial_layers_equal_a_kernel_of_low_rank(kind: str, tmp_path: Path) -> None:
    model = net(nn.Conv2d(3, 24, **SPATIAL[kind]))
    height, width = model[0].kernel_size
    model[0].weight.data.copy_(compose_kernels(draw(2, 3, height, 1, seed=4), draw(24, 2, 1, width, seed=5)) / 5)
    found = Separate(into="spatial", init="kernel", measure_time=False)(model, context(tmp_path))
    first, last = found[0]
    assert (first.kernel_size, last.kernel_size) == ((height, 1), (1, width)) and first.bias is None
    wanted = outputs(model)
    assert float((outputs(found) - wanted).norm() / wanted.norm()) < 1e-4


STACKED = {
    "5x5": {"kernel_size": 5, "padding": 2},
    "7x7": {"kernel_size": 7, "padding": 3},
    "stride": {"kernel_size": 5, "padding": 2, "stride": 2},
    "dilation": {"kernel_size": 5, "padding": 4, "dilation": 2},
    "valid": {"kernel_size": 5, "bias": False},
}


@pytest.mark.parametrize("kind", STACKED)
def test_stacked_layers_equal_a_kernel_that_is_a_stack(kind: str, tmp_path: Path) -> None:
    model = net(nn.Conv2d(3, 24, **STACKED[kind]))
    size = model[0].kernel_size[0]
    small = torch.einsum("om,mihw->oihw", draw(24, 2, seed=4), draw(2, 3, 3, 3, seed=5))  # 2 channels between suffice
    model[0].weight.data.copy_(F.pad(small, ((size - 3) // 2,) * 4) / 5)
    found = Separate(into="stacked", share=1.0, init="kernel", measure_time=False)(model, context(tmp_path))
    assert [part.kernel_size for part in found[0]] == [(3, 3)] * (size // 2)
    assert found[0][0].padding == model[0].padding and found[0][-1].stride == model[0].stride
    wanted = outputs(model)
    assert float((outputs(found) - wanted).norm() / wanted.norm()) < 1e-3


def test_costs_by_hand(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    dense = net(nn.Conv2d(3, 24, 5, padding=2))
    (stacked,) = Separate(into="stacked", measure_time=False, max_error=10).plan(dense, ctx)
    # Half of 144·25·3·24 is 129,600. A channel between takes 14·14·9·3 before and 144·9·24 after it: 36,396.
    assert (stacked.middle, stacked.new_macs) == (3, 3 * 36_396)
    (spatial,) = Separate(into="spatial", measure_time=False, max_error=10).plan(dense, ctx)
    # 144·(5·3 + 5·24) = 19,440 each, at most 15 of them.
    assert (spatial.middle, spatial.new_macs) == (6, 6 * 19_440)
    for into, plan in (("stacked", stacked), ("spatial", spatial)):
        found = Separate(into=into, measure_time=False, max_error=10)(dense, ctx)  # type: ignore[arg-type]
        assert count_costs(found, (3, 12, 12)).macs == plan.new_macs


def test_layers_that_are_no_stack_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="its kernel is 3x3; odd square ones from 5x5 on"):
        Separate(into="stacked", measure_time=False)(net(nn.Conv2d(3, 24, 3)), context(tmp_path))
    with pytest.raises(StageError, match="of one row or column already"):
        Separate(into="spatial", measure_time=False)(net(nn.Conv2d(3, 24, (1, 3))), context(tmp_path))


def test_a_large_stride_makes_a_stack_too_dear(tmp_path: Path) -> None:
    """All but the last part run at the input's resolution."""
    (found,) = Separate(into="stacked", measure_time=False).plan(net(nn.Conv2d(3, 8, 5, 4, 2)), context(tmp_path))
    assert found.reason == "the new form would not save a multiply-accumulate"
