"""Recipes whose parts do not go together are refused before anything is trained, each with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from edgewise import calib_data, targets
from edgewise.__main__ import main
from edgewise.errors import RequestError
from edgewise.network.architecture import Base, build, spec_of
from edgewise.recipe import Recipe
from edgewise.recipes import demo
from edgewise.run import feasible
from edgewise.run.job import resolve_recipe
from edgewise.stages.finetune import Finetune
from edgewise.stages.fold import Fold
from edgewise.stages.prune import Prune
from edgewise.stages.separate import Separate
from edgewise.stages.train import Train
from edgewise.stages.training.settings import Training
from edgewise.targets import Packaging, Sizes

DATA = calib_data.load("digits")
FAKE = {"grids": ("a grid",), "integers_only": False, "precisions": ("float32", "float16"), "sizes": {"fixed"},
        "one_size": frozenset(), "versions": (), "since": (), "palette_bits": ()}  # fmt: skip


def target(**fields: Any) -> Any:
    return SimpleNamespace(name="fake", **FAKE | fields)


def float_recipe(**fields: Any) -> Recipe:
    return dataclasses.replace(demo(), quantize=None, candidates=(), **fields)


def check(recipe: Recipe, *wanted: Any) -> None:
    network = build(Base("tiny_resnet", 10, 1))
    feasible.check(recipe, wanted or (target(),), network, spec_of("tiny_resnet"), DATA)


@pytest.mark.parametrize(
    ("recipe", "fields", "found"),
    [
        (lambda: demo(), {}, ("float", "int8")),
        (lambda: demo(), {"integers_only": True, "precisions": ()}, ("int8",)),
        (lambda: float_recipe(), {}, ("float",)),
        (lambda: dataclasses.replace(demo(), candidates=()), {}, ("int8",)),
        (lambda: dataclasses.replace(float_recipe(), candidates=("float16", "palette")), {}, ("float16",)),
    ],
)
def test_what_a_target_writes(recipe: Callable[[], Recipe], fields: dict[str, Any], found: tuple[str, ...]) -> None:
    assert feasible.deliverables(recipe(), target(**fields)) == found


@pytest.mark.parametrize(
    ("recipe", "fields", "words"),
    [
        (lambda: dataclasses.replace(float_recipe(), candidates=("palette",)), {}, "can write no file of this recipe: wanted palette"),
        (lambda: float_recipe(), {"integers_only": True, "precisions": ()}, "it writes int8; leave --float out"),
        (lambda: float_recipe(packaging=Packaging(precision="palette")), {}, "can write no file of this recipe: wanted palette"),
        (lambda: float_recipe(packaging=Packaging(precision="int8")), {}, "and the recipe has no quantize step"),
        (lambda: dataclasses.replace(demo(), candidates=(), packaging=Packaging(precision="float16")), {}, "whose files are int8"),
        (lambda: dataclasses.replace(demo(), packaging=Packaging(precision="float16")), {}, "both say what files compute in"),
        (lambda: float_recipe(packaging=Packaging(minimum={"fake": "v9"})), {"versions": ("v1", "v2")}, "choices: v1, v2"),
        (lambda: demo(), {"versions": ("v1", "v2"), "since": (("int8", "v2"),), "minimum": "v1"}, "int8 files came with v2"),
        (lambda: float_recipe(packaging=Packaging(precision="palette", palette_bits=3)),
         {"precisions": ("palette",), "palette_bits": (4, 8)}, "no palette of 3 bits; choices: 4, 8"),
        (lambda: float_recipe(packaging=Packaging(sizes=Sizes(choices=((8, 8), (9, 9))))), {}, "only fixed"),
        (lambda: float_recipe(packaging=Packaging(precision="float16", sizes=Sizes(choices=((8, 8), (9, 9))))),
         {"sizes": {"fixed", "enumerated"}, "one_size": {"float16"}}, "for one image size only"),
    ],
)  # fmt: skip
def test_what_no_file_can_be(recipe: Callable[[], Recipe], fields: dict[str, Any], words: str) -> None:
    made, version = recipe(), fields.pop("minimum", None)
    if version:
        made = dataclasses.replace(made, packaging=Packaging(minimum={"fake": version}))
    with pytest.raises(RequestError, match=words):
        check(made, target(**fields))


def test_a_candidate_that_one_target_has_is_enough() -> None:
    recipe = dataclasses.replace(float_recipe(), candidates=("float", "palette"))
    with pytest.raises(RequestError, match="can write a file in 'palette'"):
        check(recipe, target())
    check(recipe, target(), target(precisions=("float16", "palette"), palette_bits=(6,)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stages": ()}, r"quantize takes no batch norm, and tiny_resnet has \d+ \(.*put Fold\(\)"),
        ({"stages": (Prune(channels=0.7, keep=("conv9",)), Fold())}, "Prune.keep names 'conv9', which is no layer"),
        ({"stages": (Separate(layers=("nowhere.conv",)), Fold())}, "Separate.layers names 'nowhere.conv'"),
        ({"baseline": Train(training=Training(epochs=1, lr=0.1, distill=0.5))}, "needs a trained baseline"),
        ({"stages": (Finetune(training=Training(epochs=1, lr=0.1, precision="16-mixed")), Fold())}, "trains on a GPU"),
    ],
)
def test_parts_that_do_not_go_together(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check(dataclasses.replace(demo(), **change))


def test_ready_recipes_go_together() -> None:
    check(demo())


@pytest.mark.parametrize("part", ["calib", "test"])
def test_data_without_images(part: str) -> None:
    nothing = type("Empty", (), {"__len__": lambda self: 0, "labels": torch.zeros(0)})()
    with pytest.raises(RequestError, match=f"digits has no images to {feasible._PURPOSE[part]}"):
        feasible.check_data(dataclasses.replace(DATA, **{part: nothing}))


def test_images_that_only_judge_and_calibrate_do_where_nothing_has_to_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    for name, value in (("a", 40), ("b", 200)):
        for number in range(12):
            path = tmp_path / "images" / "val" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (value, number, 0)).save(path)
    source = (
        "from torch import nn\ninput_shape = (3, 16, 16)\nmean = std = (0.5, 0.5, 0.5)\ndef build(num_classes=2):\n"
    )
    source += "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))\n"
    (tmp_path / "net.py").write_text(source, encoding="utf-8")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Identity(), torch.nn.Identity(), torch.nn.Linear(8, 2)
    )
    torch.save(net.state_dict(), tmp_path / "w.pt")
    words = ["run", "--model", "net.py:build", "--weights", "w.pt", "--data", "imagefolder:images", "--target", "onnx"]
    assert main([*words, "--dry-run"]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "0 training, 8 calibration and 16 test images" in said and "trains nothing whatever that loses" in said
    assert main([*words, "--prune", "0.5", "--dry-run"]) == 2  # the fine-tuning behind it trains


def test_nothing_is_kept_of_a_recipe_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    recipe = dataclasses.replace(demo(), targets=("onnx",), candidates=("palette",))
    with pytest.raises(RequestError, match="target 'onnx' can write no file"):
        resolve_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_written_is_told_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "file" / "store"))
    with pytest.raises(RequestError, match="is no folder; name another folder with EDGEWISE_STORE"):
        resolve_recipe(dataclasses.replace(demo(), targets=("onnx",)), tmp_path / "out")


@pytest.mark.parametrize("name", targets.names())
def test_every_target_says_what_it_writes_in_the_words_of_packaging(name: str) -> None:
    try:
        found = targets.get(name)
    except targets.MissingBackend as missing:
        pytest.skip(str(missing))
    assert found.one_size <= {*found.precisions, "int8"} and set(dict(found.since)) <= {*found.precisions, "int8"}
    assert set(dict(found.since).values()) <= set(found.versions)
    assert bool(found.palette_bits) == ("palette" in found.precisions)
