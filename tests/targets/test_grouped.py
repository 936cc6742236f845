"""Narrow groups of int8 convolutions side by side: the same numbers, bit for bit, and only where kernels want it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgewise import targets
from edgewise.targets import USUAL, Grid
from edgewise.targets._grouped import _lay_side_by_side, merge_narrow_groups
from edgewise.targets._int8 import Int8Quantizer

_aten = torch.ops.aten


def network(outputs: int, groups: int, inputs: int = 32, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    kernel = options.pop("kernel_size", 3)
    grouped = nn.Conv2d(inputs, outputs, kernel, groups=groups, **options)
    return nn.Sequential(nn.Conv2d(3, inputs, 1), grouped, nn.ReLU(), nn.Conv2d(outputs, 4, 1)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def quantize(model: nn.Module, images: Tensor, grid: Grid | None = None) -> ExportedProgram:
    graph = torch.export.export(model, (images[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(graph, Int8Quantizer(grid or Grid()))
    for image in images:
        prepared(image[None])
    return torch.export.export(convert_pt2e(prepared), (images[:1],))


def groups_of(program: ExportedProgram) -> list[int]:
    convolutions = [node for node in program.graph.nodes if str(node.target).startswith("aten.conv2d")]
    return [int(node.args[6]) for node in convolutions if len(node.args) > 6]


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        (network(32, 8), 8, 2),  # four outputs a group, four groups side by side
        (network(32, 16, bias=False), 16, 2),
        (network(64, 32), 32, 4),  # two outputs for each input channel
        (network(48, 12, inputs=24), 12, 3),
        (network(24, 3, inputs=12), 3, 1),  # 3 has no other divisor
        (network(12, 6, inputs=12), 6, 1),  # 12 outputs in all
        (network(32, 8, stride=2, padding=(1, 2), dilation=(2, 1)), 8, 2),
        (network(32, 8, padding="same"), 8, 2),
        (network(32, 8, kernel_size=(1, 5), padding=(0, 2)), 8, 2),
    ],
)
def test_narrow_groups_become_one_with_the_same_numbers(
    model: nn.Module, before: int, after: int, images: Tensor
) -> None:
    program = quantize(model, images)
    merged = merge_narrow_groups(program)
    assert [count for count in groups_of(program) if count > 1] == [before]
    assert [count for count in groups_of(merged) if count > 1] == [after] * (after > 1)
    with torch.no_grad():
        assert torch.equal(merged.module()(images[:1]), program.module()(images[:1]))


@pytest.mark.parametrize(
    "model",
    [network(32, 2), network(32, 32), network(32, 1)],
    ids=["wide groups", "depthwise", "one group"],
)
def test_others_stay(model: nn.Module, images: Tensor) -> None:
    program = quantize(model, images)
    assert merge_narrow_groups(program) is program


def test_float_networks_stay(images: Tensor) -> None:
    program = torch.export.export(network(32, 8), (images[:1],))
    assert merge_narrow_groups(program) is program


def test_the_given_program_is_not_changed(images: Tensor) -> None:
    program = quantize(network(32, 8), images)
    before = str(program.graph)
    merge_narrow_groups(program)
    assert str(program.graph) == before


def test_weights_by_hand() -> None:
    """Two inputs and outputs in two groups of one are the diagonal; four groups by twos are two diagonals."""
    four = torch.tensor([1, 2, 3, 4], dtype=torch.int8).view(4, 1, 1, 1)
    assert _lay_side_by_side(four[:2], 2, 2).flatten(1).tolist() == [[1, 0], [0, 2]]
    assert _lay_side_by_side(four, 4, 2).flatten(1).tolist() == [[1, 0], [0, 2], [3, 0], [0, 4]]
    assert _lay_side_by_side(four, 2, 2).flatten(1).tolist() == [[1, 0], [2, 0], [0, 3], [0, 4]]


@pytest.mark.parametrize("name", ["onnx", "xnnpack", "litert"])
def test_files_hold_the_wide_ones_and_answer_as_the_graph(name: str, images: Tensor, tmp_path: Path) -> None:
    try:
        target = targets.get(name)
    except targets.MissingBackend as error:
        pytest.skip(str(error))
    program = quantize(network(32, 8, padding=1), images, target.grids[0])
    artifact = target.export(program, tmp_path / f"net{target.suffix}", USUAL)
    assert artifact.undelegated == ()
    steps = [float(node.args[1]) for node in program.graph.nodes if ".quantize_per_tensor" in str(node.target)]
    assert target.load is not None
    module = program.module()
    with torch.no_grad():
        expected = torch.cat([module(image[None]) for image in images])
    apart = (target.load(artifact.path, 1)(images) - expected).abs() / steps[-1]
    assert apart.max() < 2.01 and apart.mean() < 0.1
    assert target.inside is not None
    inside = target.inside(artifact.path, program, images[:2])
    assert [count for count in groups_of(inside.program) if count > 1] == [2]
