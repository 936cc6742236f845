"""The Core ML target: float16 and int8 networks, evaluated as written, against PyTorch's run of the same graph."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

pytest.importorskip("coremltools")

from edgewise.targets import COMMON_OPERATORS, GATES, PRODUCTS, USUAL, Artifact, Grid, TargetError, get
from edgewise.targets._quiet import quiet_loggers
from edgewise.targets.coreml._islands import float_islands
from edgewise.targets.coreml._mil import Everything, Reference, read_program

TARGET = get("coreml")
SHAPE = (3, 12, 12)


class Small(nn.Module):
    """Convolutions with shortcut and concatenation, pooling and a classifier; no batch norm, so that it quantizes.

    The last mean is of nine values: of an even number, it would end in halves, which PyTorch (multiplying by 1/scale) and
    MIL (dividing by scale) round differently.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(16, 12, 3, stride=2, padding=1)
        self.linear = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.pointwise(self.depthwise(x)) + x)
        z = nn.functional.max_pool2d(torch.cat([x, y], 1), 2)
        return self.linear(torch.relu(self.wide(z)).mean((2, 3), keepdim=True).flatten(1))


def network() -> nn.Module:
    torch.manual_seed(3)
    return Small().eval()


def images(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def quantized(net: nn.Module, grid: Grid) -> GraphModule:
    with quiet_loggers(
        "torchao", "torch.utils._pytree", messages=(r"`isinstance\(treespec, LeafSpec\)` is deprecated",)
    ):
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        graph = torch.export.export(net, (images(1),)).module(check_guards=False)
        assert isinstance(graph, GraphModule)
        prepared = prepare_pt2e(graph, TARGET.quantizer(grid))
        with torch.no_grad():
            prepared(images(64))
        converted = convert_pt2e(prepared)
    assert isinstance(converted, GraphModule)
    return converted


def in_half(graph: GraphModule) -> GraphModule:
    """The graph with the constants a float16 file can hold: scales and biases rounded to float16."""
    for node in graph.graph.nodes:
        if "quantize_per_tensor" in str(node.target):
            node.args = (node.args[0], float(torch.tensor(node.args[1]).half()), *node.args[2:])
    graph.recompile()
    for name, tensor in [*graph.named_parameters(), *graph.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(tensor.data.half())
            assert torch.isfinite(tensor).all(), name
    return graph


def export(module: nn.Module, path: Path) -> Artifact:
    return TARGET.export(torch.export.export(module, (images(1),)), path / "net.mlpackage", USUAL)


def run(module: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        answer = module(batch)
    assert isinstance(answer, Tensor)
    return answer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphModule, Artifact]:
    graph = in_half(quantized(network(), Grid()))
    return graph, export(graph, tmp_path_factory.mktemp("int8"))


def test_the_target_says_what_it_is() -> None:
    assert (TARGET.name, TARGET.suffix, TARGET.extra) == ("coreml", ".mlpackage", "coreml")
    assert (TARGET.load is None) == (sys.platform != "darwin")
    assert TARGET.grids[0] == Grid(operators=COMMON_OPERATORS | GATES | PRODUCTS)
    assert {grid.weight_bits for grid in TARGET.grids} == {7, 8}


def test_a_float_network_is_written_in_float16(tmp_path: Path) -> None:
    net = network()
    artifact = export(net, tmp_path)
    assert artifact.precision == "float16"
    assert artifact.facts["compute_precision"] == "float16"
    assert artifact.facts["deployment_target"] == "iOS17"
    assert artifact.facts["specification_version"] == 8
    assert artifact.facts["operators"]["conv"] == 4
    assert "quantize_pairs" not in artifact.facts
    assert TARGET.reference is not None
    found, wanted = TARGET.reference(artifact.path)(images(300)), run(net, images(300))
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)
    assert not torch.equal(found, wanted), "float16 rounds"


def test_many_images_at_once_are_each_image_alone(written: tuple[GraphModule, Artifact], tmp_path: Path) -> None:
    assert TARGET.reference is not None
    for path in (written[1].path, export(network(), tmp_path).path):
        reference = TARGET.reference(path)
        alone = torch.cat([reference(image[None]) for image in images(203)])
        # Kernels may add in another order for another batch, which float16 may round to its neighbour.
        assert float((reference(images(203)) - alone).abs().max()) < 3e-3


def test_an_int8_network_holds_the_graphs_own_numbers(written: tuple[GraphModule, Artifact]) -> None:
    """Same constants, no float16 rounding between operators: the file is the graph."""
    graph, artifact = written
    found, wanted = Reference(read_program(artifact.path), Everything())(images(500)), run(graph, images(500))
    step = wanted.unique().diff().min()
    assert bool((found.argmax(1) == wanted.argmax(1)).all())
    assert float(((found - wanted).abs() > step / 2).float().mean()) < 1e-3, "a tie may fall the other way"
    assert float((found - wanted).abs().max()) < 1.01 * float(step)


@pytest.mark.parametrize(
    "grid", TARGET.grids, ids=lambda grid: f"{grid.weight_bits} bits, {grid.symmetric_activations}"
)
def test_an_int8_network_agrees_with_its_graph_in_float16(grid: Grid, tmp_path: Path) -> None:
    graph = quantized(network(), grid)
    artifact = export(graph, tmp_path)
    assert artifact.precision == "int8"
    assert TARGET.reference is not None
    found, wanted = TARGET.reference(artifact.path)(images(500)), run(graph, images(500))
    step = float(wanted.unique().diff().min())
    assert float((found - wanted).abs().max()) < 3.1 * step
    assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) > 0.97


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_kept_as_the_grids_integers(bits: int, tmp_path: Path) -> None:
    program = read_program(export(quantized(network(), Grid(weight_bits=bits)), tmp_path).path)
    weights = [o.arguments["quantized_data"] for o in program.operations if o.type == "constexpr_affine_dequantize"]
    assert len(weights) == 5
    for weight in weights:
        assert isinstance(weight, Tensor)
        assert weight.dtype is torch.int8
        assert int(weight.abs().max()) == 2 ** (bits - 1) - 1


def test_what_an_int8_file_says_of_itself(written: tuple[GraphModule, Artifact]) -> None:
    facts = written[1].facts
    assert facts["float_convolutions"] == 0
    assert facts["float_operators"] == {}
    assert facts["quantize_pairs"] == min(facts["operators"]["quantize"], facts["operators"]["dequantize"])


class PartlyInt8(nn.Module):
    """A quantized convolution, then one in float between sigmoid and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.float_conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        quantize, dequantize = (
            torch.ops.quantized_decomposed.quantize_per_tensor.default,
            torch.ops.quantized_decomposed.dequantize_per_tensor.default,
        )
        x = dequantize(quantize(x, 0.05, 3, -128, 127, torch.int8), 0.05, 3, -128, 127, torch.int8)
        x = torch.relu(nn.functional.max_pool2d(x, 2))
        x = self.float_conv(torch.sigmoid(self.conv(x)))
        return torch.softmax(x.flatten(1), 1)


def test_islands_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with quiet_loggers("torchao", "torch.utils._pytree"):
        import torchao.quantization.pt2e  # noqa: F401  registers quantized_decomposed
    artifact = export(PartlyInt8().eval(), tmp_path)
    names = [operation.type for operation in float_islands(read_program(artifact.path))]
    # Pooling reads int8 and relu is fused into it; both convolutions have float weights, and what follows is float.
    assert names == ["conv", "sigmoid", "conv", "softmax"]
    assert artifact.facts["float_convolutions"] == 2


def test_scales_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    graph = quantized(network(), Grid())
    with torch.no_grad():
        for name, tensor in graph.named_buffers():
            if "scale" in name:
                tensor[0] = 1e-6
    with pytest.raises(TargetError, match=r"float16's precise range"):
        export(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 12 * 12, 10)).train()
    with pytest.raises(TargetError, match="dropout"):
        export(net, tmp_path)


def test_overflow_is_seen(tmp_path: Path) -> None:
    """A value beyond 65,504 is infinite on the device, and so it is here."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with torch.no_grad():
        net[0].weight.fill_(3000.0)
    assert TARGET.reference is not None
    found = TARGET.reference(export(net.eval(), tmp_path).path)(torch.ones(1, *SHAPE))
    assert bool(torch.isinf(found).all())
