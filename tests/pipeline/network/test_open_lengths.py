"""A network that asks a tensor for its length is captured for any number of images, and its file is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgewise.network.captured import export_graph
from edgewise.network.open_lengths import open_lengths


class Counts(nn.Module):
    """Takes the number of images from ``len``, and that of its layers, too; [N, 3, 4, 4] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(48, 8), nn.Linear(8, 4)])
        self.token = nn.Parameter(torch.ones(1, 48))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1) + self.token.expand(len(x), -1)
        for number in range(len(self.layers)):
            x = self.layers[number](x)
        return x


class Decorated(Counts):
    """Whose forward pass is reached through another file's wrapper."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x.view(len(x), -1)))


@pytest.mark.parametrize("kind", [Counts, Decorated])
def test_any_number_of_images(kind: type[nn.Module]) -> None:
    network = kind().eval()
    graph = export_graph(network, (3, 4, 4), None)
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 4, 4)
        assert torch.equal(graph(images), network(images))


def test_the_name_is_gone_behind_it() -> None:
    before = dict(globals())
    with open_lengths(Counts()):
        assert globals()["len"]([1, 2]) == 2 and globals()["len"](torch.zeros(3, 1)) == 3
    assert "len" not in globals() and globals().keys() == before.keys()
