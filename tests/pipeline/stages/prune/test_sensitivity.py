"""The sensitivity scan, on a network in which one hidden channel decides and another layer's channels do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgewise.calib_data import Data
from edgewise.errors import RequestError
from edgewise.models import Spec
from edgewise.stage import Context
from edgewise.stages.prune import Prune
from edgewise.stages.prune.sensitivity import top1_by_ratio

SHAPE = (1, 2, 2)


class Greys:
    """Dark images of class 0 and, every fourth one, bright images of class 1."""

    labels = (torch.arange(16) % 4 == 0).long()

    def __len__(self) -> int:
        return 16

    def batch(self, index: Tensor) -> Tensor:
        return (self.labels[index] * 200 + 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE)


class Net(nn.Module):
    """Brightness through channel 0 of ``used``; the head ignores what comes out of ``idle``."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(1, 4, 1, bias=False)
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            self.used.weight.zero_()[0] = 1.0
            self.idle.weight.fill_(0.1)
            self.head.weight.zero_()[1, 0] = 4.0
            self.head.bias.copy_(torch.tensor([0.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.used(x), self.idle(x)], 1).mean((2, 3)))


def context() -> Context:
    part = Greys()
    data = Data(name="greys", train=part, calib=part, test=part, classes=("dark", "bright"), shape=SHAPE, digest="0")
    spec = Spec(name="net", build=Net, input_shape=SHAPE, mean=(0.0,), std=(1.0,), classifier="head")
    return Context(spec=spec, data=data, scratch=Path("unused"))


def test_it_tells_what_each_layer_costs() -> None:
    model = Net().train()
    found = top1_by_ratio(model, Prune(channels=0.5), context(), (0.5, 0.75))
    # The weakest three of four channels say nothing: the one that decides is always left.
    assert found == {"used": {0.0: 1.0, 0.5: 1.0, 0.75: 1.0}, "idle": {0.0: 1.0, 0.5: 1.0, 0.75: 1.0}}
    assert model.training and model.used.out_channels == 4


def test_it_sees_the_decisive_channel_go() -> None:
    model = Net()
    with torch.no_grad():  # by weight the decisive channel is now the least
        model.used.weight[1:] = 9.0
    found = top1_by_ratio(model, Prune(channels=0.5), context(), (0.25,))
    # Without it every image is called dark, and 12 of 16 are.
    assert found == {"used": {0.0: 1.0, 0.25: 0.75}, "idle": {0.0: 1.0, 0.25: 1.0}}


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_is_refused(ratio: float) -> None:
    with pytest.raises(RequestError, match="sensitivity scan must lie in"):
        top1_by_ratio(Net(), Prune(channels=0.5), context(), (ratio,))
