"""Trained ranges find their place in a graph that was captured for other image sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgewise import targets
from edgewise.models._layers import CeilMaxPool
from edgewise.network import captured
from edgewise.network.captured import Prepare, carry_over
from edgewise.stages import quantize
from edgewise.targets import Sizes

SIZES = Sizes(choices=((8, 8), (6, 6), (11, 11)), ranged=True)


class Rounding(nn.Module):
    """Poolings that round up: at a fixed size they pad first, with open sides they say so in one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1), nn.Linear(6, 4)
        self.pool = CeilMaxPool(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(x).relu())
        x = self.pool((self.second(x) + x.mean(1, keepdim=True)).relu())
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def prepared(sizes: Sizes | None, float_layers: tuple[str, ...] = ()) -> GraphModule:
    torch.manual_seed(0)
    grid = targets.Grid(weight_bits=7).to_json()
    return Prepare(grid, (3, 8, 8), float_layers).capture(Rounding().eval(), 1, sizes)


@torch.no_grad()
def trained() -> GraphModule:
    graph = prepared(None)
    for image in torch.randn(8, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1)):
        graph(image)
    quantize.freeze_ranges(graph)
    for parameter in graph.parameters():
        parameter.mul_(1.25)
    return graph


@torch.no_grad()
def test_the_same_function_at_the_trained_size_and_a_function_at_another() -> None:
    graph, opened = trained(), prepared(SIZES)
    image = torch.randn(1, 3, 8, 8)
    wanted = graph(image)
    assert sum("pad" in node.name for node in graph.graph.nodes) > sum("pad" in n.name for n in opened.graph.nodes)
    assert not torch.equal(opened(image), wanted)
    found = carry_over(graph, opened)
    assert torch.equal(found(image), wanted)
    assert torch.equal(captured.convert(found)(image), captured.convert(graph)(image))
    assert found(torch.randn(1, 3, 11, 7)).shape == (1, 4)


def test_what_was_never_observed_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"quantizes .*'first\.weight'.*, whose ranges were never trained"):
        carry_over(prepared(None, ("first",)), prepared(SIZES))


class Converts(nn.Module):
    """Says of what type and in what order in memory its values are, as code for mixed precision does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x.to(memory_format=torch.channels_last)).relu()
        return self.head(features.to(x.dtype).mean((2, 3)).float())


def test_a_network_that_converts_its_values_trains_in_mixed_precision() -> None:
    graph = Prepare(targets.Grid(weight_bits=7).to_json(), (3, 8, 8)).capture(Converts())
    images = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = graph(images)
    mixed.float().square().mean().backward()
    assert mixed.shape == (4, 4) and all(p.grad is not None for p in graph.parameters())
