"""A step that is slower than the network it was given ends the run, however fast that still is beside the baseline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from edgewise.network import surgery
from edgewise.recipe import Recipe
from edgewise.report.watch import Watch
from edgewise.run import run
from edgewise.run.job import resolve_recipe
from edgewise.stage import Context, Traits
from edgewise.stages.prune import Prune
from edgewise.stages.train import Train
from edgewise.stages.training.augment import Augment
from edgewise.stages.training.settings import Training
from edgewise.verify.gates import Limits


@dataclass(frozen=True, kw_only=True)
class Enlarge:
    """Gives a convolution on large maps a larger kernel: many times its work."""

    kernel: int = 15
    traits = Traits()

    def __call__(self, model: nn.Module, ctx: Context) -> nn.Module:
        old = model.get_submodule("stages.0.conv2.0")
        args = {"in_channels": old.in_channels, "out_channels": old.out_channels, "kernel_size": self.kernel}
        new = {"type": "Conv2d", "args": {**args, "padding": self.kernel // 2, "bias": False}}
        return surgery.apply(model, surgery.Replace({"stages.0.conv2.0": new})).eval()


def test_a_step_slower_than_its_input_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    training = Training(epochs=1, lr=0.05, batch_size=256, augment=Augment(crop=0, flip=False))
    recipe = Recipe(
        name="slower",
        model="tiny_resnet",
        data="digits",
        baseline=Train(training=training),
        stages=(Prune(channels=0.5, scope="layer"), Enlarge(), Prune(channels=0.5)),
        limits=Limits(max_drop=1, max_latency_ratio=1e6),
    )
    report = run(resolve_recipe(recipe, tmp_path / "out"), Watch(quiet=True))
    assert [row.step for row in report.rows] == ["baseline", "prune", "enlarge"]
    assert report.rows[-1].verdict == "fail"
    assert "not faster" in report.rows[-1].reason and "its input, prune," in report.rows[-1].reason
    told = report.rows[-1].facts["time_to_input"]
    assert told["step"] == "prune" and told["ci95"][0] > 1
    loose = dataclasses.replace(
        recipe, stages=recipe.stages[:2], limits=Limits(max_drop=1, max_latency_ratio=1e6, max_step_ratio=1e6)
    )
    assert run(resolve_recipe(loose, tmp_path / "out"), Watch(quiet=True)).rows[2].verdict != "fail"
