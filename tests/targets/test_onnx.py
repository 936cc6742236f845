"""The ONNX Runtime target: every convolution fuses, and the file computes what the quantized graph computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx import numpy_helper  # noqa: E402

from edgewise.targets import Artifact, Grid, TargetError  # noqa: E402
from edgewise.targets import onnx as targets_onnx  # noqa: E402
from edgewise.targets.onnx import _lowering as target  # noqa: E402

GRID = Grid(weight_bits=7)


class Mixed(nn.Module):
    """Plain, depthwise and pointwise convolutions, two kinds of shortcut, concatenation, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu6(self.pointwise(F.relu6(self.depthwise(x)))) + x
        y = torch.cat([F.max_pool2d(y, 3, 1, 1), x], 1)
        z = F.relu(self.down(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.fc(self.drop(z.mean((2, 3), keepdim=True).flatten(1)))


class Body(nn.Module):
    def __init__(self, body: Callable[[nn.ModuleDict, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self._body = body

    def forward(self, x: Tensor) -> Tensor:
        return self._body(self.layers, x)


def quantize(
    model: nn.Module, images: Tensor, float_nodes: frozenset[str] = frozenset(), grid: Grid = GRID
) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from edgewise.targets._int8 import Int8Quantizer

    graph = torch.export.export(model.eval(), (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(graph, Int8Quantizer(grid, float_nodes=float_nodes))
    for image in images:
        prepared(image[None])
    return convert_pt2e(prepared)


def program(model: nn.Module, images: Tensor) -> ExportedProgram:
    return torch.export.export(model, (images,))


def each(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(image[None]) for image in images])


def last_step(graph: GraphModule) -> float:
    steps = [node.args[1] for node in graph.graph.nodes if str(node.target).endswith(".quantize_per_tensor.default")]
    return float(steps[-1])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph(images: Tensor) -> GraphModule:
    torch.manual_seed(0)
    return quantize(Mixed(), images[:16])


@pytest.fixture(scope="module")
def written(graph: GraphModule, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return target.export(program(graph, images[:1]), tmp_path_factory.mktemp("int8") / "net.onnx")


def test_every_convolution_and_the_classifier_fuse(written: Artifact) -> None:
    operators = target.optimised_operators(written.path)
    assert (operators["QLinearConv"], operators["QGemm"], operators["QLinearAdd"]) == (4, 1, 2)
    assert operators["QLinearConcat"] == operators["QLinearGlobalAveragePool"] == 1
    assert written.undelegated == () and written.facts["fused"] == 5 and written.facts["unfused"] == 0


def test_integers_run_from_the_input_to_the_output(written: Artifact) -> None:
    assert written.precision == "int8"
    assert (written.facts["quantize"], written.facts["dequantize"]) == (1, 1)


def test_the_file_computes_what_the_quantized_graph_computes(
    written: Artifact, graph: GraphModule, images: Tensor
) -> None:
    expected, found = each(graph, images), targets_onnx.load(written.path, 1)(images)
    assert found.dtype == torch.float32 and found.shape == (24, 6)
    steps = (found - expected).abs() / last_step(graph)
    assert steps.max() < 2.01 and steps.mean() < 0.25
    margin = expected.topk(2).values
    clear = margin[:, 0] - margin[:, 1] > 2.01 * last_step(graph)
    assert clear.sum() > 5 and torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def test_two_threads_give_the_same_numbers(written: Artifact, images: Tensor) -> None:
    assert torch.equal(targets_onnx.load(written.path, 2)(images), targets_onnx.load(written.path, 1)(images))


def test_activations_are_uint8_weights_seven_bits_and_biases_int32(written: Artifact) -> None:
    model = onnx.load(written.path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kinds = Counter()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            kinds[node.op_type, zero_point.dtype.name, zero_point.ndim] += 1
    assert set(kinds) == {
        ("QuantizeLinear", "uint8", 0),
        ("DequantizeLinear", "uint8", 0),
        ("DequantizeLinear", "int8", 1),
        ("DequantizeLinear", "int32", 1),
    }
    assert kinds["DequantizeLinear", "int8", 1] == 5 and kinds["DequantizeLinear", "int32", 1] == 4
    weights = [array for array in constants.values() if array.dtype.name == "int8" and array.ndim > 1]
    assert {int(abs(array).max()) for array in weights} == {63}


def test_each_reader_has_a_dequantization_of_its_own(written: Artifact) -> None:
    model = onnx.load(written.path)
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    reads = Counter(name for node in model.graph.node for name in node.input if name in dequantized)
    assert reads and max(reads.values()) == 1


def test_the_bias_is_rounded_to_the_product_of_the_scales(tmp_path: Path) -> None:
    net = Body(lambda layers, x: layers["conv"](x), conv=nn.Conv2d(1, 2, 1))
    net.layers["conv"].weight.data = torch.tensor([63.0, -126.0]).reshape(2, 1, 1, 1)  # scales 1 and 2
    net.layers["conv"].bias.data = torch.tensor([10.0, -7.0])
    x = torch.linspace(-127.5, 127.5, 64).reshape(1, 1, 8, 8)
    graph = quantize(net, x)
    path = target.export(program(graph, x), tmp_path / "net.onnx").path
    of_input = next(n.args[1] for n in graph.graph.nodes if str(n.target).endswith(".quantize_per_tensor.default"))
    biases = [
        numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT32
    ]
    assert [round(10 / of_input), round(-7 / (2 * of_input))] in [bias.tolist() for bias in biases]


def test_a_bias_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    net = Body(lambda layers, x: layers["conv"](x), conv=nn.Conv2d(1, 1, 1))
    net.layers["conv"].weight.data.fill_(1e-9)
    net.layers["conv"].bias.data.fill_(100.0)
    x = torch.full((1, 1, 4, 4), 1e-6)
    with pytest.raises(TargetError, match=r"the bias of node_conv2d does not fit 32 bits.*leave this layer in float"):
        target.export(program(quantize(net, x), x), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_narrower_than_the_grid_is_kept(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    net = Body(lambda layers, x: (y := layers["conv"](x)).clamp(-0.1, 0.2) + y, conv=nn.Conv2d(3, 4, 3))
    graph = quantize(net, images[:4])
    path = target.export(program(graph, images[:1]), tmp_path / "net.onnx").path
    assert "Clip" in {node.op_type for node in onnx.load(path).graph.node}
    found = targets_onnx.load(path, 1)(images[:4])
    assert (found - each(graph, images[:4])).abs().max() < 1.01 * last_step(graph)


def test_a_convolution_left_in_float_is_named(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    # With the addition quantized, ONNX Runtime would see a rounded output and round the weights by itself.
    graph = quantize(Mixed(), images[:4], frozenset({"conv2d_2", "add"}))
    artifact = target.export(program(graph, images[:1]), tmp_path / "net.onnx")
    assert len(artifact.undelegated) == 1 and "conv2d_2" in artifact.undelegated[0]
    assert artifact.facts["fused"] == 4 and artifact.facts["unfused"] == 1


def test_a_float_network_stays_float(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    artifact = target.export(program(model, images[:1]), tmp_path / "net.onnx")
    assert artifact.precision == "float32" and artifact.undelegated == () and artifact.facts["fused"] == 0
    assert torch.allclose(targets_onnx.load(artifact.path, 1)(images), model(images), atol=1e-5)


def test_a_file_of_a_larger_batch_runs_whole_batches(tmp_path: Path, images: Tensor) -> None:
    model = Mixed().eval()
    path = target.export(program(model, images[:4]), tmp_path / "net.onnx").path
    assert torch.allclose(targets_onnx.load(path, 1)(images[:8]), model(images[:8]), atol=1e-5)


def test_the_same_program_gives_the_same_bytes_and_no_traces_of_this_machine(
    written: Artifact, graph: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    again = target.export(program(graph, images[:1]), tmp_path / "again.onnx")
    held = written.path.read_bytes()
    assert again.path.read_bytes() == held
    for trace in (b"site-packages", b".py", str(Path.cwd()).encode(), str(tmp_path).encode(), b"stack_trace"):
        assert trace not in held
    model = onnx.load(written.path)
    assert model.producer_name == "edgewise" and [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    onnx.checker.check_model(model, full_check=True)


def test_large_weights_go_to_a_file_beside_the_model(
    written: Artifact, graph: GraphModule, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.targets.onnx._graph.EXTERNAL_ABOVE", 0)
    path = target.export(program(graph, images[:1]), tmp_path / "net.onnx").path
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert torch.equal(targets_onnx.load(path, 1)(images), targets_onnx.load(written.path, 1)(images))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(written: Artifact, tmp_path: Path, share: float) -> None:
    held = written.path.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(held[: int(share * len(held))])
    with pytest.raises(TargetError, match=r"wanted an ONNX model at .*cut.onnx, found .* bytes .*export it again"):
        targets_onnx.load(cut, 1)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="found no such file"):
        targets_onnx.load(tmp_path / "none.onnx", 1)


def test_a_failed_write_leaves_the_old_file(
    graph: GraphModule, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        target.export(program(graph, images[:1]), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_active_dropout_is_refused(tmp_path: Path, images: Tensor) -> None:
    captured = torch.export.export(Mixed().train(), (images[:1],))
    with pytest.raises(TargetError, match=r"found the active dropout dropout \(p=0.5\); call eval"):
        target.export(captured, tmp_path / "net.onnx")


def test_weights_have_seven_bits_here() -> None:
    assert [grid.weight_bits for grid in targets_onnx.TARGET.grids] == [7]
    assert targets_onnx.TARGET.quantizer(GRID, qat=True).qat


def hard(layers: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.hardswish(layers["stem"](x))
    gate = F.hardsigmoid(layers["up"](F.relu(layers["down"](x.mean((2, 3), keepdim=True)))))
    return layers["last"](F.silu(x * gate)).flatten(1)


def test_gates_run_in_integers(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    sizes = {"stem": (3, 8), "down": (8, 4), "up": (4, 8), "last": (8, 2)}
    net = Body(hard, **{name: nn.Conv2d(*size, 1) for name, size in sizes.items()})
    net.layers["stem"].weight.data *= 8  # both ends of the clips are reached
    net.layers["up"].weight.data *= 40
    graph = quantize(net, images[:8], grid=targets_onnx.TARGET.grids[0])
    artifact = target.export(program(graph, images[:1]), tmp_path / "net.onnx")
    operators = artifact.facts["operators"]
    assert artifact.facts["float_operators"] == {} and operators["QLinearConv"] == 4
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (1, 1)
    assert (operators["QLinearAdd"], operators["QLinearMul"], operators["QLinearSigmoid"]) == (2, 3, 1)
    found, expected = targets_onnx.load(artifact.path, 1)(images), each(graph, images)
    steps = (found - expected).abs() / last_step(graph)
    assert steps.mean() < 0.3 and steps.max() <= 3.01
    assert "hardswish" in {value for node in onnx.load(artifact.path).graph.node for value in node.output}


def test_islands_of_float_are_named(tmp_path: Path, images: Tensor) -> None:
    net = Body(lambda layers, x: layers["b"](F.gelu(layers["a"](x))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    artifact = target.export(program(quantize(net, images[:2]), images[:1]), tmp_path / "net.onnx")
    assert artifact.facts["float_operators"] == {"Gelu": 1} and artifact.facts["fused"] == 2
