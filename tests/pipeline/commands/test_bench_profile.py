"""``bench --profile``: the time of a file's operators, or why there is none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgewise import targets
from edgewise.__main__ import main
from edgewise.report.rows import Row
from edgewise.store.json_values import encode
from edgewise.verify import card, manifest


@pytest.fixture
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 12 * 12, 2)).eval()
    return torch.export.export(net, (torch.randn(1, 3, 16, 16),))


def written(program: torch.export.ExportedProgram, target: str, folder: Path) -> Path:
    """A float file of the network with a card beside it."""
    backend = targets.get(target)
    path = backend.export(program, folder / f"net{backend.suffix}", targets.USUAL).path
    row = Row(
        step="artifact", target=target, params=0, macs=0, bytes=None, accuracy=None, latency=None,
        verification="written", undelegated=(), verdict="not-checked", reason="", seconds=0.0,
    )  # fmt: skip
    kept = card.Card(
        target=target, sha256="", recipe="mine", model="mine", data_digest="", seed=0, input_shape=(3, 16, 16),
        mean=(0.0,), std=(1.0,), classes=("a", "b"), max_drop=1.0, row=row,
    )  # fmt: skip
    card.path_of(path).write_text(json.dumps(encode(kept)), encoding="utf-8")
    manifest.write(path, "")
    return path


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_an_onnx_file_is_timed_by_operator(
    program: torch.export.ExportedProgram, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(program, "onnx", tmp_path)
    assert main(["bench", str(path), "--profile", "--json"]) == 0
    times = json.loads(capsys.readouterr().out)["profiles"][str(path)]
    assert "Gemm" in times and any("Conv" in operator for operator in times) and min(times.values()) >= 0
    assert main(["bench", str(path), "--profile"]) == 0
    shown = capsys.readouterr().out
    assert "ms in its operators" in shown and "Gemm" in shown and "p50" not in shown


@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed")
def test_a_pte_file_says_why_it_is_not(
    program: torch.export.ExportedProgram, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(program, "xnnpack", tmp_path)
    capsys.readouterr()
    assert main(["bench", str(path), "--profile"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: {path}: wanted the time of each operator")
    assert "found none: it is built without event tracing" in err and "Leave --profile out" in err
