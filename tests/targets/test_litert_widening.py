"""Integer operators that LiteRT's delegate does not take are computed in floats, and the file answers as the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

pytest.importorskip("litert_torch", reason="LiteRT's converter is not installed")
pytest.importorskip("ai_edge_litert", reason="LiteRT's runtime is not installed")

from edgewise.targets import USUAL, Artifact
from edgewise.targets._int8 import Int8Quantizer
from edgewise.targets.litert import TARGET, _flatbuffer, _lowering, _widening
from edgewise.targets.litert._inside import inside_values, step_of


class Around(nn.Module):
    """Convolutions on either side of an operator, [N, 3, 8, 8] -> [N, 4, 8, 8]."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.operator, self.second = nn.Conv2d(3, 4, 1), operator, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.operator(self.first(x)))


def multiply(x: Tensor) -> Tensor:
    """Products of values that depend on the image, of two heads; they are not centred, so that 0 is no middle."""
    heads = x.view(len(x), 2, 2, -1) + 1
    return (torch.softmax(heads @ heads.transpose(2, 3), -1) @ heads).view(x.shape)


SLOW: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "hard swish": (F.hardswish, "HARD_SWISH"),
    "size": (torch.abs, "ABS"),
    "mean of windows": (lambda x: F.avg_pool2d(x, (2, 1)), "AVERAGE_POOL_2D"),
    "gelu": (F.gelu, "GELU"),
    "product": (multiply, "BATCH_MATMUL"),
}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def write_program(name: str, images: Tensor) -> ExportedProgram:
    """The quantized network around an operator."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    graph = torch.export.export(Around(SLOW[name][0]).eval(), (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(graph, Int8Quantizer(TARGET.grids[0]))
    for image in images:
        prepared(image[None])
    quantized = convert_pt2e(prepared)
    return torch.export.export(quantized, (images[:1],))


def write(name: str, images: Tensor, folder: Path) -> tuple[Artifact, Tensor, float]:
    """The file, what the quantized graph answers, and the last step of it."""
    program = write_program(name, images)
    artifact = TARGET.export(program, folder / "net.tflite", USUAL)
    steps = [float(n.args[1]) for n in program.graph.nodes if ".quantize_per_tensor" in str(n.target)]
    module = program.module(check_guards=False)
    with torch.no_grad():
        return artifact, torch.cat([module(image[None]) for image in images]), steps[-1]


@pytest.mark.parametrize("name", SLOW)
def test_the_delegate_takes_the_whole_file_and_it_answers_as_the_graph(
    name: str, images: Tensor, tmp_path: Path
) -> None:
    artifact, expected, step = write(name, images, tmp_path)
    assert artifact.undelegated == () and artifact.facts["undelegated"] == {}
    assert SLOW[name][1] in artifact.facts["float_operators"]
    assert TARGET.load is not None
    steps = (TARGET.load(artifact.path, 1)(images) - expected).abs() / step
    assert steps.max() < 3.01 and steps.mean() < 0.3


@pytest.mark.parametrize("name", SLOW)
def test_each_value_within_is_the_node_s_that_it_is_named_after(name: str, images: Tensor, tmp_path: Path) -> None:
    """What was rounded before an operator in floats is not what the node before the rounding gave."""
    program = write_program(name, images)
    artifact = TARGET.export(program, tmp_path / "net.tflite", USUAL)
    inside = inside_values(artifact.path, _lowering.prepare_program(program), images[:2])
    wanted = values_of(inside.program, images[:2])
    assert len(inside.values) > 4
    for node, value in inside.values.items():
        step = step_of(next(one for one in inside.program.graph.nodes if one.name == node))
        room = 1.01 * step if step else 1e-4 * wanted[node].abs().max()
        if value.shape == wanted[node].shape:  # else it lies in an order of its own, as attention's factors do
            assert (value - wanted[node]).abs().max() <= room, node


def values_of(program: ExportedProgram, images: Tensor) -> dict[str, Tensor]:
    """Every node's value in PyTorch, under the program's names."""
    module = program.module(check_guards=False)
    kept: dict[str, list[Tensor]] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            kept.setdefault(n.name, []).append(value)
            return value

    with torch.no_grad():
        for image in images:
            Recorder(module).run(image[None])
    return {
        name: torch.cat(values) for name, values in kept.items() if isinstance(values[0], Tensor) and values[0].ndim
    }


@pytest.mark.parametrize("name", SLOW)
def test_left_in_integers_they_fall_out_of_the_delegate(
    name: str, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it otherwise in a later LiteRT, there would be nothing to widen."""
    monkeypatch.setattr(_lowering, "widen_slow_integers", lambda model: None)
    artifact, _, _ = write(name, images, tmp_path)
    assert SLOW[name][1] in artifact.facts["undelegated"]


def test_a_product_whose_second_factor_is_centred_stays_in_integers(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lowering, "widen_slow_integers", lambda model: None)
    artifact, _, _ = write("product", images, tmp_path)
    model = _flatbuffer.read_model(artifact.path.read_bytes(), artifact.path)
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if _flatbuffer.operator_name(model, operator) == "BATCH_MATMUL":
            factor = graph.tensors[operator.inputs[1]].quantization
            if factor is not None and factor.zeroPoint is not None:
                factor.zeroPoint = [0]
    before = [_flatbuffer.operator_name(model, operator) for operator in graph.operators]
    _widening.widen_slow_integers(model)
    assert [_flatbuffer.operator_name(model, operator) for operator in graph.operators] == before
