"""The time of an ONNX file by operator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")

from edgewise.targets import USUAL, TargetError, get
from edgewise.targets.onnx._profile import _by_operator, profile


def test_the_heavy_operator_comes_first(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)).eval()
    image = torch.randn(1, 3, 32, 32)
    path = get("onnx").export(torch.export.export(net, (image,)), tmp_path / "net.onnx", USUAL).path
    found = profile(path, image, threads=1, runs=5)
    assert next(iter(found)) == "Conv" and "Gemm" in found
    assert all(time >= 0 for time in found.values()) and list(found.values()) == sorted(found.values(), reverse=True)


def test_the_first_call_is_left_out_and_the_mean_is_taken() -> None:
    def event(name: str, operator: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": operator}}

    calls = [event("a", "Conv", 9_000), event("a", "Conv", 1_000), event("a", "Conv", 3_000)]
    others = [event("b", "Add", 500), event("b", "Add", 500), event("b", "Add", 500), {"cat": "Session", "name": "run"}]
    assert _by_operator(calls + others, runs=2) == {"Conv": 2.0, "Add": 0.5}


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(TargetError, match="wanted an ONNX model"):
        profile(path, torch.zeros(1), threads=1)
