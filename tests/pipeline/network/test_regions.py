"""Regions with gradients or mixed precision switched are part of the graph around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise import targets
from edgewise.network.captured import Prepare, export_graph
from edgewise.network.regions import export_plain

_aten = torch.ops.aten


class Switched(nn.Module):
    """A stem without gradients, a part in float32 whatever is around it, and both within each other; [N, 3, 8, 8] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        self.register_buffer("shift", torch.linspace(-1, 1, 8).view(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
            low, high = x.split(4, 1)
            with torch.autocast("cpu", enabled=False):
                x = torch.cat([high, low], 1) * self.shift
        with torch.autocast("cpu", enabled=False):
            x = self.body(x.float()).relu()
        with torch.enable_grad():
            return self.head(x.mean((2, 3)))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Switched().eval()


def test_the_graph_is_one_and_answers_as_the_network(network: nn.Module) -> None:
    graph = export_graph(network, (3, 8, 8), None)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count(_aten.conv2d.default) == 2 and not any("wrap_with" in str(target) for target in called)
    assert not any(node.op == "call_module" for node in graph.graph.nodes) and not list(graph.children())[3:]
    images = torch.randn(5, 3, 8, 8)
    assert torch.equal(graph(images), network(images))
    assert graph(images).requires_grad


def test_the_layers_in_them_are_quantized_and_train(network: nn.Module) -> None:
    graph = Prepare(targets.Grid(weight_bits=7).to_json(), (3, 8, 8)).capture(network)
    quantized = {
        str(node.args[0].target)
        for node in graph.graph.nodes
        if node.op == "call_module" and node.args[0].op == "get_attr"
    }
    assert {"stem.weight", "body.weight", "head.weight"} <= quantized
    graph(torch.randn(4, 3, 8, 8)).square().mean().backward()
    assert graph.get_parameter("stem.weight").grad is not None


@pytest.mark.parametrize("sides", [None, ({2: torch.export.Dim("height", min=4, max=16)},)], ids=["fixed", "open"])
def test_an_exported_program_has_none(network: nn.Module, sides: tuple[Any, ...] | None) -> None:
    program = export_plain(network, torch.zeros(1, 3, 8, 8), sides)
    called = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [node.target for node in called].count(_aten.conv2d.default) == 2
    assert not any("wrap_with" in str(node.target) for node in called)
    assert {"stem.weight", "body.weight", "head.weight"} <= program.state_dict.keys()
    for height in (8,) if sides is None else (4, 8, 13):
        images = torch.randn(1, 3, height, 8)
        assert torch.equal(program.module(check_guards=False)(images), network(images))
