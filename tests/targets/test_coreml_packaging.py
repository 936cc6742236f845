"""What a Core ML package can be asked to be: float32, smaller weights, an older or newer system; read back as written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

from edgewise.targets import USUAL, Artifact, Grid, Packaging, TargetError, get
from edgewise.targets.coreml._mil import read_program

TARGET = get("coreml")
SHAPE = (3, 8, 8)


def network() -> nn.Module:
    """Weights of the convolution: −1 to 1 in 432 steps of the same size; those of the classifier are too few to store small."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    net[0].weight.data = torch.linspace(-1, 1, 432)[torch.randperm(432)].reshape(16, 3, 3, 3)
    return net.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def export(path: Path, packaging: Packaging, module: nn.Module | None = None) -> Artifact:
    program = torch.export.export(module or network(), (images(1),))
    return TARGET.export(program, path / "net.mlpackage", packaging)


def answers(artifact: Artifact) -> Tensor:
    assert TARGET.reference is not None
    return TARGET.reference(artifact.path)(images(50))


def wanted() -> Tensor:
    with torch.no_grad():
        return network()(images(50))


def weight_of(artifact: Artifact) -> Tensor:
    """The convolution's weight as the file's own instructions make it."""
    from edgewise.targets.coreml._mil import Reference

    reference = Reference(read_program(artifact.path))
    (weight,) = (value for value in reference._fixed.values() if value.shape == (16, 3, 3, 3))
    return weight


def test_float32_is_exact(tmp_path: Path) -> None:
    artifact = export(tmp_path, Packaging(precision="float32"))
    assert (artifact.precision, artifact.facts["compute_precision"]) == ("float32", "float32")
    torch.testing.assert_close(answers(artifact), wanted(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("system", "operator"),
    [
        ("iOS16", "constexpr_affine_dequantize"),
        ("iOS17", "constexpr_affine_dequantize"),
        ("iOS18", "constexpr_blockwise_shift_scale"),
    ],
)
def test_int8_weights_lie_within_half_a_step(system: str, operator: str, tmp_path: Path) -> None:
    artifact = export(tmp_path, Packaging(precision="int8-weights", minimum={"coreml": system}))
    assert artifact.precision == "int8-weights"
    assert artifact.facts["deployment_target"] == system
    assert artifact.facts["operators"][operator] == 1, "the classifier's 64 weights are too few"
    off = (weight_of(artifact) - network()[0].weight).abs().amax((1, 2, 3))
    step = network()[0].weight.abs().amax((1, 2, 3)) / 127
    # Half a step, and the roundings to float16 of the scale and of the product, each 2^-12 of at most 127 steps.
    assert bool((off <= (0.5 + 2 * 127 / 4096) * step).all()) and bool((off > 0.2 * step).any())
    torch.testing.assert_close(answers(artifact), wanted(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("bits", "system"), [(4, "iOS16"), (6, "iOS17"), (4, "iOS18")])
def test_a_palette_keeps_that_many_values(bits: int, system: str, tmp_path: Path) -> None:
    artifact = export(tmp_path, Packaging(precision="palette", palette_bits=bits, minimum={"coreml": system}))
    assert (artifact.precision, artifact.facts["palette_bits"]) == ("palette", bits)
    assert artifact.facts["operators"]["constexpr_lut_to_dense"] == 1
    held = weight_of(artifact)
    assert len(held.unique()) <= 2**bits
    # 432 values spread evenly over −1 to 1: k-means gives each of 2^bits entries an equal share of the range.
    assert float((held - network()[0].weight.detach()).abs().max()) < 1.5 / 2**bits
    torch.testing.assert_close(answers(artifact), wanted(), atol=1 / 2**bits, rtol=1 / 2**bits)


def test_smaller_weights_are_smaller_files(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten()).eval()

    def size(precision: str, **more: int) -> int:
        packaging = Packaging(precision=precision, **more)  # type: ignore[arg-type]
        path = export(tmp_path, packaging, wide).path
        return sum(file.stat().st_size for file in path.rglob("weight.bin"))

    single, half, int8 = size("float32"), size("float16"), size("int8-weights")
    palette = [size("palette", palette_bits=bits) for bits in (8, 6, 4)]
    assert 1.9 < single / half < 2.1 and 1.8 < half / int8 < 2.1
    assert int8 * 1.05 > palette[0] > palette[1] > palette[2] and half / palette[2] > 3.4


def test_the_oldest_system_is_written_into_the_file(tmp_path: Path) -> None:
    versions = [
        export(tmp_path, Packaging(minimum={"coreml": system})).facts["specification_version"]
        for system in ("iOS16", "iOS17", "iOS18")
    ]
    assert versions == [7, 8, 9]


def test_what_core_ml_does_not_have_is_refused(tmp_path: Path) -> None:
    for packaging, message in (
        (Packaging(minimum={"coreml": "iOS12"}), "writes no file for 'iOS12'; choices: iOS16, iOS17, iOS18"),
        (Packaging(precision="palette", palette_bits=3), "no palette of 3 bits; choices: 1, 2, 4, 6, 8"),
        (Packaging(precision="int8"), "wanted a int8 file, found a float network; give the recipe a quantize step"),
    ):
        with pytest.raises(TargetError, match=message):
            export(tmp_path, packaging)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_network_is_int8_and_needs_ios17(tmp_path: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    prepared = prepare_pt2e(torch.export.export(net, (images(1),)).module(check_guards=False), TARGET.quantizer(Grid()))
    prepared(images(1))
    graph = convert_pt2e(prepared)
    assert export(tmp_path, Packaging(minimum={"coreml": "iOS18"}), graph).precision == "int8"
    with pytest.raises(TargetError, match="int8 activations came with iOS17"):
        export(tmp_path, Packaging(minimum={"coreml": "iOS16"}), graph)
    with pytest.raises(TargetError, match="found a quantized network; leave the recipe's quantize out"):
        export(tmp_path, Packaging(precision="float16"), graph)


def test_metadata_is_written_and_the_bytes_are_the_same_again(tmp_path: Path) -> None:
    from edgewise.targets.coreml._coremltools import load_coremltools

    packaging = Packaging(precision="palette", palette_bits=4, metadata={"recipe": "demo"})
    first, again = (export(tmp_path / name, packaging).path for name in ("one", "two"))
    files = [
        sorted((p.relative_to(root), p.read_bytes()) for p in root.rglob("*") if p.is_file()) for root in (first, again)
    ]
    assert files[0] == files[1]
    model = load_coremltools("coremltools.proto.Model_pb2").Model()
    model.ParseFromString(next(first.rglob("model.mlmodel")).read_bytes())
    assert dict(model.description.metadata.userDefined) == {"recipe": "demo"}
    assert USUAL.metadata == {}
