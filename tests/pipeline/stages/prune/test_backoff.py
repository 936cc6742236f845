"""An accuracy budget: the reduction is backed off until the calibration images say that it costs no more."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import StageError
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.fitting.batch_norms import fit_norms
from edgewise.stages.prune import Prune
from edgewise.stages.prune.sensitivity import loss_curves, scan_groups
from edgewise.store.entries import Store

SHAPE = (1, 2, 2)


class Greys:
    """Images of four greys, one a class."""

    labels = torch.arange(32) % 4

    def __len__(self) -> int:
        return 32

    def batch(self, index: Tensor) -> Tensor:
        return (self.labels[index] * 60).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE)


class Steps(nn.Module):
    """Four channels that count: channel k lights up from grey k on; four more, of larger weight, say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.used.weight.fill_(20.0)
            self.used.bias.copy_(20.0 * -(torch.arange(4) * 60 - 30) / 255)
            self.used.weight.mul_(torch.tensor([4.0, 3.0, 2.0, 1.0]).view(4, 1, 1, 1))
            self.used.bias.mul_(torch.tensor([4.0, 3.0, 2.0, 1.0]))
            self.idle.weight.fill_(0.001)
            self.idle.bias.zero_()
            self.head.weight.zero_()
            self.head.bias.copy_(-0.5 * torch.arange(4))
            for grey in range(4):
                self.head.weight[grey, 1 : grey + 1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.used(x).clamp(0, 1), self.idle(x)], 1).mean((2, 3)))


def context(folder: Path, told: dict[str, Any], **fields: Any) -> Context:
    part = Greys()
    data = Data(name="greys", train=part, calib=part, test=part, classes=("0", "1", "2", "3"), shape=SHAPE, digest="0")
    spec = Spec(name="net", build=Steps, input_shape=SHAPE, mean=(0.0,), std=(1.0,), classifier="head")
    return Context(spec=spec, data=data, scratch=folder, fact=told.__setitem__, **fields)


def test_the_network_is_right_about_every_grey(tmp_path: Path) -> None:
    part = Greys()
    images = part.batch(torch.arange(32)).float() / 255
    assert torch.equal(Steps()(images).argmax(1), part.labels)


def test_it_backs_off_to_what_costs_no_more(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    # Three of four channels of the used layer lose two greys or more; half of that, one.
    stage = Prune(channels=0.25, scope="layer", round_to=1, keep=("idle",), max_drop=0.3, trials=4)
    pruned = stage(Steps(), context(tmp_path, told))
    budget = told["accuracy_budget"]
    assert budget["top1_before"] == 1.0 and budget["n"] == 32
    parts = [trial["part"] for trial in budget["trials"]]
    assert parts[0] == 1.0 and budget["trials"][0]["drop"] > 0.3
    assert parts[1] == 0.5 and 1 < len(parts) <= 4
    kept = [trial for trial in budget["trials"] if trial["drop"] is not None and trial["drop"] <= 0.3]
    assert kept and pruned.used.out_channels == 3


def test_the_whole_reduction_is_made_where_it_costs_nothing(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    pruned = Prune(channels=0.25, scope="layer", round_to=1, keep=("used",), max_drop=0.0)(
        Steps(), context(tmp_path, told)
    )
    assert [trial["part"] for trial in told["accuracy_budget"]["trials"]] == [1.0]
    assert pruned.idle.out_channels == 1


def test_no_trial_within_the_drop_is_an_error_with_all_of_them(tmp_path: Path) -> None:
    stage = Prune(channels=0.25, scope="layer", round_to=1, keep=("idle",), max_drop=0.0, trials=2)
    with pytest.raises(StageError, match=r"no trial lost at most 0\.00 points \(100% .* lost \(n = 32\); 50% "):
        stage(Steps(), context(tmp_path, {}))


def test_an_accuracy_budget_alone_takes_what_it_can(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    pruned = Prune(max_drop=0.0, round_to=1, scope="sensitivity", trials=5)(Steps(), context(tmp_path, told))
    assert pruned.idle.out_channels < 4
    assert told["accuracy_budget"]["trials"][0]["drop"] != 0.0


def test_a_scan_sets_the_ratios(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    stage = Prune(channels=0.75, scope="sensitivity", round_to=1, scan=(0.25, 0.5))
    pruned = stage(Steps(), context(tmp_path, told))
    # By weight alone the idle channels, which are the smallest of their layer by nothing, would share the loss.
    assert (pruned.used.out_channels, pruned.idle.out_channels) == (4, 2)
    assert told["channel_sensitivity"]["idle"]["0.5"]["top1"] == told["channel_sensitivity"]["used"]["0"]["top1"] == 1.0
    assert told["channel_sensitivity"]["used"]["0.5"]["top1"] < 1.0


def test_a_curve_follows_the_readings_and_never_falls(tmp_path: Path) -> None:
    from edgewise.stages.prune.checked_cut import find_groups
    from edgewise.stages.prune.importance import score_blocks

    how, ctx = Prune(channels=0.5), context(tmp_path, {})
    found = scan_groups(Steps(), how, ctx, (0.5,))
    model = Steps()
    groups = find_groups(model, how, ctx).groups
    lines = dict(
        zip(
            [g.name for g in groups], loss_curves(found, groups, score_blocks("l2", model, groups, ctx, 1)), strict=True
        )
    )
    rise = found["used"][0.5].loss - found["used"][0.0].loss
    assert lines["used"][:3] == pytest.approx([0.0, rise / 2, rise], rel=1e-3)
    assert lines["used"][4] == pytest.approx(2 * rise, rel=1e-3)
    assert all(a < b for line in lines.values() for a, b in pairwise(line))


def test_a_scan_in_the_store_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.stages.prune import sensitivity

    ctx = context(tmp_path, {}, store=Store(tmp_path / "store"))
    first = scan_groups(Steps(), Prune(channels=0.5), ctx, (0.5,))
    monkeypatch.setattr(sensitivity, "_readings", None)
    assert scan_groups(Steps(), Prune(channels=0.5), ctx, (0.5,)) == first
    with pytest.raises(TypeError):
        scan_groups(Steps(), dataclasses.replace(Prune(channels=0.5), images=8), ctx, (0.5,))


def test_batch_norms_fit_the_network_that_is_left(tmp_path: Path) -> None:
    torch.manual_seed(0)
    convs = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))
    ctx = dataclasses.replace(
        context(tmp_path, {}), spec=dataclasses.replace(context(tmp_path, {}).spec, classifier="4")
    )
    assert fit_norms(convs, 32, ctx) == 32
    told: dict[str, Any] = {}
    ctx = dataclasses.replace(ctx, fact=told.__setitem__)
    for images in (0, 32):
        pruned = Prune(channels=0.5, scope="layer", round_to=1, reestimate=images)(convs, ctx)
        assert told["norm_images"] == images
        with torch.no_grad():
            seen = pruned[:2](Greys().batch(torch.arange(32)).float() / 255)
        fits = torch.allclose(pruned[2].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
        assert fits == (images > 0)
