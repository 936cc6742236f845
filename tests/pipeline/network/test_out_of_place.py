"""Operators that change their input leave it where that changes nothing, and stay where others would miss it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise import targets
from edgewise.network.captured import Prepare, export_graph
from edgewise.stages.quantize import _learn_ranges

_aten = torch.ops.aten


class Changes(nn.Module):
    """[N, 3, 8, 8] -> [N, 4]: a ReLU and a sum in place, and a change of half of the channels that the whole has, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).mul_(0.5)
        y = torch.stack([self.second(x), x]).max(0).values
        y += x
        y.relu_()
        halves = y * 1.5
        halves[:, :4].mul_(2.0)
        return self.head(halves.mean((2, 3)))


def graph_of(network: nn.Module) -> GraphModule:
    return export_graph(network, (3, 8, 8), None)


def test_only_the_part_that_the_whole_sees_is_changed_in_place() -> None:
    torch.manual_seed(0)
    network, images = Changes().eval(), torch.randn(5, 3, 8, 8)
    graph = graph_of(network)
    called = [node.target for node in graph.graph.nodes]
    assert {_aten.mul.Tensor, _aten.add.Tensor, _aten.relu.default, _aten.mul_.Tensor} <= {*called}
    assert not {_aten.add_.Tensor, _aten.relu_.default} & {*called}
    assert torch.equal(graph(images), network(images))


def test_ranges_are_learned_behind_what_was_changed_in_place() -> None:
    torch.manual_seed(0)
    graph = Prepare(targets.Grid(weight_bits=7).to_json(), (3, 8, 8)).capture(Changes())
    graph(torch.randn(4, 3, 8, 8))
    _learn_ranges(graph)
    graph(torch.randn(4, 3, 8, 8)).square().mean().backward()
    assert graph.get_parameter("first.weight").grad is not None
