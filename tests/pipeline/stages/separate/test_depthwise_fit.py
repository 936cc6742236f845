"""The closed-form fits: on kernels worked out by hand, on separable ones, and against each other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.stages.fitting.layer_io import gather_moments
from edgewise.stages.fitting.least_squares import Moments, relative_error
from edgewise.stages.separate.depthwise_fit import Factors, kernel_fit, output_fit


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_images(count: int, channels: int, seed: int = 0) -> Tensor:
    """Images whose neighbouring pixels and channels are correlated, as a network's activations are."""
    noise = draw(count, channels, 12, 12, seed=seed)
    mixed = torch.einsum("oc,nchw->nohw", draw(channels, channels, seed=9) + 1, noise)
    return F.avg_pool2d(mixed, 3, 1).relu() + 0.5


def moments_of(layer: nn.Conv2d, images: Tensor, positions: int = 10**6) -> Moments:
    model = nn.Sequential(layer)
    return gather_moments(model, model, ["0"], [images], positions, seed=0)["0"]


def dense(channels: int = 4, outputs: int = 6, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels, outputs, size, stride, size // 2, dilation, dtype=torch.float64)
    layer.weight.data.copy_(draw(outputs, channels, size, size, seed=3))
    layer.bias.data.copy_(draw(outputs, seed=4))
    return layer


def fits(layer: nn.Conv2d, images: Tensor, rank: int, sweeps: int) -> tuple[float, float]:
    """Errors of the kernel fit and of the output fit on the images that they were fitted on."""
    moments = moments_of(layer, images)
    start = kernel_fit(layer.weight.detach(), layer.bias.detach(), rank)
    return relative_error(start, moments), relative_error(output_fit(start, moments, sweeps), moments)


def test_rank_one_by_hand() -> None:
    # One input channel, two outputs, a 1x2 kernel: the matrix [[3, 0], [0, 1]] has singular values 3 and 1; the best
    # rank-1 approximation keeps the first, the sum of squares left is 1.
    weight = torch.tensor([[[[3.0, 0.0]]], [[[0.0, 1.0]]]])
    found = kernel_fit(weight, torch.zeros(2), rank=1).kernel()
    torch.testing.assert_close(found, torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]]], dtype=torch.float64))
    whole = kernel_fit(weight, torch.zeros(2), rank=2).kernel()
    torch.testing.assert_close(whole, weight.double().flatten(2))


def test_channels_are_approximated_each_on_its_own() -> None:
    # Channel 0 is the outer product (1, 2) x (1, 1); channel 1 is (1, -1) x (0, 5): each of rank one, their stack is not.
    weight = torch.tensor([[[[1.0, 1.0]], [[0.0, 5.0]]], [[[2.0, 2.0]], [[0.0, -5.0]]]])
    torch.testing.assert_close(kernel_fit(weight, torch.zeros(2), 1).kernel(), weight.double().flatten(2))


def test_output_fit_by_hand() -> None:
    # One channel, a 1x2 kernel (a, b) read by two outputs y0 = x0 and y1 = x1. Inputs: x0 = x1 always, variance 1. Then
    # y0 = y1 and any filter with weights that sum to 1 is exact, though the kernel fit loses one output altogether.
    ones = torch.ones(2, 2, dtype=torch.float64)
    moments = Moments(
        mean_x=torch.zeros(2).double(), mean_y=torch.zeros(2).double(), cov_xx=ones, cov_xy=ones, var_y=ones[0]
    )
    start = kernel_fit(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]]), torch.zeros(2), 1)
    assert relative_error(start, moments) == pytest.approx(0.5**0.5)  # one of two equal variances is lost
    assert relative_error(output_fit(start, moments, 0), moments) < 1e-3
    assert relative_error(output_fit(start, moments, 3), moments) < 1e-3


def test_error_by_hand() -> None:
    # y = 2x with var x = 1, mean 0; the fit says 1.5x + 1: (0.25 + 1) / 4.
    one = torch.ones(1, dtype=torch.float64)
    moments = Moments(mean_x=0 * one, mean_y=0 * one, cov_xx=one[None], cov_xy=2 * one[None], var_y=4 * one)
    factors = Factors(1.5 * one[None, None], one[None, None], one)
    assert relative_error(factors, moments) == pytest.approx((1.25 / 4) ** 0.5)


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("rank", [1, 2])
def test_separable_kernels_are_reproduced(rank: int, sweeps: int) -> None:
    layer = dense()
    pointwise, depthwise = draw(6, 4, rank, seed=5), draw(4, rank, 9, seed=6)
    layer.weight.data.copy_(torch.einsum("oir,irk->oik", pointwise, depthwise).view(6, 4, 3, 3))
    assert max(fits(layer, smooth_images(8, 4), rank, sweeps)) < 1e-6


@pytest.mark.parametrize("size", [2, 3])
def test_full_rank_reproduces_any_kernel(size: int) -> None:
    layer = dense(outputs=12, size=size)
    factors = kernel_fit(layer.weight.detach(), layer.bias.detach(), size * size)
    torch.testing.assert_close(factors.kernel(), layer.weight.detach().flatten(2))


def test_rank_beyond_the_kernel_is_padded_with_zeros() -> None:
    layer = dense(outputs=2)
    factors = kernel_fit(layer.weight.detach(), layer.bias.detach(), 4)
    assert factors.depthwise.shape == (4, 4, 9) and factors.pointwise.shape == (2, 4, 4)
    torch.testing.assert_close(factors.kernel(), layer.weight.detach().flatten(2))


@pytest.mark.parametrize(("stride", "dilation", "size"), [(1, 1, 3), (2, 1, 3), (1, 2, 3), (2, 1, 5)])
def test_outputs_fit_better_than_kernels(stride: int, dilation: int, size: int) -> None:
    layer = dense(size=size, stride=stride, dilation=dilation)
    images = smooth_images(16, 4)
    kernel, pointwise = fits(layer, images, 1, 0)
    alternated = fits(layer, images, 1, 5)[1]
    assert alternated < pointwise < kernel
    assert pointwise < 0.8 * kernel


def test_more_sweeps_never_fit_worse() -> None:
    layer, images = dense(), smooth_images(8, 4)
    errors = [fits(layer, images, 1, sweeps)[1] for sweeps in range(6)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))


def test_pointwise_half_is_the_least_squares_solution() -> None:
    layer, images = dense(), smooth_images(6, 4)
    start = kernel_fit(layer.weight.detach(), layer.bias.detach(), 1)
    found = output_fit(start, moments_of(layer, images), 0)
    between = F.conv2d(images, found.depthwise.view(4, 1, 3, 3), padding=1, groups=4)
    rows = F.pad(between.permute(0, 2, 3, 1).reshape(-1, 4), (0, 1), value=1.0)
    wanted = torch.linalg.lstsq(rows, layer(images).detach().permute(0, 2, 3, 1).reshape(-1, 6)).solution
    torch.testing.assert_close(found.pointwise.view(6, 4), wanted[:4].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bias, wanted[4], rtol=1e-4, atol=1e-5)


def test_intermediate_channels_have_equal_variance() -> None:
    layer, images = dense(), smooth_images(8, 4)
    start = kernel_fit(layer.weight.detach(), layer.bias.detach(), 2)
    found = output_fit(start, moments_of(layer, images), 2)
    between = F.conv2d(images, found.depthwise.reshape(8, 1, 3, 3), padding=1, groups=4)
    torch.testing.assert_close(between.var((0, 2, 3), correction=0), torch.ones(8, dtype=torch.float64))


def test_silent_inputs_keep_the_kernel() -> None:
    layer, images = dense(), smooth_images(4, 4)
    images[:, 2] = 0
    start = kernel_fit(layer.weight.detach(), layer.bias.detach(), 1)
    found = output_fit(start, moments_of(layer, images), 3)
    torch.testing.assert_close(found.kernel()[:, 2], start.kernel()[:, 2], rtol=1e-3, atol=1e-3)
    assert torch.isfinite(found.kernel()).all()


def test_moments_by_hand() -> None:
    # A 1x1 kernel of weight 2, bias 1, on the four pixels 0, 2, 4, 6: mean 3, variance 5; outputs mean 7, variance 20.
    layer = nn.Conv2d(1, 1, 1, dtype=torch.float64)
    layer.weight.data.fill_(2)
    layer.bias.data.fill_(1)
    found = moments_of(layer, torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]], dtype=torch.float64))
    assert [found.mean_x.item(), found.cov_xx.item(), found.cov_xy.item()] == [3, 5, 10]
    assert [found.mean_y.item(), found.var_y.item()] == [7, 20]


def test_moments_take_the_students_inputs_and_the_teachers_outputs() -> None:
    teacher = nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 1, bias=False, dtype=torch.float64))
    teacher[1].weight.data.fill_(3)
    student = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False, dtype=torch.float64), nn.Identity())
    student[0].weight.data.fill_(10)
    images = torch.tensor([[[[-1.0, 1.0]]]], dtype=torch.float64)
    found = gather_moments(student, teacher, ["1"], [images], 100, seed=0)["1"]
    assert found.cov_xx.item() == 100 and found.cov_xy.item() == 30 and found.var_y.item() == 9


def test_sampled_positions_are_the_seeds() -> None:
    layer, images = dense(), smooth_images(8, 4)
    first, again = moments_of(layer, images, 50), moments_of(layer, images, 50)
    assert torch.equal(first.cov_xx, again.cov_xx)
    assert not torch.equal(first.cov_xx, moments_of(layer, images).cov_xx)
    assert relative_error(output_fit(kernel_fit(layer.weight.detach(), layer.bias.detach(), 9), first, 0), first) < 1e-6


def test_factors_bias_counts_in_the_error() -> None:
    layer, images = dense(), smooth_images(4, 4)
    exact = kernel_fit(layer.weight.detach(), layer.bias.detach(), 6)
    moments = moments_of(layer, images)
    assert relative_error(exact, moments) < 1e-6
    assert relative_error(replace(exact, bias=exact.bias + 1), moments) > 0.1
