"""What does not depend on the image is computed once, and nothing else is."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise.targets.litert._constants import fold_constants


class Network(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self._function = nn.Parameter(torch.arange(6.0).view(1, 6)), function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x, self.weight)


def fold(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[GraphModule, list[str]]:
    """The folded graph, and the operators that are left in it."""
    module = torch.export.export(Network(function).eval(), (torch.zeros(2, 6),)).module(check_guards=False)
    assert isinstance(module, GraphModule)
    fold_constants(module)
    called = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return module, [name.split(".")[1] for name in called if "guard" not in name and "metadata" not in name]


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x, w: x + torch.ones_like(x) * torch.arange(6.0), ["add"]),
        (lambda x, w: x * (w.softmax(1) + 1), ["mul"]),
        (lambda x, w: x * torch.linspace(0, 1, 6).view(1, 6).expand(2, 6), ["mul"]),
        (lambda x, w: x * w.split(3, 1)[1].sum(), ["mul"]),
        (lambda x, w: x.relu() * w, ["relu", "mul"]),
    ],
)
def test_constants_are_computed(function: Callable[[Tensor, Tensor], Tensor], left: list[str]) -> None:
    module, found = fold(function)
    images = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    assert found == left
    assert torch.allclose(module(images), Network(function)(images))


def test_chance_is_none() -> None:
    assert fold(lambda x, w: x + torch.rand(6))[1] == ["rand", "add"]


def test_a_quantization_of_weights_stays() -> None:
    importlib.import_module("torchao.quantization.pt2e")  # it defines the operators
    pair = torch.ops.quantized_decomposed
    scale = (0.5, 0, -128, 127, torch.int8)
    function = lambda x, w: x * pair.dequantize_per_tensor(pair.quantize_per_tensor(w, *scale), *scale)  # noqa: E731
    assert fold(function)[1] == ["quantize_per_tensor", "dequantize_per_tensor", "mul"]
