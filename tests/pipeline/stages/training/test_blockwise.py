"""Block-wise distillation: comes closer, goes on after a kill, and compares channels that are left with their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.models import Spec
from edgewise.models.resnet import CifarResNet
from edgewise.stage import Context
from edgewise.stages.fitting.layer_io import capture_values
from edgewise.stages.prune import Prune
from edgewise.stages.separate import Separate
from edgewise.stages.training import blockwise
from edgewise.stages.training.blockwise import distill_blockwise, relative_distance


class Images:
    """Smooth random bytes, one class."""

    def __init__(self, size: int, seed: int) -> None:
        coarse = torch.rand(size, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        self._images = (nn.functional.interpolate(coarse, (8, 8), mode="bilinear") * 255).to(torch.uint8)
        self.labels = torch.zeros(size, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, index: Tensor) -> Tensor:
        return self._images[index]


def context(folder: Path) -> Context:
    train, calib = Images(40, 0), Images(20, 1)
    data = Data(name="smooth", train=train, calib=calib, test=calib, classes=("a",), shape=(3, 8, 8), digest="0")
    spec = Spec(name="net", build=nn.Identity, input_shape=(3, 8, 8), mean=(0.5,), std=(0.25,), classifier="fc")
    return Context(spec=spec, data=data, scratch=folder)


def images_of(ctx: Context) -> Tensor:
    return (ctx.data.calib.batch(torch.arange(20)).float() / 255 - 0.5) / 0.25


def fresh(teacher: nn.Module, ctx: Context) -> nn.Module:
    return Separate(measure_time=False, init="fresh")(teacher, ctx)


def test_imitation_comes_closer_to_the_old_blocks(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    teacher = CifarResNet(8, 4, 3, 8).eval()
    student = fresh(teacher, ctx)
    losses = distill_blockwise(student, teacher, {"bn1": None, "layer1.0.bn1": None}, ctx, steps=30, lr=1e-2, batch=16)
    assert len(losses) == 30 and sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert not student.training


class Viewed(nn.Module):
    """A network whose classifier takes its features through ``view``, which no channels-last tensor stands."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().view(x.size(0), -1))


def test_a_network_that_views_its_features_imitates_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Viewed().eval(), Viewed().eval()
    losses = distill_blockwise(student, teacher, {"conv": None}, context(tmp_path), steps=20, lr=1e-2, batch=8)
    assert losses[-1] < losses[0]


def test_imitation_makes_the_residual_sums_agree(tmp_path: Path) -> None:
    """The points are the batch norms before the additions; what the blocks answer after them comes closer too."""
    ctx = context(tmp_path)
    torch.manual_seed(0)
    teacher = CifarResNet(8, 4, 3, 8).eval()
    student = fresh(teacher, ctx)

    def distance() -> float:
        with (
            torch.no_grad(),
            capture_values(student, ["layer2.0"], "output") as ours,
            capture_values(teacher, ["layer2.0"], "output") as theirs,
        ):
            student(images_of(ctx)), teacher(images_of(ctx))
        return float((ours["layer2.0"] - theirs["layer2.0"]).norm() / theirs["layer2.0"].norm())

    before = distance()
    distill_blockwise(
        student,
        teacher,
        {"bn1": None} | {f"layer{n}.0.bn{m}": None for n in (1, 2) for m in (1, 2)},
        ctx,
        steps=40,
        lr=1e-2,
        batch=16,
    )
    assert distance() < 0.8 * before


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_step_sees_the_weights_of_the_last(tmp_path: Path, precision: str) -> None:
    """The loss of one batch that is shown again and again falls: rounded weights are rounded anew at every step."""
    ctx = context(tmp_path)
    torch.manual_seed(0)
    teacher = CifarResNet(8, 4, 3, 8).eval()
    student = copy.deepcopy(teacher)
    nn.init.zeros_(student.layer2[0].conv2.weight)
    points = {"layer2.0": None, "linear": None}
    losses = distill_blockwise(student, teacher, points, ctx, steps=25, lr=1e-2, batch=32, precision=precision)
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert all(p.is_contiguous() for p in student.parameters())


def test_a_teacher_is_folded_where_no_point_hears_it(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    teacher = CifarResNet(8, 4, 3, 8).eval()
    for points, folded in (({"layer1.0.bn1": None}, True), ({"layer1.0.conv1": None}, False)):
        asked = blockwise.fold_teacher(teacher, points, ctx)
        assert isinstance(asked.layer1[0].bn1, nn.Identity) is folded
        torch.testing.assert_close(asked(images_of(ctx)), teacher(images_of(ctx)))


def test_killed_imitation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.stages.training.blockwise._SECONDS_BETWEEN", -1.0)
    teacher = CifarResNet(8, 2, 3, 4).eval()

    def taught(folder: Path, stop: int) -> nn.Module:
        folder.mkdir(exist_ok=True)
        ctx = context(folder)
        student = fresh(teacher, ctx)

        def track(items: Any, text: str, total: int | None = None) -> Iterator[Any]:
            for item in items:
                if item == stop:
                    raise KeyboardInterrupt
                yield item

        distill_blockwise(
            student, teacher, {"bn1": None, "layer1.0.bn1": None}, replace(ctx, track=track), steps=6, lr=1e-2, batch=8
        )
        return student

    whole = taught(tmp_path / "a", 99)
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "b", 4)
    resumed = taught(tmp_path / "b", 99)
    assert all(torch.equal(t, resumed.state_dict()[k]) for k, t in whole.state_dict().items())


def test_the_distance_by_hand() -> None:
    """The student has the teacher's second channel alone: mean of (1, 1) over the variance of (2, 4), which is 2."""
    teacher, student = nn.Sequential(nn.Conv2d(1, 2, 1)), nn.Sequential(nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        for network, weights, bias in ((teacher, [9.0, 2.0], [5.0, 0.0]), (student, [2.0], [1.0])):
            network[0].weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1))
            network[0].bias.copy_(torch.tensor(bias))
    images = torch.tensor([[[[1.0, 2.0]]]])
    assert relative_distance(student, teacher, {"0": (1, [1])}, [images]) == pytest.approx(0.5)


def wide_teacher() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(8, 8, 3, 4).eval()


def test_a_pruned_network_comes_closer_in_all_its_layers(tmp_path: Path) -> None:
    ctx, model = context(tmp_path), wide_teacher()
    facts: dict[str, Any] = {}
    notes: list[str] = []
    told = replace(ctx, fact=facts.__setitem__, note=notes.append)
    request = Prune(macs=0.5, round_to=1, reestimate=40)
    cut = request(model, ctx)
    taught = replace(request, recover_steps=40, recover_lr=1e-2, recover_batch=16)(model, told)
    wanted = model(images_of(ctx)).detach()
    errors = [float((network(images_of(ctx)).detach() - wanted).square().mean()) for network in (cut, taught)]
    assert errors[1] < 0.7 * errors[0]
    before, after = facts["recovery"]["loss"]
    assert after < 0.7 * before and "40 steps of block-wise distillation" in notes[0]
    assert not taught.training and [p.shape for p in taught.parameters()] == [p.shape for p in cut.parameters()]


def test_every_cut_recovers_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed step left of another cut does not fit and is not taken up."""
    monkeypatch.setattr("edgewise.stages.training.blockwise._SECONDS_BETWEEN", -1.0)
    ctx, model = context(tmp_path), wide_teacher()
    for macs in (0.5, 0.7, 0.5):
        Prune(macs=macs, round_to=1, reestimate=0, recover_steps=2, recover_batch=4)(model, ctx)
    assert len([*tmp_path.glob("recovery-*/epoch.safetensors")]) == 2


@pytest.mark.parametrize("wrong", [{"recover_steps": -1}, {"recover_lr": 0.0}, {"recover_batch": 1}])
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=rf"Prune\.{next(iter(wrong))}"):
        Prune(channels=0.5, **wrong)


class Pair(nn.Module):
    """A convolution with a norm behind it and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.norm, self.bare = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bare(torch.relu(self.norm(self.normed(x))))
        return out


def test_a_filter_without_a_norm_takes_steps_by_its_size() -> None:
    net = Pair().eval()
    with torch.no_grad():
        net.bare.weight.copy_(torch.tensor([[0.9, -0.9], [0.03, -0.03]])[:, :, None, None])
        net.bare.bias.zero_()
    probe = torch.randn(2, 3, 4, 4)
    shares = blockwise._step_shares(net, probe)
    assert set(shares) == {net.bare.weight, net.bare.bias}, "the other has a norm behind it"
    assert shares[net.bare.weight].flatten().tolist() == pytest.approx([1.0, 3 * 0.03 / 2**0.5])
    assert float(shares[net.bare.bias]) == pytest.approx(min(1.0, 3 * float(net(probe).detach().std())))
    shares = {net.bare.weight: torch.tensor([1.0, 0.1])[:, None, None, None]}
    parameters = [net.bare.weight, net.bare.bias, net.normed.weight]
    before = [p.detach().clone() for p in parameters]
    with blockwise._shortened_steps(parameters, shares), torch.no_grad():
        for p in parameters:
            p.add_(1.0)
    moved = [(p - old).flatten().tolist() for p, old in zip(parameters, before, strict=True)]
    assert moved[0] == pytest.approx([1.0, 1.0, 0.1, 0.1]) and moved[1] == [1.0, 1.0]
    assert moved[2] == pytest.approx([1.0] * 6)


def test_distillation_that_makes_it_worse_is_undone(tmp_path: Path) -> None:
    notes: list[str] = []
    ctx = replace(context(tmp_path), note=notes.append)
    teacher = CifarResNet(8, 4, 3, 8).eval()
    student = fresh(teacher, ctx)
    before = copy.deepcopy(student.state_dict())
    points, images = {"bn1": None, "layer1.0.bn1": None}, [images_of(ctx)]
    first, after = blockwise.distill_if_better(student, teacher, points, ctx, images, steps=3, lr=50.0, batch=8)
    assert after > first and notes[-1].endswith("undone; try a tenth of recover_lr 50, or leave recover_steps out")
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    better = replace(context(tmp_path / "again"), note=notes.append)
    better.scratch.mkdir()
    first, after = blockwise.distill_if_better(student, teacher, points, better, images, steps=30, lr=1e-2, batch=16)
    assert after < first and "undone" not in notes[-1]
    assert any(not torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
