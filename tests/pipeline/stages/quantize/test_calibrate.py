"""Ranges from a few images, and biases that undo the mean error of rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise.network.captured import Prepare
from edgewise.stages.quantize.calibrate import PERCENTILE, Ranges, activation_quantizers, correct_biases, set_ranges
from edgewise.targets import Grid

SHAPE = (1, 4, 4)


def prepared(model: nn.Module, bits: int = 8, symmetric: bool = False) -> GraphModule:
    grid = Grid(weight_bits=bits, symmetric_activations=symmetric)
    return Prepare(grid.to_json(), SHAPE).capture(model.eval())


def passing() -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, 1)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def range_of_input(images: Tensor, how: Ranges, symmetric: bool = False) -> tuple[float, int]:
    graph = prepared(passing(), symmetric=symmetric)
    set_ranges(graph, list(torch.split(images, 100)), how)
    quantizer = next(iter(activation_quantizers(graph).values()))
    return float(quantizer.scale), int(quantizer.zero_point)


def with_outlier() -> Tensor:
    values = torch.rand(250, *SHAPE, generator=torch.Generator().manual_seed(0))
    values[7, 0, 0, 0] = 100.0
    return values


def test_min_max_holds_everything() -> None:
    assert range_of_input(with_outlier(), "minmax")[0] == pytest.approx(100 / 255)
    images = torch.linspace(-1, 3, 1600).reshape(-1, *SHAPE)
    assert range_of_input(images, "minmax") == (pytest.approx(4 / 255), -64)
    assert range_of_input(images, "minmax", symmetric=True) == (pytest.approx(3 / 127), 0)


def test_a_percentile_cuts_off_what_is_rare() -> None:
    scale, zero_point = range_of_input(torch.cat([with_outlier()] * 10)[:, :, :2, :2].repeat(1, 1, 2, 2), "percentile")
    assert scale == pytest.approx(100 / 255, rel=1e-3)  # 1 value in 4,000 is more than 1 in 20,000
    values = with_outlier().repeat(20, 1, 1, 1)
    values[250:, 0, 0, 0].clamp_(max=1)
    assert (1 / values.numel()) < (1 - PERCENTILE) / 2
    scale, zero_point = range_of_input(values, "percentile")
    assert scale < 1.2 / 255 and zero_point == -128


def test_the_least_squared_error_clips_an_outlier_only_where_that_pays() -> None:
    values = torch.rand(5000, *SHAPE, generator=torch.Generator().manual_seed(0))
    even, _ = range_of_input(values, "mse")
    assert even == pytest.approx(1 / 255, rel=0.02)
    values[0, 0, 0, 0] = 6.0
    # With n values below 1 and one of 6, drawn in by f: n (6f/255)^2 / 12 + 36 (1 - f)^2 is least at f = 0.907.
    assert range_of_input(values, "mse")[0] == pytest.approx(0.907 * 6 / 255, rel=0.02)


def test_calibration_leaves_the_switches_as_they_were() -> None:
    graph = prepared(passing())
    set_ranges(graph, [torch.rand(8, *SHAPE)], "mse")
    assert all(m.observing and m.rounding for m in activation_quantizers(graph).values())


def test_biases_make_up_for_what_rounding_takes_from_the_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    images = torch.rand(64, *SHAPE)
    graph = prepared(model, bits=3)  # coarse, so that there is an error to correct
    set_ranges(graph, [images], "minmax")
    for module in activation_quantizers(graph).values():
        module.disable_observer()
    wanted = model(images).mean(0)
    before = (graph(images).mean(0) - wanted).abs().max()
    correct_biases(graph, images)
    after = (graph(images).mean(0) - wanted).abs().max()
    assert before > 0.005 and after < before / 3


def test_what_a_range_cuts_off_moves_no_bias() -> None:
    """One rare large value that is clipped: a shift for its channel's mean would move all the others."""
    images = with_outlier().repeat(20, 1, 1, 1)
    images[250:, 0, 0, 0].clamp_(max=1)
    layer = passing()
    graph = prepared(layer)
    set_ranges(graph, list(torch.split(images, 1000)), "percentile")
    ranges = {name: float(m.scale) for name, m in activation_quantizers(graph).items()}
    correct_biases(graph, images[:250])
    (bias,) = [value for name, value in graph.named_parameters() if name.endswith("bias")]
    assert abs(float(bias.detach())) < 1e-4, "the clipped mean is 0.025 lower"
    assert ranges == {name: float(m.scale) for name, m in activation_quantizers(graph).items()}, "ranges moved along"
