"""Every target that takes a camera's bytes and a range of sizes, on a network of one convolution; the others refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import targets
from edgewise.images.preprocess import Preprocess
from edgewise.images.sizes import Size, open_sides, sizes_to_try
from edgewise.images.wrapper import Wrapper
from edgewise.library_noise import quiet_capture
from edgewise.targets import Packaging, Sizes, Target, TargetError

RANGE = Sizes(choices=((8, 8), (6, 8), (12, 14)), ranged=True)
LABELS = ("cat", "dog", "äpple")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module):
    """One convolution and a mean over the image."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(channels, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.conv(x).mean((2, 3), keepdim=True).flatten(1)
        return mean


def captured(baking: Wrapper, sizes: Sizes, channels: int = 3) -> torch.export.ExportedProgram:
    with quiet_capture():
        return torch.export.export(
            baking.around(Network(channels).eval()),
            (baking.example((channels, *sizes.choices[0])),),
            dynamic_shapes=(open_sides(sizes, baking.sides) or None,),
        )


def baking(**fields: Any) -> Wrapper:
    return Wrapper(preprocess=Preprocess(**fields), mean=MEAN, std=STD)


def able(name: str) -> Target:
    try:
        target = targets.get(name)
    except targets.MissingBackend as error:
        pytest.skip(str(error))
    if "bytes" not in target.feeds or "ranged" not in target.sizes:
        pytest.skip(f"{name} takes neither bytes nor ranges, and a request for them is refused")
    return target


def bytes_of(size: Size, count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(targets.names()))
def test_bytes_at_sizes_that_were_not_traced(name: str, tmp_path: Path) -> None:
    target, around = able(name), baking(fed="bytes", softmax=True)
    packaging = Packaging(sizes=RANGE, labels=LABELS)
    written = target.export(captured(around, RANGE), tmp_path / f"net{target.suffix}", packaging)
    run = target.load(written.path, 1) if target.load is not None else None
    run = run or (target.reference or pytest.fail)(written.path)
    network = around.around(Network().eval())
    for size in ((8, 8), *sizes_to_try(RANGE)):
        with torch.inference_mode():
            given, wanted = run(bytes_of(size)), network(bytes_of(size))
        assert torch.allclose(given, wanted, atol=2e-3), size
        assert torch.allclose(given.sum(1), torch.ones(3), atol=2e-3)


def description(path: Path) -> Any:
    from edgewise.targets.coreml._coremltools import load_coremltools

    model = load_coremltools("coremltools.proto.Model_pb2").Model()
    model.ParseFromString((path / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes())
    return model.description


def test_core_ml_is_given_an_image_and_answers_with_names(tmp_path: Path) -> None:
    target, path = able("coreml"), tmp_path / "net.mlpackage"
    listed = Sizes(choices=((8, 8), (12, 10)))
    target.export(captured(baking(fed="bytes", softmax=True), listed), path, Packaging(sizes=listed, labels=LABELS))
    told = description(path)
    image = told.input[0].type.imageType
    assert [(size.height, size.width) for size in image.enumeratedSizes.sizes] == [(8, 8), (12, 10)]
    assert image.colorSpace == image.RGB
    assert told.predictedFeatureName and told.predictedProbabilitiesName
    assert told.metadata.userDefined["labels"] == '["cat", "dog", "äpple"]'
    assert target.reference is not None
    run = target.reference(path)
    assert run(bytes_of((12, 10))).shape == (3, 3)
    for wrong in (bytes_of((10, 12)), bytes_of((9, 9)), bytes_of((8, 8)).float(), bytes_of((8, 8))[..., :1]):
        with pytest.raises(ValueError, match="wanted"):
            run(wrong)


def test_core_ml_has_no_image_of_two_channels(tmp_path: Path) -> None:
    target, fixed = able("coreml"), Sizes(choices=((8, 8),))
    around = Wrapper(preprocess=Preprocess(fed="bytes"), mean=(0.5,) * 2, std=(0.5,) * 2)
    with pytest.raises(TargetError, match="an image has 1 or 3 channels, found 2"):
        target.export(captured(around, fixed, 2), tmp_path / "net.mlpackage", Packaging(sizes=fixed))


@pytest.mark.parametrize("name", list(targets.names()))
def test_floats_whose_channels_come_last(name: str, tmp_path: Path) -> None:
    target = able(name)
    if "channels-last" not in target.feeds:
        pytest.skip(f"{name} takes no floats with their channels last, and a request for them is refused")
    around = baking(fed="channels-last")
    written = target.export(captured(around, RANGE), tmp_path / f"net{target.suffix}", Packaging(sizes=RANGE))
    run = target.load(written.path, 1) if target.load is not None else pytest.fail(f"{name} has no runtime")
    network = Network().eval()
    for size in ((8, 8), *sizes_to_try(RANGE)):
        images = bytes_of(size).float() / 64 - 2
        with torch.inference_mode():
            assert torch.allclose(run(images), network(images.permute(0, 3, 1, 2)), atol=2e-3), size


@pytest.mark.parametrize("name", list(targets.names()))
def test_sizes_that_a_target_does_not_have_are_refused(name: str, tmp_path: Path) -> None:
    try:
        target = targets.get(name)
    except targets.MissingBackend as error:
        pytest.skip(str(error))
    if "ranged" in target.sizes:
        pytest.skip(f"{name} has ranges")
    with pytest.raises(TargetError, match=rf"'{name}' writes no file for ranged image sizes"):
        target.export(captured(baking(), RANGE), tmp_path / "net", Packaging(sizes=RANGE))
