"""The Ethos-U target: the whole network on the NPU, evaluated by the TOSA reference model, estimated by Vela."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

pytest.importorskip("ethosu", reason="Ethos-U's compiler is not installed")
pytest.importorskip("tosa_reference_model", reason="the TOSA reference model is not installed")

from edgewise import targets
from edgewise.targets import Artifact, Grid, TargetError
from edgewise.targets import ethos_u as package
from edgewise.targets.ethos_u._integers import as_integers

TARGET = package.TARGET
assert TARGET.reference is not None and TARGET.estimate is not None


class Residual(nn.Module):
    """A residual block, a depthwise one, a subsampled shortcut with zero channels, two kinds of mean, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.inner(x) + x)
        y = F.relu6(self.depthwise(y))
        z = F.relu(self.down(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.fc(z.mean((2, 3), keepdim=True).flatten(1))


class Tail(nn.Module):
    """A convolution, a mean that drops the image's axes, and what Ethos-U leaves to the CPU: a cosine."""

    def __init__(self, cosine: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.cosine = cosine

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).mean((2, 3))
        return torch.cos(x) if self.cosine else x


def quantize(model: nn.Module, images: Tensor) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = torch.export.export(model.eval(), (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(graph, TARGET.quantizer(Grid()))
    for image in images:
        prepared(image[None])
    return convert_pt2e(prepared)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(images: Tensor) -> ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(quantize(Residual(), images[:16]), (images[:1],))


@pytest.fixture(scope="module")
def written(program: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return TARGET.export(program, tmp_path_factory.mktemp("npu") / "net.ethosu", targets.USUAL)


def outputs(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([run(image[None]) for image in images])


def last_scale(program: ExportedProgram) -> float:
    return [n.args[1] for n in program.graph.nodes if "quantize_per_tensor" in str(n.target)][-1]


def test_the_whole_network_is_on_the_npu(written: Artifact) -> None:
    assert written.precision == "int8" and written.undelegated == ()
    assert written.facts["delegates"] == 1 and written.facts["undelegated"] == {}
    # Four convolutions of the network, and the subsampled shortcut written as one.
    delegated = written.facts["delegated"]
    assert (delegated["convolution"], delegated["linear"], delegated["add"], delegated["avg_pool2d"]) == (5, 1, 2, 1)
    assert {path.name for path in written.path.iterdir()} == {"network.pte", "network.tosa", "vela_summary.csv"}


def test_the_tosa_program_computes_what_the_quantized_graph_computes(
    written: Artifact, program: ExportedProgram, images: Tensor
) -> None:
    found = TARGET.reference(written.path)(images)
    expected = outputs(program.module(), images)
    assert found.dtype == torch.float32 and found.shape == (40, 6)
    steps = (found - expected).abs() / last_scale(program)
    # The biases are rounded, and the NPU rescales sums by integers: a step of the last grid, seldom two.
    assert steps.max() < 2.01 and steps.mean() < 0.3


def test_a_wrong_scale_in_the_program_is_seen(written: Artifact, program: ExportedProgram, images: Tensor) -> None:
    expected = outputs(program.module(), images)
    runner = TARGET.reference(written.path)
    runner._input = (runner._input[0] * 2, runner._input[1])
    assert ((runner(images) - expected).abs() / last_scale(program)).max() > 5


def test_made_integer_a_program_changes_by_its_rounded_biases_only(program: ExportedProgram, images: Tensor) -> None:
    integers = as_integers(program)
    before, after = outputs(program.module(), images), outputs(integers.module(), images)
    assert ((before - after).abs() / last_scale(program)).max() < 1.01
    biases = [
        n for n in integers.graph.nodes if "dequantize_per_channel" in str(n.target) and n.args[-1] == torch.int32
    ]
    assert len(biases) == 5  # the shortcut has none
    for node in biases:
        assert node.args[3:6] == (0, -(2**31) + 1, 2**31 - 1)


def test_velas_table_is_read_as_an_estimate(written: Artifact) -> None:
    found = TARGET.estimate(written.path)
    assert found.cycles > 0 and found.clock_hz == 500_000_000 and found.ms == pytest.approx(found.cycles / 500_000)
    assert found.flash_bytes > 1000 and found.sram_bytes >= 1024
    assert found.source.startswith("Vela for Ethos_U55_128")


@pytest.mark.parametrize("cut", ["vela_summary.csv", "network.tosa"])
def test_a_folder_with_a_part_missing_is_refused(written: Artifact, tmp_path: Path, cut: str) -> None:
    folder = tmp_path / "net.ethosu"
    folder.mkdir()
    for path in written.path.iterdir():
        if path.name != cut:
            (folder / path.name).write_bytes(path.read_bytes())
    read = TARGET.estimate if cut == "vela_summary.csv" else TARGET.reference
    with pytest.raises(TargetError, match=cut):
        read(folder)


def test_a_truncated_tosa_program_ends_neither_the_run_nor_passes(
    written: Artifact, tmp_path: Path, images: Tensor
) -> None:
    folder = tmp_path / "net.ethosu"
    folder.mkdir()
    for path in written.path.iterdir():
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".tosa" else content)
    with pytest.raises(TargetError, match="cannot evaluate"):
        TARGET.reference(folder)(images[:2])


def test_a_mean_that_drops_axes_is_taken(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = quantize(Tail(cosine=False), images[:8])
    artifact = TARGET.export(torch.export.export(graph, (images[:1],)), tmp_path / "net.ethosu", targets.USUAL)
    assert artifact.undelegated == ()
    assert torch.allclose(TARGET.reference(artifact.path)(images[:4]), outputs(graph, images[:4]), atol=0.02)


def test_what_the_npu_does_not_take_is_named_and_the_target_allows_none(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = quantize(Tail(cosine=True), images[:8])
    artifact = TARGET.export(torch.export.export(graph, (images[:1],)), tmp_path / "net.ethosu", targets.USUAL)
    assert "cos" in artifact.undelegated and TARGET.max_undelegated == 0
    with pytest.raises(TargetError, match="whole network in one piece"):
        TARGET.reference(artifact.path)


def test_a_float_network_is_refused(images: Tensor, tmp_path: Path) -> None:
    program = torch.export.export(Tail(cosine=False).eval(), (images[:1],))
    with pytest.raises(TargetError, match="integers only"):
        TARGET.export(program, tmp_path / "net.ethosu", targets.USUAL)
