"""What a target cannot write, or writes wrongly, is found before any training, with the layer and the line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgewise import targets
from edgewise.errors import RequestError
from edgewise.recipes import quantize_only
from edgewise.run.job import resolve_recipe
from edgewise.run.lowering_trial import try_integers, try_lowering
from edgewise.targets import Artifact, Packaging, Target, TargetError

SOURCE = """
import torch
from torch import nn
import torch.nn.functional as F

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)

    def inner(self, x):
        return torch.relu(x)

    def forward(self, x):
        return self.fc(self.inner(self.conv(x)).mean((2, 3)))

class Divided(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 2, divisor_override=3)

class Wrong(Plain):
    def __init__(self):
        super().__init__()
        self.pool = Divided()

    def inner(self, x):
        return self.pool(x)

class Unused(Plain):
    def __init__(self):
        super().__init__()
        self.side = nn.Linear(4, 10)

    def forward(self, x):
        out = super().forward(x)
        return (out, self.side(x.mean((2, 3)).expand(-1, 4))) if self.training else out

class Decoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2, groups=4), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

class Lacks(Plain):
    def inner(self, x):
        return torch.hypot(x, x)
"""
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEWISE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path / "net.py"


def resolve(net: Path, name: str, notes: list[str]) -> None:
    recipe = dataclasses.replace(quantize_only(), model=f"{net}:{name}", data="digits", targets=("onnx",))
    resolve_recipe(recipe, net.parent / "out", notes.append)


def test_a_fine_network_is_tried_once(net: Path) -> None:
    notes: list[str] = []
    resolve(net, "Plain", notes)
    assert "trying onnx" in notes
    notes.clear()
    resolve(net, "Plain", notes)
    assert "trying onnx" not in notes


def test_what_only_training_uses_is_in_no_files_way(net: Path) -> None:
    resolve(net, "Unused", [])


def test_it_is_tried_as_it_will_be_written(net: Path) -> None:
    # XNNPACK cannot take the batch norm behind grouped transposed convolutions; the recipe folds it.
    recipe = dataclasses.replace(quantize_only(), model=f"{net}:Decoder", data="digits", targets=("xnnpack",))
    resolve_recipe(recipe, net.parent / "out", lambda _: None)
    with pytest.raises(RequestError, match=r"cannot be written for xnnpack: .* from batch_norm of layer 2"):
        resolve_recipe(
            dataclasses.replace(recipe, stages=(), quantize=None, weights=None, candidates=("float",)),
            net.parent / "out", lambda _: None,
        )  # fmt: skip


def test_what_the_converter_lacks_is_named(net: Path) -> None:
    with pytest.raises(
        RequestError, match=r"cannot be written for onnx: .*from hypot, at net\.py, line \d+ \(return self\.fc"
    ):
        resolve(net, "Lacks", [])


def test_a_wrong_file_is_found_and_its_layer_named(net: Path) -> None:
    message = r"answers otherwise, by \d+ % .*from avg_pool2d of layer pool, at net\.py, line \d+ .*--target onnx out"
    with pytest.raises(RequestError, match=message):
        resolve(net, "Wrong", [])


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x)).mean((2, 3))


def target_that(answers: Tensor | None, refused: bool = False) -> Target:
    """A target whose files answer that, one row after the other; None: whose runtime takes no file."""
    rows = iter([]) if answers is None else iter(answers)

    def export(program: object, path: Path, packaging: Packaging) -> Artifact:
        path.write_text("a file", encoding="utf-8")
        return Artifact(target="made", path=path, precision="float32")

    def load(path: Path, threads: int) -> object:
        if refused:
            raise TargetError("it is not to my taste")
        return lambda images: next(rows)[None]

    return dataclasses.replace(targets.get("onnx"), name="made", export=export, load=load)  # type: ignore[arg-type]


def answers_of(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(image[None]) for image in IMAGES])  # type: ignore[no-any-return]


def test_one_image_that_differs_may_lie_on_an_edge() -> None:
    answers = answers_of(Two().eval())
    network = Two().eval()
    right = answers_of(network)
    try_lowering(network, IMAGES, target_that(torch.stack([answers[0] + 5, right[1]])), "two")
    with pytest.raises(RequestError, match="two gives a file for made that answers otherwise"):
        try_lowering(network, IMAGES, target_that((right + 5).repeat(9, 1)), "two")


def test_a_difference_within_rounding_passes() -> None:
    network = Two().eval()
    right = answers_of(network)
    try_lowering(network, IMAGES, target_that(right * 1.01), "two")


def test_a_file_that_its_runtime_refuses_is_a_fault() -> None:
    with pytest.raises(RequestError, match="its runtime refuses: it is not to my taste"):
        try_lowering(Two().eval(), IMAGES, target_that(None, refused=True), "two")


def test_a_reference_that_does_not_know_the_file_is_none() -> None:
    target = dataclasses.replace(target_that(None, refused=True), load=None)
    try_lowering(Two().eval(), IMAGES, target, "two")


def test_a_target_of_integers_alone_is_not_tried() -> None:
    try_lowering(Two().eval(), IMAGES, dataclasses.replace(target_that(None, refused=True), integers_only=True), "two")


def test_a_file_of_integers_is_tried_where_the_recipe_quantizes(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr("edgewise.run.lowering_trial.try_integers", lambda *arguments: tried.append(arguments[3].name))
    resolve(net, "Plain", [])
    assert tried == ["onnx"]
    float_only = dataclasses.replace(
        quantize_only(), model=f"{net}:Plain", data="digits", targets=("onnx",), quantize=None, candidates=("float",)
    )
    resolve_recipe(float_only, net.parent / "out", lambda _: None)
    assert tried == ["onnx"]


@pytest.mark.parametrize("target", ["onnx", "xnnpack"])
def test_integers_of_a_fine_network_pass(target: str) -> None:
    chosen = targets.get(target)
    grid = targets.common_grid((chosen,))
    assert grid is not None
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
                                  torch.nn.Linear(144, 3)).eval()  # fmt: skip
    try_integers(network, IMAGES, grid, chosen, "fine")


def test_integers_that_are_no_answer_are_told_apart_from_rounding() -> None:
    network, grid = Two().eval(), targets.common_grid((targets.get("onnx"),))
    assert grid is not None
    right = answers_of(network)
    try_integers(network, IMAGES, grid, target_that(right * 1.2), "two")
    with pytest.raises(RequestError, match=r"gives a file in int8 for made .* or deploy it without quantize"):
        try_integers(network, IMAGES, grid, target_that((right + 5).repeat(9, 1)), "two")
    with pytest.raises(RequestError, match="gives a file in int8 for made that its runtime refuses"):
        try_integers(network, IMAGES, grid, target_that(None, refused=True), "two")
