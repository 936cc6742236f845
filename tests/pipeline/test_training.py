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

from calib_data import Data
from calib_data._parts import MemoryPart, in_memory
from models import Spec
from pipeline import training
from pipeline.errors import RequestError, StageError
from pipeline.finetune import Finetune, Train
from pipeline.recipe import Context
from pipeline.training import Augment, Training, augment, distillation, fit, rate, resolve_precision

PLAIN = Training(epochs=3, lr=0.1, batch_size=16, augment=Augment(crop=0), precision="32-true")


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


def test_rate_by_hand() -> None:
    assert rate(0, 10, 0) == 1
    assert rate(5, 10, 0) == pytest.approx(0.5)
    assert rate(10, 10, 0) == pytest.approx(0)
    assert rate(1, 4, 2) == pytest.approx(1.001 / 2.001)
    assert rate(2, 4, 2) == 1
    assert rate(3, 4, 2) == pytest.approx(0.5)


def test_distillation_by_hand() -> None:
    """At T = 2 the teacher says 3/4, 1/4 and the student 1/2, 1/2: 4 * (3/4 ln 3/2 + 1/4 ln 1/2)."""
    teacher = torch.tensor([[2 * torch.log(torch.tensor(3.0)).item(), 0.0]])
    wanted = 4 * (0.75 * torch.log(torch.tensor(1.5)) + 0.25 * torch.log(torch.tensor(0.5)))
    torch.testing.assert_close(distillation(torch.zeros(1, 2), teacher, 2.0), wanted)
    assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augment_repeats_itself() -> None:
    images = torch.randint(1, 256, (16, 3, 8, 6), dtype=torch.uint8, generator=draw())
    how = Augment(crop=2, flip=True, cutout=3)
    one, again, other = (augment(images, how, False, draw(seed)) for seed in (1, 1, 2))
    assert one.shape == images.shape and one.dtype == torch.uint8
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one, images)


def mirrored(result: Tensor, images: Tensor) -> int:
    assert all(torch.equal(r, i) or torch.equal(r, i.flip(2)) for r, i in zip(result, images, strict=True))
    return sum(not torch.equal(r, i) for r, i in zip(result, images, strict=True))


def test_images_are_mirrored_only_where_allowed() -> None:
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=draw())
    counts = {
        (flip, of_data): mirrored(augment(images, Augment(crop=0, flip=flip), of_data, draw(1)), images)
        for flip in (None, True, False)
        for of_data in (True, False)
    }
    assert {key for key, count in counts.items() if 5 < count < 35} == {(None, True), (True, True), (True, False)}
    assert counts[None, False] == counts[False, True] == counts[False, False] == 0


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


def test_bad_augmentation_is_refused() -> None:
    with pytest.raises(RequestError, match=r"augment\.crop"):
        Augment(crop=-1)


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
    fabric = training._fabric(how, "cpu")
    first, second = ([labels for _, labels in training._batches(fabric, how, ctx, epoch)] for epoch in (0, 1))
    assert [len(labels) for labels in first] == [4, 4, 4]
    assert len(ctx.data.train) > 12 and not torch.equal(torch.cat(first), torch.cat(second))
