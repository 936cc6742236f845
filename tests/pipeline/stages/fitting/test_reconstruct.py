"""Layers fitted anew after a cut: against answers worked out by hand, over every architecture, and what it never harms."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import calib_data, models
from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.measure.answers import compute_logits
from edgewise.stage import Context
from edgewise.stages.fitting.image_batches import draw_batches
from edgewise.stages.fitting.layer_io import gather_moments, run_until_seen
from edgewise.stages.fitting.least_squares import Moments, relative_error
from edgewise.stages.fitting.reconstruct import Dense, fit_layer, reconstruct_layers
from edgewise.stages.prune import Prune
from edgewise.stages.prune.checked_cut import cut_and_check, trace_for
from edgewise.stages.prune.coupling import Cut, outputs_left


class Images:
    """Photograph-like noise: neighbours and colours are alike."""

    def __init__(self, size: int, shape: tuple[int, int, int], seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        channels, height, width = shape
        coarse = torch.rand(size, channels, height // 4 + 1, width // 4 + 1, generator=draw)
        fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        self._images = (255 * fine).to(torch.uint8)
        self.labels = torch.randint(0, 10, (size,), generator=draw)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(spec: models.Spec, size: int = 64, test_seed: int = 1) -> Context:
    shape = spec.small_input or spec.input_shape
    train, calib = Images(size, shape), Images(size, shape, test_seed)
    classes = tuple(map(str, range(10)))
    data = Data(name="noise", train=train, calib=calib, test=calib, classes=classes, shape=shape, digest="0")
    return Context(spec=spec, data=data, scratch=Path("unused"))


TINY = models.get("tiny_resnet")


def built(make: Callable[[], nn.Module], classifier: str) -> tuple[nn.Module, Context]:
    """A network of images [1, 8, 8], and what a stage may know beside it."""
    torch.manual_seed(0)
    return make().eval(), context(dataclasses.replace(TINY, classifier=classifier))


def without(model: nn.Module, ctx: Context, group: str, blocks: list[int]) -> tuple[nn.Module, list[Cut]]:
    """A copy without those blocks of the named group, and what was cut."""
    pruned = copy.deepcopy(model).requires_grad_(True)
    groups = trace_for(pruned, (), ctx).groups
    cut: Cut = groups, [blocks if g.name == group else [] for g in groups]
    cut_and_check(pruned, *cut, ctx)
    return pruned, [cut]


class Twins(nn.Module):
    """Its second hidden channel is always twice the first; the third is another."""

    def __init__(self, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 1)
        self.second = nn.Conv2d(3, 2, 1, bias=bias)
        self.norm = nn.BatchNorm2d(2) if norm else nn.Identity()
        self.head = nn.Linear(2 * 64, 10)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 2.0, -1.0]).view(3, 1, 1, 1))
            self.first.bias.copy_(torch.tensor([0.0, 0.0, 2.0]))
            self.second.weight.copy_(torch.tensor([[1.0, 3.0, 0.5], [2.0, -1.0, 4.0]]).view(2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(self.norm(self.second(x)).flatten(1))


def test_what_another_channel_knows_is_read_from_it() -> None:
    # h1 = 2·h0, so 1·h0 + 3·h1 = 7·h0 and 2·h0 − 1·h1 = 0·h0 once h1 is gone.
    model, ctx = built(Twins, "head")
    pruned, cuts = without(model, ctx, "first", [1])
    errors = reconstruct_layers(pruned, model, outputs_left(model, cuts), 64, ctx)
    weight = pruned.get_parameter("second.weight").detach().view(2, 2)
    torch.testing.assert_close(weight, torch.tensor([[7.0, 0.5], [0.0, 4.0]]), rtol=0, atol=0.04)
    assert list(errors) == ["second"], "the head was given what it was given before"
    before, after = errors["second"]
    assert before > 0.5 and after < 5e-3
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(pruned(images), model(images), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(("bias", "norm"), [(False, True), (True, True), (True, False)])
def test_the_mean_goes_where_there_is_a_place_for_it(bias: bool, norm: bool) -> None:
    # Without the third channel its mean is missing: the bias takes it, or the batch norm behind.
    where = "norm" if norm else "second"
    found, missed = off_in_the_mean(Twins(bias, norm), where)
    assert found < 0.05 * missed


def test_without_such_a_place_the_weights_do_what_they_can() -> None:
    found, missed = off_in_the_mean(Twins(bias=False), "second")
    assert 0.05 * missed < found < missed


def off_in_the_mean(network: nn.Module, where: str) -> tuple[float, float]:
    """How far the mean of what the named layer answers is off without the third channel: fitted anew, and as it was cut."""
    model, ctx = built(lambda: network, "head")
    cut, cuts = without(model, ctx, "first", [2])
    pruned = copy.deepcopy(cut)
    reconstruct_layers(pruned, model, outputs_left(model, cuts), 64, ctx)
    (images,) = draw_batches(ctx.data.calib, 64, ctx)
    wanted, found, missed = (
        run_until_seen(net, [where], images)[where][1].mean((0, 2, 3)) for net in (model, pruned, cut)
    )
    return float((found - wanted).abs().sum()), float((missed - wanted).abs().sum())


def test_the_fit_by_hand() -> None:
    # S = [[2, 1], [1, 2]] and C = S·(3, −1)' : the weights (3, −1) are found from any start, and b = E y − V·E x.
    cov = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    true = torch.tensor([[3.0], [-1.0]]).double()
    moments = Moments(
        mean_x=torch.tensor([1.0, 2.0]).double(), mean_y=torch.tensor([5.0]).double(),
        cov_xx=cov, cov_xy=cov @ true, var_y=(true.T @ cov @ true)[0],
    )  # fmt: skip
    found = fit_layer(Dense(torch.zeros(1, 2).double(), torch.zeros(1).double()), moments)
    torch.testing.assert_close(found.weight, true.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.bias, torch.tensor([4.0]).double(), rtol=1e-3, atol=1e-3)
    assert relative_error(found, moments) < 1e-3


def test_what_the_data_do_not_tell_stays() -> None:
    nothing = torch.zeros(2, 2).double()
    moments = Moments(
        mean_x=torch.zeros(2).double(), mean_y=torch.zeros(1).double(),
        cov_xx=nothing, cov_xy=nothing[:, :1], var_y=torch.zeros(1).double(),
    )  # fmt: skip
    start = Dense(torch.tensor([[3.0, -1.0]]).double(), torch.zeros(1).double())
    assert torch.equal(fit_layer(start, moments).weight, start.weight)


def test_inputs_that_hardly_vary_can_be_fitted() -> None:
    # Their covariance, a difference of sums, is rounding alone, and its smallest eigenvalues may be negative.
    layer = nn.Sequential(nn.Linear(64, 4))
    x = 1 + 1e-9 * torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).double()
    found = gather_moments(layer.double(), layer, ["0"], [x], 10**6, 0)["0"]
    start = Dense(layer[0].weight.detach(), torch.zeros(4).double())
    assert fit_layer(start, found).weight.isfinite().all()


def test_moments_about_zero() -> None:
    layer = nn.Sequential(nn.Linear(3, 2, bias=False).double())
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double() + 1
    found = gather_moments(layer, layer, ["0"], [x], 10**6, 0)["0"]
    torch.testing.assert_close(found.cov_xx, torch.cov(x.T, correction=0))
    torch.testing.assert_close(found.uncentred().cov_xx, x.T @ x / 50)
    torch.testing.assert_close(found.uncentred().cov_xy, x.T @ layer(x).detach() / 50)


def test_moments_of_outputs_multiplied() -> None:
    layer = nn.Sequential(nn.Linear(3, 2).double())
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    scaled = gather_moments(layer, layer, ["0"], [x], 10**6, 0)["0"].scaled(torch.tensor([2.0, -1.0]).double())
    y = layer(x).detach() * torch.tensor([2.0, -1.0]).double()
    torch.testing.assert_close(scaled.mean_y, y.mean(0))
    torch.testing.assert_close(scaled.var_y, y.var(0, correction=0))
    torch.testing.assert_close(scaled.cov_xy, (x - x.mean(0)).T @ y / 50)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_outputs_left_are_those_of_the_weights(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, list[int]]] = []

    def note(pruned: nn.Module, whole: nn.Module, left: dict[str, list[int]], *_: Any) -> dict[str, Any]:
        seen.append(left)
        return {}

    monkeypatch.setattr("edgewise.stages.fitting.reconstruct.reconstruct_layers", note)
    torch.manual_seed(0)
    model = TINY.build(width=16).eval()
    pruned = Prune(channels=0.5, round_to=1, steps=steps, reconstruct=64)(model, context(TINY))
    (left,) = seen
    assert left["stem.0"] != list(range(len(left["stem.0"]))), "not merely the first ones"
    stem = model.get_parameter("stem.0.weight")[left["stem.0"]]
    assert torch.equal(pruned.get_parameter("stem.0.weight"), stem)
    head = pruned.get_submodule(TINY.classifier)
    assert isinstance(head, nn.Linear) and left[TINY.classifier] == list(range(10))


def test_a_fit_that_does_no_better_is_not_taken() -> None:
    # Fitted on few images and judged on others, a layer of many inputs only learns those few by heart.
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 48)
            self.head = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.first(x.flatten(1))
            return self.head(hidden)

    class Noise(Images):
        def __init__(self, size: int, seed: int) -> None:
            super().__init__(size, (1, 8, 8), seed)
            draw = torch.Generator().manual_seed(seed)
            self._images = torch.randint(0, 256, (size, 1, 8, 8), generator=draw, dtype=torch.uint8)

    model, ctx = built(Wide, "head")
    data = dataclasses.replace(ctx.data, train=Noise(40, 0), calib=Noise(64, 1))
    ctx = dataclasses.replace(ctx, data=data)
    pruned, cuts = without(model, ctx, "first", [0])
    weight = pruned.get_parameter("head.weight").detach().clone()
    errors = reconstruct_layers(pruned, model, outputs_left(model, cuts), 256, ctx)
    assert errors["head"][0] == errors["head"][1] > 0
    assert torch.equal(pruned.get_parameter("head.weight"), weight)


def test_on_digits_a_trained_network_keeps_more(tmp_path: Path) -> None:
    from edgewise.stages.training.loop import fit
    from edgewise.stages.training.settings import Training

    data = calib_data.load("digits")
    torch.manual_seed(0)
    model = TINY.build(width=16)
    ctx = Context(spec=TINY, data=data, scratch=tmp_path)
    fit(model, Training(epochs=4, lr=0.1), ctx, None)
    request = Prune(macs=0.35, round_to=1)
    notes: list[str] = []
    facts: dict[str, Any] = {}
    told = dataclasses.replace(ctx, note=notes.append, fact=facts.__setitem__)
    cut = request(model, told)
    again = dataclasses.replace(request, reconstruct=512)(model, told)
    right = [
        int((compute_logits(net, data.test, TINY).argmax(1) == data.test.labels).sum()) for net in (model, cut, again)
    ]
    assert right[2] > right[1], f"of {len(data.test)}: unpruned, cut, fitted anew {right}"
    assert "fitted anew" in notes[-2] and all(b >= a for b, a in facts["reconstruction"].values())


def test_a_wrong_number_of_images_is_refused() -> None:
    with pytest.raises(RequestError, match=r"Prune\.reconstruct"):
        Prune(channels=0.5, reconstruct=-1)


class Shortcut(nn.Module):
    """What ``first`` makes goes on beside ``block``, whose batch norm triples it."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(2 * 64, 10)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([weight, 0.0]).view(2, 1, 1, 1))
            self.block.weight.fill_(1.0)
            self.norm.weight.copy_(torch.tensor([3.0, 1e-6]))

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(x)
        return self.head((self.norm(self.block(x)) + stream).flatten(1))


def test_a_layer_makes_up_for_what_its_shortcut_lacks() -> None:
    # Of 6·x in the first channel of the stream 1.5·x is left: the block adds 4.5·x, that is 1.5·x before its norm. Nothing
    # can be done through a norm that passes on nothing.
    model, ctx = built(lambda: Shortcut(6.0), "head")
    pruned, _ = built(lambda: Shortcut(1.5), "head")
    pruned.head.load_state_dict(model.head.state_dict())
    reconstruct_layers(pruned, model, {"block": [0, 1]}, 64, ctx)
    weight = pruned.get_parameter("block.weight").detach().flatten()
    torch.testing.assert_close(weight, torch.tensor([2.5, 1.0]), rtol=1e-3, atol=1e-3)
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(pruned(images), model(images), rtol=1e-2, atol=1e-2)
