"""What a run asks of a stage is declared by the stage: one of the user's own is treated as the ready ones are."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from edgewise.errors import RequestError
from edgewise.recipe import Recipe
from edgewise.report.watch import Watch
from edgewise.run import run
from edgewise.run.job import resolve_recipe
from edgewise.stage import Context, Traits, traits_of
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.quantize import Quantize
from edgewise.stages.train import Train
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training
from edgewise.verify.gates import Limits


@dataclass(frozen=True, kw_only=True)
class Heal:
    """A recovery stage of the user's own."""

    traits = Traits(recovers=True)

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        return copy.deepcopy(model)


@dataclass(frozen=True, kw_only=True)
class Silent:
    """A stage that declares nothing of itself."""

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        return model


def recipe(*stages: object) -> Recipe:
    training = Training(epochs=1, lr=0.05, batch_size=256, augment=Augment(crop=0, flip=False))
    return Recipe(
        name="traits", model="tiny_resnet", data="digits", baseline=Train(training=training), stages=stages,
        limits=Limits(max_drop=1, max_latency_ratio=1e6, max_step_ratio=1e6),
    )  # type: ignore[arg-type]  # fmt: skip


def test_ready_stages_declare_what_they_are() -> None:
    assert traits_of(Finetune()).recovers and traits_of(Finetune()).precision == "auto"
    assert (
        not traits_of(Train()).recovers
        and traits_of(Train(training=Training(epochs=1, lr=0.1, precision="32-true"))).precision == "32-true"
    )
    assert traits_of(Fold()) == Traits()
    assert traits_of(Prune(latency=0.5)).times and traits_of(Prune(bytes=0.5)).times
    assert not traits_of(Prune(macs=0.5)).times and traits_of(Prune(macs=0.5)).precision is None
    assert traits_of(Quantize(training=None)).precision is None


def test_a_stage_that_declares_nothing_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"the stage 'silent' declares no traits, found None; give its class"):
        resolve_recipe(recipe(Silent()), tmp_path / "out")


def test_the_step_before_ones_own_recovery_is_judged_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    rows = run(resolve_recipe(recipe(Prune(channels=0.75), Heal()), tmp_path / "out"), Watch(quiet=True)).rows
    assert [row.step for row in rows[:3]] == ["baseline", "prune", "heal"]
    assert "accuracy is judged after" in rows[1].reason and "accuracy is judged after" not in rows[2].reason
