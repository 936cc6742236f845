"""Core ML inside a .pte: the carried package is the whole network, and its own instructions are evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("executorch")
pytest.importorskip("coremltools")

from edgewise.targets import Artifact, Grid, TargetError
from edgewise.targets import coreml_delegate as target


class Small(nn.Module):
    """A residual block and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.again(x) + x)
        return self.fc(x.mean((2, 3), keepdim=True).flatten(1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def written(model: nn.Module, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return target.export(torch.export.export(model, (images[:1],)), tmp_path_factory.mktemp("float") / "net.pte")


def test_a_float16_file_answers_as_the_network(written: Artifact, model: nn.Module, images: Tensor) -> None:
    assert written.precision == "float16" and written.undelegated == () and written.facts["delegates"] == 1
    assert torch.allclose(target.reference(written.path)(images), model(images), atol=2e-3)


def test_an_int8_file_answers_as_the_quantized_graph(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    captured = torch.export.export(model, (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(captured, target.TARGET.quantizer(Grid()))
    for image in images:
        prepared(image[None])
    graph = convert_pt2e(prepared)
    artifact = target.export(torch.export.export(graph, (images[:1],)), tmp_path / "net.pte")
    assert artifact.precision == "int8" and artifact.undelegated == ()
    expected = torch.cat([graph(image[None]) for image in images])
    step = [n.args[1] for n in graph.graph.nodes if "quantize_per_tensor" in str(n.target)][-1]
    steps = (target.reference(artifact.path)(images) - expected).abs() / step
    assert steps.mean() < 0.5 and steps.max() < 3


def test_a_damaged_file_is_refused(written: Artifact, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pte"
    cut.write_bytes(written.path.read_bytes()[:512])
    with pytest.raises(TargetError, match="wanted an ExecuTorch program"):
        target.reference(cut)
    with pytest.raises(TargetError, match="No such file"):
        target.reference(tmp_path / "none.pte")


def test_a_file_of_another_backend_is_refused(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    from edgewise.targets import xnnpack

    other = xnnpack.export(torch.export.export(model, (images[:1],)), tmp_path / "net.pte")
    with pytest.raises(TargetError, match="Core ML has in one piece"):
        target.reference(other.path)
