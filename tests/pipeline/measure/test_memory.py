"""Peak memory of real files, each in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import LoweringError
from edgewise.measure import memory
from edgewise.targets import TargetError

MEGABYTE = 2**20


def linear(path: Path, outputs: int) -> Path:
    """[1, 1, 32, 32] -> [1, outputs]: its weights take outputs * 4096 bytes."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((1024, outputs)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, outputs])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_the_peak_holds_the_weights_and_not_the_libraries(tmp_path: Path) -> None:
    small, large = (linear(tmp_path / f"{outputs}.onnx", outputs) for outputs in (16, 8192))
    peaks = [memory.measure_peak("onnx", path, 1, (1, 32, 32), "normalised") for path in (small, large)]
    small_peak, large_peak = peaks
    if small_peak is None or large_peak is None:
        pytest.skip("this system tells no high-water mark")
    assert 0 < small_peak < 32 * MEGABYTE
    assert 32 * MEGABYTE < large_peak - small_peak < 128 * MEGABYTE


def test_a_file_that_the_runtime_refuses_has_no_peak(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(TargetError, match="8 bytes that ONNX Runtime refuses"):
        memory.measure_peak("onnx", tmp_path / "a.onnx", 1, (1, 8, 8), "normalised")


def _die(*_: object) -> None:
    os._exit(1)


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_measure_growth", _die)
    with pytest.raises(LoweringError, match=r"onnx: the process that measured the memory of a\.onnx died"):
        memory.measure_peak("onnx", tmp_path / "a.onnx", 1, (1, 8, 8), "normalised")
