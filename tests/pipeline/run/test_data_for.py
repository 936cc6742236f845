"""Images that do for a recipe, numbered as the network's outputs are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgewise import calib_data
from edgewise.calib_data import Data, DataError
from edgewise.errors import RequestError
from edgewise.models import Spec
from edgewise.network import architecture
from edgewise.recipe import Recipe
from edgewise.recipes import demo
from edgewise.run.data_for import (
    check_enough,
    describe_images,
    load_data,
    number_classes,
    wanted_options,
    without_idle_training,
)
from edgewise.stages.finetune import Finetune
from edgewise.stages.prune import Prune
from edgewise.stages.quantize import Quantize
from edgewise.stages.separate import Separate
from edgewise.stages.training.settings import Training

NET = '''
from torch import nn

input_shape = (3, 16, 16)
resize = 18
interpolation = "bicubic"
classes = ["dog", "cat", "car", "bus"]
mean = [0.4, 0.5, 0.6]


def net():
    """Four outputs, whatever the data has."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
'''


def fill(root: Path, *classes: str, count: int = 6) -> Path:
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 20), (20 * place + number, 0, 0)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return architecture.spec_of(f"{tmp_path / 'net.py'}:net")


def given(data: str, **fields: object) -> Recipe:
    """A recipe that calibrates given weights and does nothing else."""
    plain = dataclasses.replace(
        demo(), stages=(), quantize=Quantize(training=None), weights="net.pt", data=data, candidates=()
    )
    return dataclasses.replace(plain, **fields)


def test_images_come_as_the_network_states_and_by_whose_word_is_kept(tmp_path: Path, spec: Spec) -> None:
    fill(tmp_path / "set" / "val", "cat", "dog")
    data = load_data(given(f"imagefolder:{tmp_path / 'set'}"), spec)
    assert data.shape == (3, 16, 16)
    assert {name: entry.origin for name, entry in data.prepared.items()} == {
        "size": "net.py", "resize": "net.py", "interpolation": "net.py", "channels": "--data",
    }  # fmt: skip
    own = load_data(given(f"imagefolder:{tmp_path / 'set'}?size=8"), spec)
    assert own.shape == (3, 8, 8) and own.prepared["size"].origin == "--data"
    assert own.prepared["resize"].value == "shorter side to 8 pixels"


def test_labels_are_the_network_s_numbers(tmp_path: Path, spec: Spec) -> None:
    fill(tmp_path / "set" / "val", "cat", "dog")
    data = load_data(given(f"imagefolder:{tmp_path / 'set'}"), spec)
    assert data.classes == ("dog", "cat", "car", "bus")
    for part in (data.calib, data.test):
        reds = part.batch(torch.arange(len(part)))[:, 0, 0, 0]
        assert (part.labels == (reds < 20).long()).all()  # cats are the folder of the low reds, and number 1


def test_a_class_that_the_network_has_not(tmp_path: Path, spec: Spec) -> None:
    fill(tmp_path / "set" / "val", "cat", "cow")
    with pytest.raises(DataError, match="found cow, which means none of them"):
        load_data(given(f"imagefolder:{tmp_path / 'set'}"), spec)


def test_labels_of_a_recipe_may_only_be_other_words_for_all_classes(tmp_path: Path) -> None:
    data = calib_data.load(f"imagefolder:{fill(tmp_path, 'a', 'b')}?size=8")
    assert number_classes(data, ("first", "second"), positional=True).digest == data.digest
    with pytest.raises(DataError, match="found a, b, which mean none of them"):
        number_classes(data, ("first", "second"), positional=False)
    with pytest.raises(DataError, match="found a, b, which mean none of them"):
        number_classes(data, ("x", "y", "z"), positional=True)


def test_a_network_that_states_nothing_asks_for_nothing() -> None:
    assert wanted_options(Spec(name="x", build=torch.nn.Identity, input_shape=(3, 224, 224), classifier="")) == {}


TRAINING = Training(epochs=1, lr=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, r"the baseline trains, and .* has no training images.*--weights"),
        ({"stages": (Finetune(training=TRAINING),)}, "the step finetune trains.*Leave the step out"),
        ({"quantize": Quantize(training=TRAINING)}, r"the step quantize trains.*Quantize\(training=None\)"),
        ({"stages": (Prune(channels=0.5, reconstruct=64),)}, "the step prune is fitted on training images"),
        ({"stages": (Separate(),)}, "the step separate is fitted on training images"),
    ],
)
def test_what_trains_wants_images_to_train_on(tmp_path: Path, change: dict[str, object], message: str) -> None:
    fill(tmp_path / "val", "a", "b")
    recipe = given(f"imagefolder:{tmp_path}", **change)
    with pytest.raises(RequestError, match=message):
        check_enough(recipe, calib_data.load(f"imagefolder:{tmp_path}?size=8"))
    check_enough(given(recipe.data), calib_data.load(f"imagefolder:{tmp_path}?size=8"))
    check_enough(given(recipe.data, stages=(Prune(channels=0.5),)), calib_data.load(f"imagefolder:{tmp_path}?size=8"))


def test_training_wants_every_class_and_fitting_does_not(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\n", encoding="utf-8")
    fill(tmp_path / "train", "a", "b", count=20)
    fill(tmp_path / "val", "a", "c")
    data = calib_data.load(f"imagefolder:{tmp_path}?size=8")
    with pytest.raises(RequestError, match=r"has no training image of 1 of its 3 classes \(c\); training wants"):
        check_enough(given("x", stages=(Finetune(training=TRAINING),)), data)
    check_enough(given("x", stages=(Prune(channels=0.5, recover_steps=3),)), data)
    assert describe_images(data)["test"] == {"images": 12, "classes": 2}


@pytest.mark.parametrize(
    "stage",
    [
        Prune(max_drop=0.1),
        Prune(channels=0.5, importance="taylor"),
        Prune(channels=0.5, scope="sensitivity"),
        Separate(),
    ],
)
def test_what_decides_by_accuracy_wants_labels(tmp_path: Path, stage: object) -> None:
    unlabelled = _with_unlabelled_calib(tmp_path)
    with pytest.raises(RequestError, match=r"decides by the accuracy on calibration images.*no labels"):
        check_enough(given("x", stages=(stage,)), unlabelled)
    check_enough(given("x", stages=(Prune(channels=0.5),)), unlabelled)


def test_training_that_comes_only_where_needed_stays_out_where_the_images_allow_none(tmp_path: Path) -> None:
    recipe = given("x", quantize=Quantize(training=TRAINING, when_needed=True))
    fill(tmp_path / "judged" / "val", "a", "b")
    judged = calib_data.load(f"imagefolder:{tmp_path / 'judged'}?size=8")
    for data, why in ((judged, "no training images"), (_with_unlabelled_calib(tmp_path / "set"), "no labels")):
        check_enough(recipe, data)
        changed, (told,) = without_idle_training(recipe, data)
        assert changed.quantize == Quantize(training=None, when_needed=True) and why in told
    fill(tmp_path / "whole", "a", "b", count=20)
    assert without_idle_training(recipe, calib_data.load(f"imagefolder:{tmp_path / 'whole'}?size=8")) == (recipe, ())


def _with_unlabelled_calib(tmp_path: Path) -> Data:
    fill(tmp_path / "train", "a", "b")
    fill(tmp_path / "val", "a", "b")
    (tmp_path / "calib").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "calib" / "0.png")
    return calib_data.load(f"imagefolder:{tmp_path}?size=8")
