"""Training: learns, repeats itself bit for bit, and goes on after a kill."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.calib_data._parts import MemoryPart, in_memory
from edgewise.errors import RequestError, StageError
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.finetune import Finetune
from edgewise.stages.train import Train
from edgewise.stages.training import loop
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.loop import distillation_loss, fit, learning_rate_share
from edgewise.stages.training.settings import Training, resolve_precision
from edgewise.stages.training.teacher import Teacher

PLAIN = Training(epochs=3, lr=0.1, batch_size=16, augment=Augment(crop=0), precision="32-true")

VIEWS = replace(PLAIN, epochs=5, lr=0.05, distill=0.9, views=2, augment=Augment(crop=1, flip=True))


def data() -> Data:
    """Dark images are class 0, bright ones class 1."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randint(0, 100, (64, 1, 6, 6), generator=draw) + 120 * labels[:, None, None, None]
    part = MemoryPart(images.to(torch.uint8), labels)
    return in_memory("bright", part, part, part, ("dark", "bright"))


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 2)
        )


def context(scratch: Path, **changes: Any) -> Context:
    scratch.mkdir(exist_ok=True)
    spec = Spec(name="net", build=nn.Identity, input_shape=(1, 6, 6), mean=(0.5,), std=(0.25,), classifier="5")
    return replace(Context(spec=spec, data=data(), scratch=scratch), **changes)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def accuracy(model: nn.Module) -> float:
    part = data().test
    with torch.no_grad():
        found = model((part.batch(torch.arange(len(part))).float() / 255 - 0.5) / 0.25).argmax(1)
    return float((found == part.labels).float().mean())


@pytest.mark.parametrize(("channels", "expected"), [(4, False), (8, True)])
def test_a_network_that_cannot_be_trained_channels_last_is_trained_channels_first(
    channels: int, expected: bool, tmp_path: Path
) -> None:
    pointwise = nn.Conv2d(channels, 8, 1, 2)
    model = nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU(), pointwise, nn.Flatten(), nn.Linear(32, 2))
    seen: list[bool] = []
    pointwise.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    fit(model, PLAIN, context(tmp_path), None)
    assert set(seen) == {expected}


class Strict(nn.Module):
    """Shifts its images, and then its features, by what both have to be of one type with; [N, 1, 6, 6] to [N, 2]."""

    def __init__(self, *, features: bool) -> None:
        super().__init__()
        self.features = features
        self.shift = nn.Parameter(torch.zeros(1, 1, 1, 1))
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
        self.seen = set[torch.dtype]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.lerp(x, self.shift.expand_as(x), 0.5))
        self.seen.add(x.dtype)
        if self.features:
            x = torch.lerp(x, self.shift.expand_as(x), 0.5)
        return self.fc(x.mean((2, 3)))


def test_images_come_as_they_are_in_mixed_precision(tmp_path: Path) -> None:
    """Fabric alone would round them to bfloat16, which an operation outside of autocast's list may not take."""
    model = Strict(features=False)
    fit(model, replace(PLAIN, precision="bf16-mixed"), context(tmp_path), None)
    assert torch.bfloat16 in model.seen and float(model.shift.detach().abs()) > 0


def test_what_does_not_compute_in_mixed_precision_is_trained_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    told = list[str]()
    for teacher, how in ((None, PLAIN), (Strict(features=True), replace(PLAIN, distill=0.5))):
        model = Strict(features=teacher is None)
        fit(model, replace(how, precision="auto"), context(tmp_path / str(teacher is None), note=told.append), teacher)
        assert float(model.shift.detach().abs()) > 0 and model.seen == {torch.float32}
    assert len(told) == 2 and all("expected dtype" in text for text in told)
    with pytest.raises(RequestError, match="take 'auto' or '32-true'"):
        fit(Strict(features=True), replace(PLAIN, precision="bf16-mixed"), context(tmp_path / "named"), None)


def test_train_learns_and_leaves_its_input(tmp_path: Path) -> None:
    model = net()
    before = copy.deepcopy(model)
    trained = Train(training=PLAIN)(model, context(tmp_path))
    assert same(model, before) and model.training
    assert not same(trained, before) and not trained.training
    assert accuracy(trained) > 0.9


def test_finetune_follows_its_teacher_and_leaves_both(tmp_path: Path) -> None:
    teacher, model = net().eval(), net()
    before = copy.deepcopy(model)
    tuned = Finetune(training=replace(PLAIN, distill=0.9))(model, context(tmp_path, baseline=teacher))
    assert same(model, before) and same(teacher, before) and not same(tuned, before)
    assert all(p.requires_grad for p in teacher.parameters())


def test_distillation_without_a_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="trained baseline"):
        Train(training=replace(PLAIN, distill=0.5))(net(), context(tmp_path))


def killing(items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """A Track that is killed when the second epoch has been taken up."""
    for number, item in enumerate(items):
        if number == 1:
            raise KeyboardInterrupt
        yield item


@pytest.mark.parametrize(
    "how",
    [
        PLAIN,
        replace(PLAIN, optimizer="adamw", lr=0.01, ema=0.9, augment=Augment(crop=1, cutout=2, flip=True)),
    ],
    ids=["sgd", "adamw with an average"],
)
def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path, how: Training) -> None:
    whole = net()
    fit(whole, how, context(tmp_path / "whole"), None)
    scratch = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        fit(net(), how, context(scratch, track=killing), None)
    seen: list[int] = []
    resumed = net()
    fit(resumed, how, context(scratch), None, lambda model, epoch: seen.append(epoch))
    assert seen == [1, 2]
    assert same(whole, resumed)


def test_the_seed_decides(tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate((0, 0, 1)):
        results.append(net())
        fit(results[-1], replace(PLAIN, epochs=1), context(tmp_path / str(number), seed=seed), None)
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_the_average_is_the_result(tmp_path: Path) -> None:
    """One step: average = 0.75 * first + 0.25 * trained."""
    how = replace(PLAIN, epochs=1, batch_size=64)
    first, plain, averaged = net(), net(), net()
    fit(plain, how, context(tmp_path / "plain"), None)
    fit(averaged, replace(how, ema=0.75), context(tmp_path / "ema"), None)
    wanted = 0.75 * first[5].weight + 0.25 * plain[5].weight
    torch.testing.assert_close(averaged[5].weight, wanted)
    assert not torch.equal(averaged[5].weight, plain[5].weight)


class Killed(nn.Module):
    """Passes on what it is given, and dies when it has been called so often in training."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= self.training
        if self.left < 0:
            raise KeyboardInterrupt
        return x


def test_a_training_killed_within_an_epoch_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the sixth step of two epochs of four, after every step was kept; dropout draws anew at every step."""
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN", -1.0)
    how = replace(PLAIN, epochs=2, steps=4, batch_size=4, momentum=0.9, ema=0.5)
    teacher = net().eval()

    def trained(folder: Path, calls: int) -> nn.Module:
        model = nn.Sequential(Killed(calls), net(), nn.Dropout(0.5))
        fit(model, replace(how, distill=0.5, views=2), context(folder), teacher)
        return model

    whole = trained(tmp_path / "whole", 99)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", 5)
    assert same(whole, trained(tmp_path / "killed", 3)), "three steps were left"


def test_what_changes_the_network_before_an_epoch_does_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hook a killed training goes on from its last whole epoch."""
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN", -1.0)
    model = nn.Sequential(Killed(5), net())
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fit(model, replace(PLAIN, steps=4), context(tmp_path), None, lambda m, epoch: seen.append(epoch))
    again = nn.Sequential(Killed(99), net())
    fit(again, replace(PLAIN, steps=4), context(tmp_path), None, lambda m, epoch: seen.append(epoch))
    assert seen == [0, 1, 1, 2]


def test_a_long_training_tells_how_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100_000, 50))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(now)))
    notes: list[str] = []
    how = replace(PLAIN, epochs=4, steps=1, distill=0.5, views=2)
    fit(net(), how, replace(context(tmp_path), note=notes.append), net().eval())
    assert [note.split("; ")[1] for note in notes] == ["3 more take at most about 8 min", "1 more take about 2 min"]


def test_rate_by_hand() -> None:
    assert [learning_rate_share(at, 10, 2, "linear") for at in (2, 4, 10)] == pytest.approx([1, 0.75, 0])
    assert learning_rate_share(0, 10, 0) == 1
    assert learning_rate_share(5, 10, 0) == pytest.approx(0.5)
    assert learning_rate_share(10, 10, 0) == pytest.approx(0)
    assert learning_rate_share(1, 4, 2) == pytest.approx(1.001 / 2.001)
    assert learning_rate_share(2, 4, 2) == 1
    assert learning_rate_share(3, 4, 2) == pytest.approx(0.5)


def test_distillation_by_hand() -> None:
    """At T = 2 the teacher says 3/4, 1/4 and the student 1/2, 1/2: 4 * (3/4 ln 3/2 + 1/4 ln 1/2)."""
    teacher = torch.tensor([[2 * torch.log(torch.tensor(3.0)).item(), 0.0]])
    wanted = 4 * (0.75 * torch.log(torch.tensor(1.5)) + 0.25 * torch.log(torch.tensor(0.5)))
    torch.testing.assert_close(distillation_loss(torch.zeros(1, 2), teacher, 2.0), wanted)
    assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"batch_size": 0},
        {"warmup": 4},
        {"distill": 1.1},
        {"ema": 1.0},
        {"temperature": 0},
        {"devices": 0},
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(wrong))} must lie in"):
        replace(PLAIN, **wrong)


def test_an_unknown_decay_is_refused() -> None:
    with pytest.raises(RequestError, match=r"Training\.decay: wanted 'cosine' or 'linear', found str 'line'"):
        replace(PLAIN, decay="line")


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("16-mixed", "cpu") == "16-mixed"
    for native, wanted in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert resolve_precision("auto", "cpu") == wanted


def test_divergence_is_told(tmp_path: Path) -> None:
    broken = net()
    nn.init.constant_(broken[5].weight, float("inf"))
    with pytest.raises(StageError, match="diverged in epoch 1"):
        fit(broken, PLAIN, context(tmp_path), None)
    assert not (tmp_path / "epoch.safetensors").exists()


def test_an_epoch_can_be_a_few_batches_drawn_anew(tmp_path: Path) -> None:
    how = Training(epochs=2, steps=3, lr=0.01, batch_size=4)
    ctx = context(tmp_path)
    fabric = loop._fabric(how, "cpu")
    first, second = ([labels for _, labels, _ in loop._batches(fabric, how, ctx, epoch, 0)] for epoch in (0, 1))
    assert [len(labels) for labels in first] == [4, 4, 4]
    assert len(ctx.data.train) > 12 and not torch.equal(torch.cat(first), torch.cat(second))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each question of a training was about."""
    counts: list[int] = []
    ask = Teacher._ask

    def counted(self: Teacher, images: Tensor) -> Tensor:
        counts.append(len(images))
        return ask(self, images)

    monkeypatch.setattr(Teacher, "_ask", counted)
    return counts


def test_training_asks_about_each_view_once(tmp_path: Path, asked: list[int]) -> None:
    Finetune(training=VIEWS)(net(), context(tmp_path / "two", baseline=net().eval()))
    assert sum(asked) == 2 * 64
    asked.clear()
    Finetune(training=replace(VIEWS, views=0))(net(), context(tmp_path / "ever", baseline=net().eval()))
    assert sum(asked) == 5 * 64


def test_one_view_of_unchanged_images_trains_as_asking_does(tmp_path: Path) -> None:
    plain = replace(VIEWS, augment=Augment(crop=0, flip=False))
    results = []
    for views in (0, 1):
        results.append(net())
        fit(results[-1], replace(plain, views=views), context(tmp_path / str(views)), net().eval())
    for name, tensor in results[0].state_dict().items():
        torch.testing.assert_close(results[1].state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_killed_training_with_views_ends_with_the_same_bits(tmp_path: Path, asked: list[int]) -> None:
    teacher = net().eval()
    whole = net()
    fit(whole, VIEWS, context(tmp_path / "whole"), teacher)
    scratch = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        fit(net(), VIEWS, context(scratch, track=killing), teacher)
    asked.clear()
    resumed = net()
    fit(resumed, VIEWS, context(scratch), teacher)
    assert same(whole, resumed) and sum(asked) == 64


def test_views_come_round_and_differ(tmp_path: Path) -> None:
    ctx, fabric = context(tmp_path), loop._fabric(VIEWS, "cpu")

    def shown(epoch: int) -> Tensor:
        parts = [(images, which) for images, _, which in loop._batches(fabric, VIEWS, ctx, epoch, 0)]
        images, which = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return images[which.argsort()]

    assert torch.equal(shown(0), shown(2)) and torch.equal(shown(1), shown(3))
    assert not torch.equal(shown(0), shown(1))


def test_views_without_a_teacher_are_refused() -> None:
    with pytest.raises(RequestError, match="without distill"):
        replace(VIEWS, distill=0.0)
    with pytest.raises(RequestError, match="views must lie in"):
        replace(VIEWS, views=-1)
