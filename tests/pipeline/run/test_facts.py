"""What a stage tells about its work stays with its result, also when a later run takes that from the store."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from edgewise.recipe import Recipe
from edgewise.report.watch import Watch
from edgewise.run.job import Job, resolve_recipe
from edgewise.run.steps import Steps
from edgewise.stage import Context, Traits
from edgewise.stages.train import Train
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training
from edgewise.store.entries import Store


@dataclass(frozen=True, kw_only=True)
class Telling:
    """Changes nothing and tells two facts."""

    value: float = 0.5
    traits = Traits()

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        ctx.fact("plan", [{"layer": "conv", "error": self.value or float("nan"), "shape": (3, 3)}])
        ctx.fact("count", 1)
        return copy.deepcopy(model)


def job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("EDGEWISE_STORE", str(folder / "store"))
    training = Training(epochs=1, lr=0.05, batch_size=256, augment=Augment(crop=0, flip=False))
    pytest.importorskip("onnxruntime")
    return resolve_recipe(
        Recipe(name="told", model="tiny_resnet", data="digits", baseline=Train(training=training)), folder / "out"
    )


def test_facts_are_kept_with_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job(tmp_path, monkeypatch)

    def steps() -> Steps:
        return Steps(job=work, store=Store(work.store), watch=Watch(quiet=True))

    baseline = steps().baseline()
    first = steps().stage(Telling(), baseline, baseline)
    assert first.facts == {"plan": [{"layer": "conv", "error": 0.5, "shape": [3, 3]}], "count": 1}
    assert json.loads((first.folder / "facts.json").read_text()) == first.facts
    assert steps().stage(Telling(), baseline, baseline).facts == first.facts
    assert baseline.facts == {}


def test_a_fact_that_json_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job(tmp_path, monkeypatch)
    steps = Steps(job=work, store=Store(work.store), watch=Watch(quiet=True))
    baseline = steps.baseline()
    with pytest.raises(ValueError, match="finite"):
        steps.stage(Telling(value=0.0), baseline, baseline)
