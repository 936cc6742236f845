"""What each measure of importance finds, on a network with one hidden channel planted to be the least important."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.models import Spec
from edgewise.models._layers import PadShortcut
from edgewise.stage import Context
from edgewise.stages.fitting.least_squares import Moments
from edgewise.stages.prune.blocks import trace_groups
from edgewise.stages.prune.coupling import Group
from edgewise.stages.prune.importance import score_blocks
from edgewise.stages.prune.refit_importance import channel_losses

SHAPE = (2, 4, 4)
WEAK = 4


class Images:
    """Random bytes; the label is whether the first channel is the brighter one."""

    def __init__(self) -> None:
        self._images = torch.randint(0, 256, (32, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
        brightness = self._images.float().mean((2, 3))
        self.labels = (brightness[:, 0] > brightness[:, 1]).long()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


@pytest.fixture
def ctx() -> Context:
    part = Images()
    data = Data(name="made", train=part, calib=part, test=part, classes=("a", "b"), shape=SHAPE, digest="0")
    spec = Spec(name="made", build=nn.Sequential, input_shape=SHAPE, mean=(0.5,), std=(0.25,), classifier="4")
    return Context(spec=spec, data=data, scratch=Path("unused"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    relu_pool = (nn.ReLU(), nn.AvgPool2d(4))
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), *relu_pool, nn.Conv2d(6, 2, 1), nn.Flatten())
    return net.eval()


def only_group(model: nn.Module) -> list[Group]:
    return list(trace_groups(model.eval(), torch.randn(1, *SHAPE), classifier="4").groups)


def scores(kind: str, model: nn.Module, ctx: Context, images: int = 32) -> Tensor:
    (found,) = score_blocks(kind, model, only_group(model), ctx, images)  # type: ignore[arg-type]
    assert found.shape == (6,) and found.dtype == torch.float32
    return found


@torch.no_grad()
def plant(kind: str, model: nn.Sequential) -> None:
    first, norm, reader = model[0], model[1], model[4]
    if kind in ("l1", "l2", "lamp"):
        first.weight[WEAK] *= 0.01
        norm.weight[WEAK] = 0.01
        reader.weight[:, WEAK] *= 0.01
    elif kind == "fpgm":
        # In the middle of all others: the sum of its distances to them is the least.
        first.weight[WEAK] = first.weight[[k for k in range(6) if k != WEAK]].mean(0)
    elif kind == "bn_scale":
        norm.weight[WEAK] = 0.01
    else:
        # Large weights that never carry anything: what only measures of data can see.
        first.weight[WEAK] *= 10
        norm.bias[WEAK] = -1000


@pytest.mark.parametrize("kind", ["l1", "l2", "lamp", "fpgm", "bn_scale", "taylor", "activation", "refit"])
def test_each_measure_finds_the_planted_channel(kind: str, ctx: Context) -> None:
    model = network()
    assert int(scores(kind, model, ctx).argmin()) != WEAK, "it is the weakest already: nothing is planted"
    plant(kind, model)
    assert int(scores(kind, model, ctx).argmin()) == WEAK


def test_magnitudes_by_hand(ctx: Context) -> None:
    # Block k holds two weights k + 1 of the reader, 18 of the first layer and one scale, all equal to k + 1.
    model = network()
    with torch.no_grad():
        for channel in range(6):
            model[0].weight[channel] = model[1].weight[channel] = model[4].weight[:, channel] = channel + 1
    steps = torch.arange(1.0, 7.0)
    # Relative to the mean the common factor (18 + 2 + 1) / 3 cancels: mean of 1..6 is 3.5, of their squares 91 / 6.
    assert torch.allclose(scores("l1", model, ctx), steps / 3.5)
    assert torch.allclose(scores("l2", model, ctx), steps.square() * 6 / 91)
    # Equation 4: each square over the sum of itself and all larger ones: 1 / 91, 4 / 90, 9 / 86, 16 / 77, 25 / 61, 1.
    assert torch.allclose(scores("lamp", model, ctx), torch.tensor([1 / 91, 4 / 90, 9 / 86, 16 / 77, 25 / 61, 1.0]))
    assert torch.allclose(scores("bn_scale", model, ctx), steps)


def test_taylor_is_the_mean_square_of_the_slope_of_a_gate(ctx: Context) -> None:
    model = network()
    found = scores("taylor", model, ctx)
    part = ctx.data.calib
    images = (part.batch(torch.arange(32)).float() / 255 - 0.5) / 0.25
    step, slopes = 1e-3, []
    with torch.no_grad():
        for change in (step, -step):
            hidden = model[:4](images)
            hidden[:, 3] *= 1 + change
            slopes.append(nn.functional.cross_entropy(model[4:](hidden), part.labels, reduction="none"))
    expected = ((slopes[0] - slopes[1]) / (2 * step)).square().mean()
    assert torch.allclose(found[3], expected, rtol=1e-2)


def test_the_shares_of_activation_add_up_to_one(ctx: Context) -> None:
    assert torch.allclose(scores("activation", network(), ctx).sum(), torch.tensor(1.0))


def test_what_other_channels_tell_costs_nothing_once_the_reader_is_fitted_anew() -> None:
    # Two inputs of variance 1 with a correlation r, and one of variance 4 by itself; read with weights 3, 1 and 1. Without
    # the second the reader is off by 1 − r², and 3 + r is what the first is read with then: of the two that are left the
    # third goes next, for 4, and without the first at last (3 + r)² is missing.
    r, reader = 0.8, nn.Linear(3, 1)
    weight = torch.tensor([[3.0, 1.0, 1.0]], dtype=torch.float64)
    covariance = torch.tensor([[1, r, 0], [r, 1, 0], [0, 0, 4]], dtype=torch.float64)
    zeros = torch.zeros(3, dtype=torch.float64)
    variance = (weight @ covariance @ weight.T)[0]
    moments = Moments(zeros, zeros[:1], covariance, covariance @ weight.T, variance)
    with torch.no_grad():
        reader.weight.copy_(weight)
    found = channel_losses(reader, moments)
    wanted = torch.tensor([(3 + r) ** 2, 1 - r**2, 4.0]) / float(variance)
    assert torch.allclose(found, wanted, rtol=1e-3)


def test_channels_that_tell_the_same_are_not_all_free() -> None:
    # Three copies of one input: two may go for nothing, the last carries all of it.
    reader = nn.Linear(3, 1)
    with torch.no_grad():
        reader.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    zeros = torch.zeros(3, dtype=torch.float64)
    moments = Moments(zeros, zeros[:1], torch.ones(3, 3).double(), zeros[:, None], torch.tensor([36.0]).double())
    assert sorted(channel_losses(reader, moments).tolist()) == pytest.approx([0, 0, 1], abs=1e-3)


def test_a_channels_taps_are_lost_together() -> None:
    # Two channels of two taps; within the first the taps are equal, so that either alone would cost nothing.
    reader = nn.Conv2d(2, 1, (1, 2), bias=False)
    covariance = torch.block_diag(torch.ones(2, 2), torch.eye(2)).double()
    with torch.no_grad():
        reader.weight.copy_(torch.tensor([[[[1.0, 1.0]], [[1.0, 2.0]]]]))
    zeros = torch.zeros(4, dtype=torch.float64)
    moments = Moments(zeros, zeros[:1], covariance, zeros[:, None], torch.tensor([9.0], dtype=torch.float64))
    # (1 + 1)² = 4 of the first, 1 + 4 = 5 of the second.
    assert torch.allclose(channel_losses(reader, moments), torch.tensor([4.0, 5.0]) / 9, rtol=1e-3)


def test_a_padded_shortcut_counts_as_a_reader(ctx: Context) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.pad = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1), PadShortcut(3, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head((self.b(x) + self.pad(x)).mean((2, 3)))

    model = Net()
    nn.init.zeros_(model.b.weight)
    model.pad.remap(3, (0, 1, -1, -1))
    groups = list(trace_groups(model.eval(), torch.randn(1, *SHAPE), classifier="head").groups)
    place = next(index for index, group in enumerate(groups) if group.width == 3)
    for kind in ("taylor", "activation", "refit"):
        found = score_blocks(kind, model, groups, ctx, 32)[place]  # type: ignore[arg-type]
        assert found[2] == 0 and bool((found[:2] > 0).all())


def test_random_depends_on_the_seed_alone(ctx: Context) -> None:
    first, again = scores("random", network(), ctx), scores("random", nn.Sequential(*network()), ctx)
    assert torch.equal(first, again)


def test_no_batch_norm_means_never_pruned_by_its_scale(ctx: Context) -> None:
    model = network()
    model[1] = nn.Identity()
    assert bool(scores("bn_scale", model, ctx).isinf().all())
