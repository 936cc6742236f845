"""Shares of multiply-accumulates, worked out by hand on networks of a few layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.targets import USUAL, Grid, get
from edgewise.targets._coverage import Work, coverage_shares

CONV = 8 * 3 * 9 * 6 * 6
"""3 -> 8 channels, 3×3, on 8×8 images without padding."""
HEAD = 8 * 4
"""8 features -> 4 classes."""


class Net(nn.Module):
    """A convolution, a mean, a classifier: two layers with MACs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3), keepdim=True).flatten(1))


def quantized(operators: frozenset[str]) -> torch.fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from edgewise.targets._int8 import Int8Quantizer

    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = torch.export.export(Net().eval(), (x,)).module(check_guards=False)
    prepared = prepare_pt2e(graph, Int8Quantizer(Grid(weight_bits=7), operators=operators))
    prepared(x)
    return convert_pt2e(prepared)


def test_shares_by_hand() -> None:
    found = coverage_shares([Work("conv", 300, True), Work("conv", 100, False), Work("relu", 0, True)])
    assert (found["macs"], found["undelegated_macs"], found["undelegated_share"]) == (400, 100, 0.25)
    assert found["by_operator"] == {
        "conv": {"delegated": 1, "undelegated": 1, "macs": 400, "undelegated_macs": 100},
        "relu": {"delegated": 1, "undelegated": 0, "macs": 0, "undelegated_macs": 0},
    }
    assert coverage_shares([])["undelegated_share"] == 0.0


@pytest.mark.parametrize(
    ("name", "module"),
    [("onnx", "onnxruntime"), ("xnnpack", "executorch"), ("coreml", "coremltools"), ("litert", "litert_torch")],
)
def test_a_layer_left_in_float_is_its_share(name: str, module: str, tmp_path: Path) -> None:
    """XNNPACK takes float layers too; the others' int8 kernels leave the classifier outside."""
    pytest.importorskip(module)
    target = get(name)
    program = torch.export.export(quantized(frozenset({"conv"})), (torch.zeros(1, 3, 8, 8),))
    coverage = target.export(program, tmp_path / f"net{target.suffix}", USUAL).facts["coverage"]
    assert coverage["macs"] == CONV + HEAD
    assert coverage["undelegated_macs"] == (0 if name == "xnnpack" else HEAD)
