"""What is wrong with a request is found before anything is trained or kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from edgewise import targets
from edgewise.calib_data import DataError
from edgewise.catalogue import find_recipe
from edgewise.errors import EdgewiseError, LoweringError, RequestError, StageError, StoreError
from edgewise.images.preprocess import Fed, Preprocess
from edgewise.models import ModelError
from edgewise.recipe import Recipe
from edgewise.recipes import demo
from edgewise.run.job import resolve_recipe
from edgewise.run.request import override_fields
from edgewise.targets import TargetError

MODELS = '''
import torch
from torch import nn


def seven(in_channels=1):
    """Seven logits, whatever the data has."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 7))


def large(num_classes=10):
    """Takes 32×32 images only."""
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, num_classes))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        y = self.linear(x.flatten(1))
        return y, y


def pair():
    """Two outputs."""
    return Pair()


class Chance(Pair):
    def forward(self, x):
        return torch.dropout(self.linear(x.flatten(1)), 0.5, True)


def chance():
    """A dropout that never rests."""
    return Chance()


class Squeezed(Pair):
    def forward(self, x):
        return self.linear(x.flatten(1)).squeeze()


def no_batch():
    """A squeeze that takes the batch away."""
    return Squeezed()


class OneImage(Pair):
    def forward(self, x):
        return self.linear(x.reshape(1, 64))


def one_image():
    """A batch of one in its code."""
    return OneImage()


def many():
    """Twice the classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20))


def text():
    """No network."""
    return "net"


def good(num_classes=10):
    """Two linear layers, of which the first can be pruned."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, num_classes))
'''


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    (tmp_path / "nets.py").write_text(MODELS, encoding="utf-8")
    return dataclasses.replace(demo(), targets=("onnx",), model=f"{tmp_path / 'nets.py'}:good")


def with_model(recipe: Recipe, name: str) -> Recipe:
    return dataclasses.replace(recipe, model=recipe.model.replace(":good", f":{name}"))


def test_every_name_is_resolved(recipe: Recipe, tmp_path: Path) -> None:
    job = resolve_recipe(recipe, tmp_path / "out")
    assert [target.name for target in job.targets] == ["onnx"] and job.runtime.name == "onnx"
    assert (job.base.num_classes, job.base.in_channels) == (10, 1)
    assert job.spec.classifier == "3"
    assert (job.out, job.store, job.weights) == (tmp_path / "out", tmp_path / "store", None)
    assert len(list(job.store.glob("*/rehearsal.json"))) == 1, "that the dry run went well, and nothing else"
    assert list(job.out.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("seven", r"answers \(1, 7\) for one image; wanted logits \(1, 10\)"),
        ("large", r"cannot take the images of digits \(1×8×8"),
        ("pair", r"answers with 2 tensors of 10 values for an image \(\[0\], \[1\]\)"),
        ("chance", r"draws random numbers in evaluation"),
        ("one_image", r"takes one image at a time"),
        ("no_batch", r"answers \(10,\) for one image.*use flatten\(1\)"),
        ("many", r"answers \(1, 20\) for one image.*name all of them in the order of its outputs"),
        ("text", "returned str; wanted a torch.nn.Module"),
    ],
)
def test_models_that_do_not_suit_the_data(recipe: Recipe, tmp_path: Path, model: str, wanted: str) -> None:
    with pytest.raises(RequestError, match=wanted):
        resolve_recipe(with_model(recipe, model), tmp_path / "out")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "error", "wanted"),
    [
        ({"device": "tpu"}, RequestError, "wanted 'cpu' or 'cuda'"),
        ({"model": "resnett20"}, ModelError, "Did you mean"),
        ({"data": "digitz"}, DataError, "Did you mean 'digits'"),
        ({"targets": ("onnxx",)}, TargetError, "Did you mean 'onnx'"),
        ({"runtime": "onnxx"}, TargetError, "Did you mean 'onnx'"),
        ({"weights": "no/such.safetensors"}, RequestError, "there is no weights file"),
    ],
)
def test_wrong_fields(
    recipe: Recipe, tmp_path: Path, change: dict[str, object], error: type[Exception], wanted: str
) -> None:
    with pytest.raises(error, match=wanted):
        resolve_recipe(override_fields(recipe, change), tmp_path / "out")


@pytest.mark.parametrize("name", list(targets.names()))
@pytest.mark.parametrize("fed", ["bytes", "channels-last"])
def test_a_target_that_cannot_be_fed_so_is_refused(recipe: Recipe, tmp_path: Path, name: str, fed: Fed) -> None:
    try:
        target = targets.get(name)
    except targets.MissingBackend as error:
        pytest.skip(str(error))
    if fed in target.feeds:
        pytest.skip(f"{name} writes such files")
    asked = dataclasses.replace(recipe, targets=(name,), runtime="onnx", preprocess=Preprocess(fed=fed))
    with pytest.raises(RequestError, match=f"'{name}' writes no file that is fed .*; leave --feed {fed} out for it"):
        resolve_recipe(asked, tmp_path / "out")


def test_cuda_without_a_gpu(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="finds no GPU; use --device cpu"):
        resolve_recipe(dataclasses.replace(recipe, device="cuda"), tmp_path / "out")


def test_out_that_cannot_be_written(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="choose another folder with --out"):
        resolve_recipe(recipe, tmp_path / "file" / "out")


def test_override_takes_only_what_is_given(recipe: Recipe) -> None:
    changed = override_fields(recipe, {"model": None, "data": "arrays:x.npz", "targets": ("xnnpack",)})
    assert (changed.model, changed.data, changed.targets) == (recipe.model, "arrays:x.npz", ("xnnpack",))


def test_find_recipe_by_name() -> None:
    assert find_recipe("demo") == demo()
    with pytest.raises(RequestError, match="Did you mean 'cifar_resnet20'"):
        find_recipe("cifar_resnet2")


@pytest.mark.parametrize("error", [RequestError, StageError, LoweringError, StoreError])
def test_errors_are_one_tree(error: type[Exception]) -> None:
    assert issubclass(error, EdgewiseError)
    assert issubclass(error, ValueError) == (error is RequestError)
