"""ONNX files in WebAssembly, by node: the answers are the native runtime's, and what it refuses is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")

from edgewise import targets
from edgewise.targets import USUAL, MissingBackend, Packaging, TargetError, _npm
from edgewise.targets.onnx_web import TARGET, _node


class Small(nn.Module):
    """Two convolutions around a shortcut, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.fc((torch.relu(self.second(x)) + x).mean((2, 3), keepdim=True).flatten(1))


@pytest.fixture
def web() -> targets.Target:
    try:
        return targets.get("onnx_web")
    except MissingBackend as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def native(path: Path, images: Tensor) -> Tensor:
    load = targets.get("onnx").load
    assert load is not None
    return load(path, 1)(images)


def test_a_float_file_answers_as_in_the_native_runtime(
    web: targets.Target, network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    written = web.export(torch.export.export(network, (images[:1],)), tmp_path / "net.onnx", USUAL)
    assert (written.target, written.precision) == ("onnx_web", "float32")
    runner = web.load(written.path, 1)  # type: ignore[misc]
    found = runner(images)
    torch.testing.assert_close(found, native(written.path, images), atol=1e-5, rtol=1e-5)
    assert found.shape == (12, 5) and len({tuple(row) for row in found.tolist()}) == 12
    assert isinstance(runner, targets.TellsInput) and runner.takes == ((1, 3, 8, 8), "float")
    assert torch.equal(found, runner(images))


def test_an_int8_file_answers_as_in_the_native_runtime(
    web: targets.Target, network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = torch.export.export(network, (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(graph, web.quantizer(web.grids[0]))
    for image in images:
        prepared(image[None])
    program = torch.export.export(convert_pt2e(prepared), (images[:1],))
    written = web.export(program, tmp_path / "net.onnx", USUAL)
    assert written.precision == "int8"
    step = [node.args[1] for node in program.graph.nodes if ".quantize_per_tensor" in str(node.target)][-1]
    assert (web.load(written.path, 1)(images) - native(written.path, images)).abs().max() < 1.01 * step  # type: ignore[misc]


def test_an_operator_that_webassembly_has_not_is_named(
    web: targets.Target, network: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    path = targets.get("onnx").export(torch.export.export(network, (images[:1],)), tmp_path / "net.onnx", USUAL).path
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Unheard", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(TargetError, match=r"onnxruntime-web says: .*Unheard"):
        _node.Runner(path, "float", (1, 3, 8, 8), 1)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node: sudo apt-get install nodejs")
def test_a_process_that_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for want of a runtime: its own message, and no wait for an answer."""
    monkeypatch.setenv(_npm.MODULES, str(tmp_path))
    with pytest.raises(TargetError, match="onnxruntime-web says: "):
        _node.Runner(tmp_path / "net.onnx", "float", (1, 3, 8, 8), 1)


def test_the_process_ends_with_the_runner(
    web: targets.Target, network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    written = web.export(torch.export.export(network, (images[:1],)), tmp_path / "net.onnx", Packaging())
    runner = _node.Runner(written.path, "float", (1, 3, 8, 8), 1)
    process = runner._process
    assert process.poll() is None
    del runner
    assert process.poll() is not None


def test_without_the_package_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_npm.MODULES, str(tmp_path))
    with pytest.raises(MissingBackend, match=r"'onnx_web' needs onnxruntime-web, .*npm install onnxruntime-web"):
        targets.get("onnx_web")


def test_the_packages_version_is_among_the_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured with one version is not taken for another's."""
    (tmp_path / "onnxruntime-web").mkdir()
    (tmp_path / "onnxruntime-web/package.json").write_text('{"version": "1.2.3"}', encoding="utf-8")
    monkeypatch.setenv(_npm.MODULES, os.fspath(tmp_path))
    names = targets.packages(TARGET)
    assert targets.versions(names)["npm:onnxruntime-web"] == "1.2.3"
    monkeypatch.setenv(_npm.MODULES, os.fspath(tmp_path / "none"))
    assert targets.versions(names)["npm:onnxruntime-web"] is None
