"""Subsampling as a convolution: the same numbers, bit for bit, and only where it is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgewise.targets import Grid
from edgewise.targets._int8 import Int8Quantizer
from edgewise.targets._rewrite import HARD_SIGMOID, rewrite_program
from edgewise.targets._subsample import subsampling_as_convolution


class Shortcut(nn.Module):
    def __init__(self, shortcut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self._shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self._shortcut(F.relu(self.conv(x)))


SUBSAMPLINGS: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "every second pixel": (lambda x: x[:, :, ::2, ::2], [6, 1, 1, 1]),
    "every third pixel": (lambda x: x[:, :, ::3, ::3], [6, 1, 1, 1]),
    "padded": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), [9, 6, 1, 1]),
    "padded at one side": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1)), [7, 6, 1, 1]),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "an offset": lambda x: x[:, :, 1::2, 1::2],
    "two steps": lambda x: x[:, :, ::2, ::3],
    "one axis": lambda x: x[:, :, ::2],
    "an end": lambda x: x[:, :, :4:2, :4:2],
    "channels": lambda x: x[:, ::2],
}


def captured(model: nn.Module, x: Tensor, quantized: bool) -> ExportedProgram:
    if not quantized:
        return torch.export.export(model, (x,))
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(check_guards=False), Int8Quantizer(Grid()))
    prepared(x)
    return torch.export.export(convert_pt2e(prepared), (x,))


def operators(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", SUBSAMPLINGS)
def test_a_subsampling_becomes_one_convolution_with_the_same_numbers(name: str, quantized: bool) -> None:
    torch.manual_seed(0)
    shortcut, kernel = SUBSAMPLINGS[name]
    x = torch.randn(1, 3, 9, 8)
    before = captured(Shortcut(shortcut).eval(), x, quantized)
    after = subsampling_as_convolution(before)
    assert operators(after).count("aten.conv2d.default") == 2
    assert not {"aten.slice.Tensor", "aten.pad.default"} & set(operators(after))
    assert kernel in [list(value.shape) for value in after.state_dict.values()]
    assert torch.equal(after.module()(x), before.module()(x))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_other_slices_are_left_alone(name: str, quantized: bool) -> None:
    program = captured(Shortcut(OTHERS[name]).eval(), torch.randn(1, 3, 9, 8), quantized)
    assert subsampling_as_convolution(program) is program


def test_padding_of_pixels_or_with_ones_stays_behind_the_convolution() -> None:
    for padding in (lambda x: F.pad(x, (1, 1)), lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0)):
        x = torch.randn(1, 3, 8, 8)
        before = captured(Shortcut(lambda y, pad=padding: pad(y[:, :, ::2, ::2])).eval(), x, False)
        after = subsampling_as_convolution(before)
        assert operators(after).count("aten.pad.default") == 1 and "aten.slice.Tensor" not in operators(after)
        assert torch.equal(after.module()(x), before.module()(x))


def test_the_given_program_is_not_changed() -> None:
    program = captured(Shortcut(SUBSAMPLINGS["padded"][0]).eval(), torch.randn(1, 3, 8, 8), True)
    before = str(program.graph)
    subsampling_as_convolution(program)
    assert str(program.graph) == before


@pytest.mark.parametrize("name", ["x", "input", "object", "type"])
def test_what_the_image_is_called_in_the_network_does_not_matter(name: str) -> None:
    """A copied graph renames an input that has a built-in's name; hard sigmoid is written otherwise in a copy."""
    scope: dict[str, Callable[..., Tensor]] = {}
    exec(f"def forward(self, {name}): return self.gate(self.conv({name}))[:, :, ::2, ::2]", scope)
    network = type("Named", (nn.Module,), {"forward": scope["forward"]})()
    network.conv, network.gate = nn.Conv2d(3, 6, 1), nn.Hardsigmoid()
    x = torch.randn(1, 3, 8, 8)
    before = torch.export.export(network.eval(), (x,))
    after = subsampling_as_convolution(rewrite_program(before, HARD_SIGMOID))
    assert operators(after).count("aten.conv2d.default") == 2
    assert torch.allclose(after.module()(x), before.module()(x), atol=1e-6)
