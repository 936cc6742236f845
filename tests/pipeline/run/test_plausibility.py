"""Given weights that are fed wrongly are found, and the likely way is named."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.calib_data._parts import MemoryPart, in_memory
from edgewise.errors import RequestError
from edgewise.measure.per_class import per_class
from edgewise.models import IMAGENET_MEAN, IMAGENET_STD, Spec
from edgewise.network.stated import read_stated
from edgewise.recipes import demo
from edgewise.run.plausibility import compare_to_expected, doubt_answers, preparation_advice, try_preparations
from edgewise.run.provenance import assumed_fields, describe_feeding, image_warning, override_spec


def spec(**fields: object) -> Spec:
    plain = Spec(name="net", build=nn.Identity, input_shape=(3, 4, 4), mean=(0.5,), std=(0.5,), classifier="")
    return dataclasses.replace(plain, **fields)


def data() -> Data:
    """Class 0: red 140, blue 100; class 1: red 100, blue 140."""
    labels = torch.arange(80) % 2
    images = torch.full((80, 3, 4, 4), 120, dtype=torch.uint8)
    images[labels == 0, 0], images[labels == 0, 2] = 140, 100
    images[labels == 1, 0], images[labels == 1, 2] = 100, 140
    part = MemoryPart(images, labels)
    return in_memory("mine", part, part, part, ("red", "blue"))


class Fed(nn.Module):
    """Tells the classes apart only where images come as it was made for."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], bgr: bool = False) -> None:
        super().__init__()
        self.wanted = [(torch.tensor(values) / 255 - torch.tensor(mean)) / torch.tensor(std) for values in COLOURS]
        self.bgr = bgr

    def forward(self, images: Tensor) -> Tensor:
        seen = (images.flip(1) if self.bgr else images).mean((2, 3))
        near = torch.stack([-(seen - wanted).abs().amax(1) for wanted in self.wanted], 1)
        return torch.where(near.amax(1, keepdim=True) > -0.05, near, torch.tensor([1.0, 0.0]))


COLOURS = ((140.0, 120.0, 100.0), (100.0, 120.0, 140.0))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Fed(IMAGENET_MEAN, IMAGENET_STD), "with ImageNet's normalisation top-1 is 100%.*--mean 0.485 0.456 0.406"),
        (Fed(IMAGENET_MEAN, IMAGENET_STD, bgr=True), r"ImageNet's normalisation in BGR order.*images\.flip\(1\)"),
        (Fed((0.0,) * 3, (1.0,) * 3), "with 0 to 1 normalisation top-1 is 100%"),
        (Fed((0.5,) * 3, (0.5,) * 3), "none of the usual normalisations nor BGR does better"),
    ],
)
def test_the_likely_preparation_is_named(network: nn.Module, said: str) -> None:
    import re

    assert re.search(said, preparation_advice(try_preparations(network, data(), spec())))


def answers(predicted: list[int], classes: int) -> Tensor:
    return torch.eye(classes)[predicted]


def test_doubts() -> None:
    labels = torch.arange(100) % 25
    right = answers(labels.tolist(), 25)
    assert doubt_answers(per_class(right, labels)) == ""
    assert "not finite" in doubt_answers(per_class(right * torch.nan, labels))
    assert "all 100 images are answered with one class, number 3" in doubt_answers(
        per_class(answers([3] * 100, 25), labels)
    )
    guessed = per_class(answers([(label + 1 + (n > 93)) % 25 for n, label in enumerate(labels.tolist())], 25), labels)
    assert "top-1 is 0.00%, hardly what guessing among 25 classes gives" in doubt_answers(guessed)
    two = torch.arange(40) % 2
    assert doubt_answers(per_class(answers(([0, 0, 1, 1] * 10), 2), two)) != ""  # half of two classes
    assert doubt_answers(per_class(answers([*([0, 1] * 15), *([1, 0] * 5)], 2), two)) == ""  # three quarters


def test_what_is_expected_is_missed_beyond_half_a_point() -> None:
    assert compare_to_expected(0.853, 0.857) == compare_to_expected(0.9, None) == compare_to_expected(0.9, 0.857) == ""
    assert compare_to_expected(0.78, 0.857) == "85.70% are expected of these weights, 78.00% were measured"


def test_what_is_asked_for_stands_above_the_file_s() -> None:
    recipe = dataclasses.replace(demo(), weights="w.pt", mean=(0.1, 0.2, 0.3))
    found = override_spec(spec(origins={"std": "net.py"}), recipe)
    assert (found.mean, found.std, assumed_fields(found)) == ((0.1, 0.2, 0.3), (0.5,), [])
    assert describe_feeding(found, data())[:2] == ["mean 0.1 0.2 0.3 (the request)", "std 0.5 (net.py)"]
    assert describe_feeding(found, data())[2] == "images as they are, 4 × 4 pixels, RGB (--data)"
    with pytest.raises(RequestError, match=r"--mean: units of 0 to 1.*in those it would be 0\.4855"):
        override_spec(spec(), dataclasses.replace(recipe, mean=(123.8, 116.3, 103.5)))
    with pytest.raises(RequestError, match="--std: numbers above 0"):
        override_spec(spec(), dataclasses.replace(recipe, std=(0.0,)))
    with pytest.raises(RequestError, match=r"--expect-top1 .* none are given"):
        override_spec(spec(), dataclasses.replace(demo(), expect_top1=0.9))


def test_assumed_values_are_warned_of() -> None:
    assert image_warning(spec(), data()).startswith("nobody stated the mean and the std")
    assert image_warning(spec(origins={"mean": "net.py", "std": "net.py"}), data()) == ""
    assert "nobody stated the std that" in image_warning(spec(origins={"mean": "net.py"}), data())


class Module:
    """Stands for a user's module."""

    def __init__(self, **constants: object) -> None:
        vars(self).update(constants)


def test_constants_of_a_network_s_file(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n", encoding="utf-8")
    place = tmp_path / "net.py"
    stated, origins = read_stated(Module(mean=0.4, std=[0.2, 0.3, 0.4], classes="names.txt"), place)
    assert stated == {
        "mean": (0.4,), "std": (0.2, 0.3, 0.4), "input_shape": (3, 224, 224), "classes": ("a", "b"),
    }  # fmt: skip
    assert origins == {"mean": "net.py", "std": "net.py", "classes": "net.py"}
    functions = Module(mean=lambda values: sum(values), resize=torch.nn.functional.interpolate, std=math, classes=int)
    assert read_stated(functions, place) == read_stated(Module(), place)
    assert read_stated(Module(), place) == ({"mean": (0.5,), "std": (0.5,), "input_shape": (3, 224, 224)}, {})


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"mean": ("half",)}, r"mean in net\.py: numbers are wanted"),
        ({"std": (0.2, float("nan"), 0.2)}, "std in net.py: numbers above 0"),
        ({"mean": (127.5,)}, r"units of 0 to 1 are wanted.*it would be 0\.5"),
        ({"input_shape": (224, 224)}, r"input_shape in net\.py: \(channels, height, width\)"),
        ({"resize": 0.875}, r"resize in net\.py: a number of pixels"),
        ({"classes": ["a"]}, r"classes in net\.py: names of at least two"),
        ({"interpolation": 3}, r"interpolation in net\.py: the name of a filter"),
    ],
)
def test_constants_that_mean_nothing(tmp_path, constants: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_stated(Module(**constants), tmp_path / "net.py")
