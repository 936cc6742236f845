"""The LiteRT target: files that compute what the network computes, in integers where it is quantized, or are refused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

pytest.importorskip("litert_torch", reason="LiteRT's converter is not installed")
pytest.importorskip("ai_edge_litert", reason="LiteRT's runtime is not installed")

from edgewise.images.preprocess import Preprocess
from edgewise.images.wrapper import Wrapper
from edgewise.targets import USUAL, Artifact, Grid, Packaging, Sizes, TargetError, get
from edgewise.targets.litert import TARGET, _flatbuffer, _lowering, _runtime
from edgewise.verify.gates import Limits, on_coverage, on_covered_macs


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


class Between(nn.Module):
    """A convolution, what stands between, a convolution and a mean."""

    def __init__(self, between: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 4, 1)
        self._between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._between(self.first(x))).mean((2, 3))


def quantize(model: nn.Module, images: Tensor, float_nodes: frozenset[str] = frozenset(), bits: int = 7) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from edgewise.targets._int8 import Int8Quantizer

    graph = torch.export.export(model.eval(), (images[:1],)).module(check_guards=False)
    grid = dataclasses.replace(TARGET.grids[0], weight_bits=bits)
    prepared = prepare_pt2e(graph, Int8Quantizer(grid, float_nodes=float_nodes))
    for image in images:
        prepared(image[None])
    return convert_pt2e(prepared)


def program(model: nn.Module, image: Tensor) -> ExportedProgram:
    return torch.export.export(model, (image,))


def each(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(image[None]) for image in images])


def last_step(graph: GraphModule) -> float:
    return [float(n.args[1]) for n in graph.graph.nodes if ".quantize_per_tensor" in str(n.target)][-1]


def answers(artifact: Artifact, images: Tensor) -> Tensor:
    assert TARGET.load is not None
    return TARGET.load(artifact.path, 1)(images)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module, images: Tensor) -> GraphModule:
    return quantize(network, images)


@pytest.fixture(scope="module")
def written(graph: GraphModule, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    packaging = Packaging(labels=("ant", "ü"), metadata={"recipe": "r"})
    return TARGET.export(program(graph, images[:1]), tmp_path_factory.mktemp("litert") / "net.tflite", packaging)


@pytest.fixture
def ready(images: Tensor) -> ExportedProgram:
    """A small quantized network, for what is planted into it."""
    torch.manual_seed(0)
    return program(quantize(Between(torch.relu), images[:4]), images[:1])


def test_the_whole_quantized_network_is_integers_that_xnnpack_takes(written: Artifact) -> None:
    assert written.precision == "int8" and written.undelegated == ()
    facts = written.facts
    assert facts["float_operators"] == {} and facts["undelegated"] == {}
    # Four convolutions of the network, and its subsampled shortcut written as one; a quantization at either end.
    operators = facts["operators"]
    assert (operators["CONV_2D"], operators["DEPTHWISE_CONV_2D"], operators["FULLY_CONNECTED"]) == (4, 1, 1)
    assert (operators["QUANTIZE"], operators["DEQUANTIZE"]) == (1, 1)
    assert facts["coverage"]["undelegated_macs"] == 0


def test_an_int8_file_answers_as_the_quantized_graph(written: Artifact, graph: GraphModule, images: Tensor) -> None:
    found, expected = answers(written, images), each(graph, images)
    assert found.dtype == torch.float32 and found.shape == (24, 6)
    steps = (found - expected).abs() / last_step(graph)
    assert steps.max() < 2.01 and steps.mean() < 0.3
    assert len({tuple(row) for row in found.tolist()}) > 1


def test_the_weights_in_the_file_are_the_networks_integers(written: Artifact, graph: GraphModule) -> None:
    """Seven bits stay seven bits: what one training decided serves this file as every other."""
    model = _flatbuffer.read_model(written.path.read_bytes(), written.path)
    tensors = [
        tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.type == 9 and model.buffers[tensor.buffer].data is not None
    ]
    stored = sorted(
        tuple(sorted(torch.frombuffer(bytearray(bytes(model.buffers[t.buffer].data)), dtype=torch.int8).tolist()))
        for t in tensors
    )
    weights = [value for value in graph.state_dict().values() if value.dtype == torch.int8 and value.dim() > 1]
    own = sorted(tuple(sorted(weight.flatten().tolist())) for weight in weights)
    assert set(own) <= set(stored) and max(abs(number) for values in own for number in values) == 63


@pytest.mark.parametrize(
    ("precision", "tolerance", "share"), [("float32", 1e-5, 1), ("float16", 2e-3, 0.7), ("int8-weights", 0.02, 0.55)]
)
def test_a_float_network_in_every_precision(
    network: nn.Module, images: Tensor, tmp_path: Path, precision: Any, tolerance: float, share: float
) -> None:
    artifact = TARGET.export(program(network, images[:1]), tmp_path / "net.tflite", Packaging(precision=precision))
    assert (artifact.precision, artifact.undelegated) == (precision, ())
    found = answers(artifact, images)
    torch.testing.assert_close(found, each(network, images), atol=tolerance, rtol=tolerance)
    assert (precision == "float32") or not torch.equal(found, each(network, images))
    numbers = sum(parameter.numel() for parameter in network.parameters())
    assert artifact.path.stat().st_size < 4 * share * numbers + 9_000


def test_a_file_that_is_silently_float_is_refused_by_the_coverage_gate(
    ready: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the converter makes of a quantized program where it is not told to look for quantizations."""
    import litert_torch

    convert = litert_torch.convert
    monkeypatch.setattr(litert_torch, "convert", lambda module, example, quant_config: convert(module, example))
    monkeypatch.setattr(_lowering, "_strictly", contextlib.nullcontext)
    artifact = TARGET.export(ready, tmp_path / "net.tflite", USUAL)
    assert artifact.precision == "int8" and artifact.undelegated == ("CONV_2D", "CONV_2D")
    assert artifact.facts["coverage"]["undelegated_share"] == 1
    finding = on_coverage(artifact.undelegated, Limits(max_undelegated=TARGET.max_undelegated))
    assert finding.verdict == "fail" and "CONV_2D" in finding.reason


def test_integer_weights_are_refused_by_the_converter_itself(
    ready: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lowering, "rounded_in_the_graph", lambda program, every_constant: program)
    with pytest.raises(
        TargetError, match="LiteRT's converter cannot write the network: Failed to run converter passes"
    ):
        TARGET.export(ready, tmp_path / "net.tflite", USUAL)
    assert not (tmp_path / "net.tflite").exists()


def test_a_planted_float_island_is_refused_by_the_coverage_gate(
    ready: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One convolution of two whose weights reach the converter without their quantization."""
    rounded = _lowering.rounded_in_the_graph

    def all_but_one(program: ExportedProgram, every_constant: bool) -> ExportedProgram:
        program = rounded(program, every_constant=every_constant)
        node = next(node for node in program.graph.nodes if str(node.target).endswith(".quantize_per_channel.default"))
        (dequantize,) = node.users
        dequantize.replace_all_uses_with(node.args[0])
        program.graph_module.graph.erase_node(dequantize)
        program.graph_module.graph.erase_node(node)
        program.graph_module.recompile()
        return program

    limits = Limits(max_undelegated=TARGET.max_undelegated)
    whole = TARGET.export(ready, tmp_path / "whole.tflite", USUAL)
    assert on_coverage(whole.undelegated, limits).verdict == "pass"
    counted = _lowering._count_float_products(_lowering.prepare_program(ready))
    monkeypatch.setattr(_lowering, "rounded_in_the_graph", all_but_one)
    monkeypatch.setattr(_lowering, "_count_float_products", lambda program: counted)  # of the network as it was given
    planted = TARGET.export(ready, tmp_path / "planted.tflite", USUAL)
    assert planted.undelegated == ("CONV_2D",) and 0 < planted.facts["coverage"]["undelegated_share"] < 1
    assert on_coverage(planted.undelegated, limits).verdict == "fail"


def test_a_layer_that_the_recipe_left_in_float_is_its_share_and_no_loss(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    graph = quantize(network, images[:4], float_nodes=frozenset({"conv2d_3"}))
    artifact = TARGET.export(program(graph, images[:1]), tmp_path / "net.tflite", USUAL)
    assert artifact.undelegated == () and artifact.facts["float_operators"] == {"CONV_2D": 1}
    assert on_covered_macs(artifact.facts, Limits(max_undelegated_macs=0.0)).verdict == "fail"
    torch.testing.assert_close(answers(artifact, images), each(graph, images), atol=3 * last_step(graph), rtol=0)


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "product": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "ceiling": lambda x: F.max_pool2d(x.relu(), 3, 2, ceil_mode=True),
    "grid": lambda x: F.adaptive_avg_pool2d(x, 4),
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
    "softmax of channels": lambda x: x.softmax(1),
    "one channel eight times": lambda x: x[:, :1].expand(-1, 8, -1, -1),
    "repeated": lambda x: x[:, :4].repeat(1, 2, 1, 1),
    "twice one channel": lambda x: (x[:, :1] + x[:, :1]) * x,
    "direction": lambda x: F.normalize(x, dim=1),
    "direction, by hand": lambda x: x / x.pow(2).sum(1, keepdim=True).sqrt(),
    "share of the sizes": lambda x: F.normalize(x, p=1.0, dim=1),
    "hard shrink": lambda x: F.hardshrink(x, 0.2),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "filled": lambda x: x.masked_fill(x < 0.1, -0.1),
    "largest of each window": lambda x: F.adaptive_max_pool2d(x, (4, 8)),
    "tokens": lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).softmax(-1).matmul(x.flatten(2)).view(x.shape),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_every_kind_of_operator_answers_as_the_quantized_graph(name: str, images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = quantize(Between(BETWEEN[name]), images[:6])
    artifact = TARGET.export(program(graph, images[:1]), tmp_path / "net.tflite", USUAL)
    assert artifact.undelegated == (), artifact.facts
    steps = (answers(artifact, images[:12]) - each(graph, images[:12])).abs() / last_step(graph)
    assert steps.max() < 3.01 and steps.mean() < 0.6, (steps.max(), steps.mean())


def test_a_transposed_convolution_stays_in_float_and_is_the_recipes_own(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(4, 2, 28), nn.Flatten()
    graph = quantize(nn.Sequential(*layers), images[:4])
    artifact = TARGET.export(program(graph, images[:1]), tmp_path / "net.tflite", USUAL)
    assert artifact.undelegated == () and artifact.facts["float_operators"]["TRANSPOSE_CONV"] == 1
    # By hand: 14×14 positions of its input, each used with every weight of its channel.
    assert artifact.facts["coverage"]["by_operator"]["TRANSPOSE_CONV"]["macs"] == 14 * 14 * 8 * 4 * 4
    steps = (answers(artifact, images) - each(graph, images)).abs() / last_step(graph)
    assert steps.max() < 3.01


def test_a_file_is_fed_bytes_and_normalises_them(graph: GraphModule, tmp_path: Path) -> None:
    wrapper = Wrapper(preprocess=Preprocess(fed="bytes", softmax=True), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    wrapped = wrapper.around(graph)
    pixels = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    artifact = TARGET.export(program(wrapped, pixels[:1]), tmp_path / "net.tflite", USUAL)
    runner = _runtime.load(artifact.path, 1)
    assert runner.takes == ((1, 16, 16, 3), "uint8") and artifact.undelegated == ()
    found = runner(pixels)
    torch.testing.assert_close(found, each(wrapped, pixels), atol=0.02, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(5))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_file_is_fed_floats_whose_channels_come_last(
    kind: str, network: nn.Module, graph: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    """As Android's code has them: the runtime's own order, so that nothing is turned on the way in."""
    wrapper = Wrapper(preprocess=Preprocess(fed="channels-last"), mean=(0.5,), std=(0.5,))
    inner = graph if kind == "int8" else network
    turned = images.permute(0, 2, 3, 1).contiguous()
    artifact = TARGET.export(program(wrapper.around(inner), turned[:1]), tmp_path / "net.tflite", USUAL)
    runner = _runtime.load(artifact.path, 1)
    assert runner.takes == ((1, 16, 16, 3), "float") and artifact.undelegated == ()
    plain = TARGET.export(program(inner, images[:1]), tmp_path / "plain.tflite", USUAL)
    assert artifact.facts["operators"].get("TRANSPOSE", 0) == plain.facts["operators"].get("TRANSPOSE", 0) - 1
    torch.testing.assert_close(runner(turned), answers(plain, images), atol=1e-5, rtol=0)


def test_class_names_and_notes_lie_in_the_file(written: Artifact) -> None:
    model = _flatbuffer.read_model(written.path.read_bytes(), written.path)
    assert _flatbuffer.read_metadata(model) == {"labels": '["ant", "ü"]', "recipe": "r"}
    assert TARGET.tensors is not None and TARGET.tensors(written.path) == ("image", "answer")
    assert str(Path(__file__).parent).encode() not in written.path.read_bytes()


def test_the_bytes_depend_on_the_program_alone(ready: ExportedProgram, tmp_path: Path) -> None:
    first, second = (TARGET.export(ready, tmp_path / name / "net.tflite", USUAL).path.read_bytes() for name in "ab")
    assert first == second


def test_operators_that_xnnpack_leaves_are_named(images: Tensor, tmp_path: Path) -> None:
    artifact = TARGET.export(program(Between(lambda x: x.cumsum(2)).eval(), images[:1]), tmp_path / "net.tflite", USUAL)
    assert artifact.facts["undelegated"] == {"CUMSUM": 1}


def test_threads_are_the_interpreters(written: Artifact, images: Tensor) -> None:
    one, two = (_runtime.load(written.path, threads)(images) for threads in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["missing", "empty", "another", "cut", "signature"])
def test_what_is_no_file_of_its_own_is_refused(written: Artifact, tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / "net.tflite", written.path.read_bytes()
    if kind != "missing":
        path.write_bytes(
            {"empty": b"", "another": b"x" * 4096, "cut": content[:200], "signature": b"\0" * 8 + content[8:]}[kind]
        )
    with pytest.raises(TargetError, match="wanted a LiteRT model"):
        _runtime.load(path, 1)


@pytest.mark.parametrize("length", [8, 30, 100, 4000])
def test_a_cut_file_is_refused_by_the_reader(written: Artifact, length: int) -> None:
    with pytest.raises(TargetError, match="no whole LiteRT model"):
        _flatbuffer.read_model(written.path.read_bytes()[:length], "it")


def test_several_image_sizes_are_refused(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    several = Packaging(sizes=Sizes(choices=((16, 16), (24, 24))))
    with pytest.raises(TargetError, match="writes no file for enumerated image sizes, only fixed"):
        TARGET.export(program(network, images[:1]), tmp_path / "net.tflite", several)


def test_it_trains_on_the_grid_that_onnx_trains_on() -> None:
    from edgewise.targets import common_grid

    try:
        onnx = get("onnx")
    except ImportError as missing:
        pytest.skip(str(missing))
    shared = common_grid([TARGET, onnx])
    assert shared == Grid(weight_bits=7, operators=onnx.grids[0].operators - {"conv_transpose"})
