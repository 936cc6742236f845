"""What would end a run after training is found before it, with the layer or the line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewise.errors import RequestError
from edgewise.network.architecture import Base
from edgewise.network.start import begin_network
from edgewise.recipe import Recipe
from edgewise.recipes import quantize_only
from edgewise.run import dry_run
from edgewise.run.dry_run import rehearse_recipe
from edgewise.run.job import resolve_recipe
from edgewise.stages.fold import Fold
from edgewise.stages.quantize import Quantize
from edgewise.stages.train import Train
from edgewise.stages.training.settings import Training
from edgewise.targets import Grid

SOURCE = """
import torch
from torch import nn

class Fine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

class Branches(Fine):
    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return super().forward(x)

class Named(Fine):
    def forward(self, x):
        answers = super().forward(x)
        return {"out": answers, "aux": answers} if self.training else answers

class Written(Fine):
    def forward(self, x):
        y = torch.sigmoid(self.conv(x))
        z = y * y
        y += 1
        return self.fc((z + y).mean((2, 3)))

class Stuck(Fine):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)

class Fails(Fine):
    def forward(self, x):
        return super().forward(x) if not self.training else self.missing(x)

class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x):
        return self.fc(x.reshape(1, 36))
"""
IMAGES = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
GRID = (Grid(weight_bits=7),)


def recipe(model: str, *, weights: str | None = None, fold: bool = False, quantize: bool = False) -> Recipe:
    return Recipe(
        name="try",
        model=model,
        data="digits",
        baseline=Train(training=Training(epochs=1, lr=0.1)),
        weights=weights,
        stages=(Fold(),) if fold else (),
        quantize=Quantize(training=None) if quantize else None,
    )


def rehearsed(name: str, folder: Path, **how: bool | str) -> bool:
    (folder / "net.py").write_text(SOURCE)
    reference = f"{folder}/net.py:{name}"
    begun = begin_network(Base(reference, 3, 1), IMAGES)
    return rehearse_recipe(begun.model, IMAGES, recipe(reference, **how), GRID)  # type: ignore[arg-type]


def test_what_goes_through_goes_through(tmp_path: Path) -> None:
    assert rehearsed("Fine", tmp_path, fold=True, quantize=True)


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    model = begin_network(Base(f"{tmp_path}/net.py:Fine", 3, 1), IMAGES).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rehearse_recipe(model, IMAGES, recipe(f"{tmp_path}/net.py:Fine", fold=True, quantize=True), GRID)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


FAULTS = {
    "Branches": r"captured.*net\.py, line \d+ \(if x\.sum\(\) > 0:\).*values of the image",
    "Named": "answers a dict with out, aux in training",
    "Written": "cannot be trained.*modified by an inplace operation",
    "Stuck": "nothing of .* can be trained",
    "Fails": r"fails in training, at net\.py, line \d+ .*no attribute 'missing'",
    "One": "takes one image at a time",
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found_and_named(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match=FAULTS[name]):
        rehearsed(name, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_what_only_training_would_meet_does_not_stop_a_network_with_weights(tmp_path: Path) -> None:
    assert rehearsed("Named", tmp_path, weights="w.pt")
    assert not rehearsed("One", tmp_path, weights="w.pt")
    with pytest.raises(RequestError, match="no stages and no quantization"):
        rehearsed("One", tmp_path, weights="w.pt", fold=True)


def test_what_went_well_is_not_tried_again_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    file, tries = tmp_path / "mine.py", []
    file.write_text(SOURCE + "\ndef build():\n    return nn.Sequential(Fine(), nn.Linear(3, 10))\n", encoding="utf-8")

    def rehearsed(*given: object) -> bool:
        tries.append(given)
        return len(tries) == 1

    monkeypatch.setattr(dry_run, "rehearse_recipe", rehearsed)
    recipe = replace(quantize_only(), model=f"{file}:build")
    assert [resolve_recipe(recipe, tmp_path / "out").by_batches for _ in range(2)] == [True, True] and len(tries) == 1
    file.write_text(file.read_text(encoding="utf-8").replace(", 4, 3)", ", 4, 2)"), encoding="utf-8")
    assert not resolve_recipe(recipe, tmp_path / "out").by_batches and len(tries) == 2
