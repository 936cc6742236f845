"""Float networks in half precision and with int8 weights, as ONNX, .ort and .pte files that run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.targets import USUAL, Artifact, Packaging, Sizes, Target, TargetError, get
from edgewise.targets._float16 import with_float16
from edgewise.targets._int8_weights import with_int8_weights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 5)
    ).eval()


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def wanted() -> Tensor:
    with torch.no_grad():
        return network()(images())


def export(name: str, folder: Path, packaging: Packaging) -> tuple[Target, Artifact]:
    pytest.importorskip("executorch" if name == "xnnpack" else "onnxruntime")
    target = get(name)
    program = torch.export.export(network(), (images(1),))
    return target, target.export(program, folder / f"net{target.suffix}", packaging)


def answers(target: Target, path: Path) -> Tensor:
    assert target.load is not None
    return target.load(path, 1)(images())


@pytest.mark.parametrize(("name", "share"), [("onnx", 0.65), ("xnnpack", 0.95)])
def test_half_precision_takes_and_gives_float32(name: str, share: float, tmp_path: Path) -> None:
    """XNNPACK keeps the weights of convolutions in float32 and computes in float16; ONNX Runtime halves all of them."""
    target, artifact = export(name, tmp_path, Packaging(precision="float16"))
    _, single = export(name, tmp_path / "single", USUAL)
    assert (artifact.target, artifact.precision, single.precision) == (name, "float16", "float32")
    found = answers(target, artifact.path)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted(), atol=2e-3, rtol=2e-3)
    assert not torch.equal(found, wanted())
    assert artifact.path.stat().st_size < share * single.path.stat().st_size


@pytest.mark.parametrize("name", ["onnx", "ort"])
def test_int8_weights_are_a_third_of_the_file(name: str, tmp_path: Path) -> None:
    target, artifact = export(name, tmp_path, Packaging(precision="int8-weights"))
    _, single = export(name, tmp_path / "single", USUAL)
    assert artifact.precision == "int8-weights"
    torch.testing.assert_close(answers(target, artifact.path), wanted(), atol=0.02, rtol=0.02)
    assert artifact.path.stat().st_size < 0.6 * single.path.stat().st_size


def test_the_caller_keeps_its_own_numbers() -> None:
    net = network()
    program = torch.export.export(net, (images(1),))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with_float16(program, USUAL)
    with_int8_weights(program, USUAL)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_are_rounded_to_a_scale_of_each_channel() -> None:
    net = nn.Linear(256, 2, bias=False)
    x = torch.zeros(256, 256)
    net.weight.data[0] = torch.linspace(-127, 127, 256)  # a scale of 1
    net.weight.data[1] = 1e-6  # below the floor: no step of it is left
    program = with_int8_weights(torch.export.export(net, (x,)), USUAL)
    with torch.no_grad():
        found = program.module()(torch.eye(256))
    assert torch.equal(found[:, 0], torch.linspace(-127, 127, 256).round())
    assert found[:, 1].tolist() == [0.0] * 256


def test_a_network_without_a_large_weight_is_told() -> None:
    program = torch.export.export(nn.Linear(8, 2), (torch.zeros(1, 8),))
    with pytest.raises(TargetError, match="found no weight of at least 256 values"):
        with_int8_weights(program, USUAL)


def test_what_float16_cannot_hold_is_refused() -> None:
    net = nn.Linear(8, 2)
    net.bias.data.fill_(1e5)
    with pytest.raises(TargetError, match=r"float16 ends at 65,504, found a larger constant in bias"):
        with_float16(torch.export.export(net, (torch.zeros(1, 8),)), USUAL)


@pytest.mark.parametrize("precision", ["float16", "int8-weights"])
def test_several_sizes_are_refused(precision: str, tmp_path: Path) -> None:
    change = {"float16": with_float16, "int8-weights": with_int8_weights}[precision]
    with pytest.raises(TargetError, match="wanted a program of one image size"):
        change(torch.export.export(network(), (images(1),)), Packaging(sizes=Sizes(choices=((8, 8), (9, 9)))))


@pytest.mark.parametrize("name", ["onnx", "ort", "xnnpack"])
def test_what_a_runtime_does_not_have_is_refused(name: str, tmp_path: Path) -> None:
    for packaging, message in (
        (Packaging(precision="palette"), "writes no palette file; choices: int8, float32, float16"),
        (Packaging(precision="int8"), "found a float network; give the recipe a quantize step"),
    ):
        with pytest.raises(TargetError, match=message):
            export(name, tmp_path, packaging)


def test_ort_holds_no_half_precision(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="'ort' writes no float16 file"):
        export("ort", tmp_path, Packaging(precision="float16"))


def test_the_opset_is_stated_and_can_be_older(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for wanted_opset in ("18", "20"):
        _, artifact = export("onnx", tmp_path, Packaging(minimum={"onnx": wanted_opset}))
        assert artifact.facts["opset"] == int(wanted_opset)
        assert [o.version for o in onnx.load(artifact.path).opset_import] == [int(wanted_opset)]
    with pytest.raises(TargetError, match="writes no file for '11'"):
        export("onnx", tmp_path, Packaging(minimum={"onnx": "11"}))


def test_metadata_is_in_the_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    _, artifact = export("onnx", tmp_path, Packaging(metadata={"recipe": "demo", "mean": "[0.5]"}))
    held = {entry.key: entry.value for entry in onnx.load(artifact.path).metadata_props}
    assert held == {"mean": "[0.5]", "recipe": "demo"}


def test_an_ort_file_is_its_own_format_and_answers_as_the_onnx_file(tmp_path: Path) -> None:
    target, first = export("ort", tmp_path / "one", USUAL)
    assert first.path.read_bytes()[4:8] == b"ORTM", "the flatbuffer's identifier"
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["net.ort"]
    onnx, plain = export("onnx", tmp_path, USUAL)
    torch.testing.assert_close(answers(target, first.path), answers(onnx, plain.path), atol=1e-6, rtol=1e-5)


def test_a_truncated_ort_file_is_refused(tmp_path: Path) -> None:
    target, artifact = export("ort", tmp_path, USUAL)
    artifact.path.write_bytes(artifact.path.read_bytes()[:2000])
    with pytest.raises(TargetError, match=r"wanted an ONNX model at .*net.ort, found 2000 bytes"):
        answers(target, artifact.path)


def test_xnnpack_tells_its_memory_plan(tmp_path: Path) -> None:
    """Outside the delegate lie the input and the logits, 3·8·8 and 5 numbers of 4 bytes, and gaps for alignment."""
    _, artifact = export("xnnpack", tmp_path, USUAL)
    planned = artifact.facts["planned_bytes"]
    assert list(planned) == ["1"] and 4 * (3 * 8 * 8 + 5) <= planned["1"] < 1.2 * 4 * (3 * 8 * 8 + 5)
