"""The Vulkan target: lowered in one piece, and never taken for verified."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("executorch")

from edgewise.targets import Artifact, Grid, TargetError, vulkan
from edgewise.targets._executorch_runtime import load


class Small(nn.Module):
    """A convolution, a sum and a classifier; an error function, which Vulkan leaves to the CPU, where asked for."""

    def __init__(self, odd: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.again(x) + x)
        x = self.fc(x.mean((2, 3), keepdim=True).flatten(1))
        return torch.erf(x) if self.odd else x


def program(model: nn.Module, int8: bool = False) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 8, 8)
    captured = torch.export.export(model.eval(), (images,))
    if not int8:
        return captured
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(captured.module(check_guards=False), vulkan.TARGET.quantizer(Grid()))
    prepared(images)
    return torch.export.export(convert_pt2e(prepared), (images,))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return vulkan.export(program(Small()), tmp_path_factory.mktemp("float") / "net.pte")


def test_the_whole_float_network_is_one_delegate(written: Artifact) -> None:
    assert written.precision == "float32" and written.undelegated == ()
    assert written.facts["delegates"] == 1 and written.facts["delegated"]["convolution"] == 2


def test_the_whole_int8_network_is_one_delegate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger().level
    artifact = vulkan.export(program(Small(), int8=True), tmp_path / "net.pte")
    assert artifact.precision == "int8" and artifact.undelegated == () and artifact.facts["delegates"] == 1
    assert logging.getLogger().level == level and not [r for r in caplog.records if r.name == "root"]


def test_what_vulkan_does_not_take_is_named(tmp_path: Path) -> None:
    assert vulkan.export(program(Small(odd=True)), tmp_path / "net.pte").undelegated == ("erf",)


def test_the_runtime_of_the_python_package_does_not_have_it(written: Artifact) -> None:
    # When it does, the target can be given a ``load``.
    with pytest.raises(TargetError, match="VulkanBackend is not registered"):
        load(written.path, 1)
    assert vulkan.TARGET.load is None and vulkan.TARGET.reference is None
