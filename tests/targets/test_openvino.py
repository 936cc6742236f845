"""The OpenVINO target: the file computes, in its own runtime, what the network computes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("nncf", reason="NNCF, which ExecuTorch's OpenVINO package imports, is not installed")

from edgewise.targets import Grid, TargetError
from edgewise.targets import openvino as target
from edgewise.targets._rounded import rounded_in_the_graph


class Small(nn.Module):
    """A residual block, a depthwise convolution, a pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.again(x) + x)
        x = nn.functional.max_pool2d(torch.relu(self.depthwise(x)), 2)
        return self.fc(x.mean((2, 3), keepdim=True).flatten(1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def quantized(images: Tensor, grid: Grid) -> torch.fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    captured = torch.export.export(Small().eval(), (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(captured, target.TARGET.quantizer(grid))
    for image in images:
        prepared(image[None])
    return convert_pt2e(prepared)


def test_a_float_file_answers_as_the_network(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    artifact = target.export(torch.export.export(model, (images[:1],)), tmp_path / "net.pte")
    assert artifact.precision == "float32" and artifact.undelegated == () and artifact.facts["delegates"] == 1
    expected = model(images)
    # OpenVINO computes in bfloat16 where the processor has it.
    assert torch.allclose(target.load(artifact.path, 1)(images), expected, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("bits", [8, 7])
def test_an_int8_file_answers_as_the_quantized_graph(images: Tensor, tmp_path: Path, bits: int) -> None:
    graph = quantized(images, Grid(weight_bits=bits))
    artifact = target.export(torch.export.export(graph, (images[:1],)), tmp_path / "net.pte")
    assert artifact.precision == "int8" and artifact.undelegated == ()
    expected = torch.cat([graph(image[None]) for image in images])
    found = target.load(artifact.path, 1)(images)
    step = [n.args[1] for n in graph.graph.nodes if "quantize_per_tensor" in str(n.target)][-1]
    assert ((found - expected).abs() / step).mean() < 1.0 and ((found - expected).abs() / step).max() < 5
    assert len({tuple(row) for row in found.tolist()}) > 1


def test_the_program_given_to_openvino_is_the_same_function(images: Tensor) -> None:
    graph = quantized(images, Grid(weight_bits=7))
    program = torch.export.export(graph, (images[:1],))
    moved = rounded_in_the_graph(program)
    assert [n for n in moved.graph.nodes if "quantize_per_channel" in str(n.target)]
    for image in images[:4]:
        assert torch.equal(moved.module()(image[None]), graph(image[None]))


def test_loading_leaves_this_process_the_cores_it_had(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    artifact = target.export(torch.export.export(Small().eval(), (images[:1],)), tmp_path / "net.pte")
    before = os.sched_getaffinity(0)
    first = target.load(artifact.path, 1)(images)
    assert os.sched_getaffinity(0) == before
    assert torch.equal(first, target.load(artifact.path, 1)(images))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pte").write_bytes(b"x" * 4096)
    with pytest.raises(TargetError, match="wanted an ExecuTorch program"):
        target.load(tmp_path / "net.pte", 1)
